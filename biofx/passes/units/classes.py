"""Which units turned out to be one, and which of these several layers make."""

from collections import defaultdict

import torch
from torch import Tensor

from biofx.passes.units.flow import Flow

_SEVERAL = "several producers"
NONE = 1 << 40  # no reason
MIXER = 0x9E3779B97F4A7C15 - (1 << 64)  # odd, for hashes of 64 bits


def classes_of(
    flow: Flow, known: Tensor | None = None, start: int = 0, stop: int | None = None
) -> Tensor:
    """The class of each id: the least id that it was merged with.

    Args:
        flow: what was followed.
        known: classes by the merges before `start`.
        start, stop: the merges to take.
    """
    label = torch.arange(flow.total) if known is None else known
    merged = flow.merged[start:stop]
    if not merged:
        return label
    a = torch.cat([pair[0] for pair in merged])
    b = torch.cat([pair[1] for pair in merged])
    while True:
        roots_a, roots_b = label[a], label[b]
        if torch.equal(roots_a, roots_b):
            return label
        least = torch.minimum(roots_a, roots_b)
        fresh = torch.arange(flow.total)
        fresh.scatter_reduce_(0, roots_a, least, "amin")
        fresh.scatter_reduce_(0, roots_b, least, "amin")
        label = fresh[label]  # what shared a class goes on sharing it


def note_several(flow: Flow, classes: Tensor, reason: Tensor, reasons: list[str]) -> None:
    """Units that several layers make: the reason names the layers."""
    owner = torch.zeros(flow.total, dtype=torch.int64)
    sources = list(flow.sources.values())
    for number, source in enumerate(sources):
        owner[source.first : source.first + source.size] = number
    across = torch.zeros(flow.total, dtype=torch.bool)
    for a, b, added in flow.merged:
        if added:
            apart = owner[a] != owner[b]
            across[classes[a[apart]]] = True
    if not bool(across.any()):
        return
    makers = torch.zeros(flow.total, dtype=torch.int64)  # a hash of the layers that make a class
    found = [torch.unique(classes[source.ids]) for source in sources]
    for number, roots in enumerate(found):
        makers[roots] = makers[roots] * MIXER + number + 1
    members: dict[int, list[int]] = defaultdict(list)
    for number, roots in enumerate(found):
        for key in set(makers[roots[across[roots]]].tolist()):
            members[key].append(number)
    for key, together in members.items():
        names = [sources[n].layer for n in together]
        told = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
        reason[across & (makers == key) & (reason == NONE)] = len(reasons)
        reasons.append(f"{_SEVERAL}: {told}")
