"""Pairs of units, one exciting and one inhibiting: how they begin, and whether they can."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from biofx.synapses import Belonging, Entries, Neighbours, Population, Synapses


def paired(values: Tensor, index: Tensor, axis: int) -> Tensor:
    """The second of each pair of units becomes the first's equal.

    Args:
        values: a tensor with entries per unit.
        index: indices along `axis` of each unit's entries, int64 of shape (units, count).
        axis: axis of `values` that the units run along.

    Returns:
        Of the shape of `values`.
    """
    first = values.index_select(axis, index[0::2].flatten())
    return values.index_copy(axis, index[1::2].flatten(), first)


def mirrored(weight: Tensor, index: Tensor, axis: int) -> Tensor:
    """Exciting and inhibiting synapses of pairs of units, from one free weight for each pair.

    With v = w·√2 of the first unit, the first gets max(v, 0) and the second min(v, 0). Where both
    units say the same, that is a free synapse of weight v: the network computes what one with half
    of the units and no principle does, and weights have the size that they were drawn with.

    Args:
        weight: w.
        index: indices along `axis` of each unit's synapses, int64 of shape (units, count).
        axis: the pre-synaptic axis.

    Returns:
        Of the weight's shape.
    """
    first, second = index[0::2].flatten(), index[1::2].flatten()
    free = weight.index_select(axis, first) * math.sqrt(2)
    weight = weight.index_copy(axis, first, free.clamp(min=0))
    return weight.index_copy(axis, second, free.clamp(max=0))


def pairs_of(weight: Tensor, index: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """The synapses of the exciting and of the inhibiting units, of equal shapes.

    Args:
        weight, index, axis: as for `mirrored`.
    """
    first, second = (index[half::2].flatten() for half in (0, 1))
    return weight.index_select(axis, first), weight.index_select(axis, second)


def obey(exciting: Tensor, inhibiting: Tensor) -> bool:
    """Whether all synapses of pairs of units have their units' signs (or are 0)."""
    return bool((exciting >= 0).all() & (inhibiting <= 0).all())


def drifted(exciting: Tensor, inhibiting: Tensor) -> bool:
    """Whether synapses that obey were trained: `mirrored` leaves a 0 in each pair."""
    return bool(((exciting != 0) & (inhibiting != 0)).any())


def entries_of(population: Population, entries: Entries, like: Tensor) -> Tensor:
    """Indices of the entries of all units, int64 of shape (units, count), where `like` is."""
    return entries.index(torch.arange(population.size, device=like.device))


def same_inputs(population: Population, synapses: Mapping[str, Synapses]) -> bool:
    """Whether both units of each pair read the same: in a grouped convolution, one group."""
    for entries in population.incoming:
        source = synapses[entries.name]
        group = entries.index(torch.arange(population.size, device="cpu")) // (
            source.shape[entries.axis] // source.groups
        )
        if source.groups > 1 and not torch.equal(group[0::2], group[1::2]):
            return False
    return True


def read_by(synapses: Synapses, wiring: Neighbours) -> list[Belonging]:
    """The units that a parameter's first layer reads, and their columns.

    Another layer may share the weight in another sense: an output layer, that of an embedding.
    """
    return [
        (population, entries)
        for population, entries in wiring.read
        if entries.axis == synapses.pre_axis or synapses.groups > 1
    ]
