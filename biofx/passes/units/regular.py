"""Where the units of a population lie along the axes of parameters: regular index maps."""

import torch
from torch import Tensor

from biofx.passes.units.flow import Claim
from biofx.synapses import Entries


def table_of(found: Tensor, members: Tensor, rank: Tensor) -> Tensor | None:
    """Indices at which each of some classes is found, (classes, times); None if not equally often.

    `rank` is scratch space of all −1, one per id.
    """
    size = len(members)
    rank[members] = torch.arange(size)
    unit = rank[found]
    rank[members] = -1
    places = (unit >= 0).nonzero().flatten()
    unit = unit[places]
    count, rest = divmod(len(places), size)
    if rest:
        return None
    if count > 1 or not bool((unit[1:] >= unit[:-1]).all()):
        order = unit.argsort(stable=True)
        places, unit = places[order], unit[order]
    table = unit.view(size, count)
    if not bool((table == torch.arange(size)[:, None]).all()):
        return None
    return places.view(size, count)


def located(claim: Claim, found: Tensor, members: Tensor, rank: Tensor) -> list[Entries] | None:
    """Where each of some classes is found along a parameter's axis; None if not regularly."""
    if torch.equal(found, members):
        return [Entries(name=claim.name, axis=claim.axis, start=0, stride=1, count=1, step=1)]
    table = table_of(found, members, rank)
    if table is None:
        return None
    if not table.shape[1]:
        return []
    whole = _affine(claim, table)
    if whole is not None:
        return [whole]
    parts = [_affine(claim, table[:, k : k + 1]) for k in range(table.shape[1])]
    return [part for part in parts if part is not None] if all(parts) else None


def _affine(claim: Claim, table: Tensor) -> Entries | None:
    """Indices (units, entries of each) as start + unit·stride + entry·step."""
    units, count = table.shape
    start = int(table[0, 0])
    stride = int(table[1, 0]) - start if units > 1 else max(count, 1)
    step = int(table[0, 1]) - start if count > 1 else 1
    expected = start + torch.arange(units)[:, None] * stride + torch.arange(count) * step
    if not torch.equal(expected, table):
        return None
    return Entries(
        name=claim.name, axis=claim.axis, start=start, stride=stride, count=count, step=step
    )
