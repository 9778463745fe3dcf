"""The entries of units in local tensors: which they are, what they send, why they must stay."""

from collections.abc import Mapping

import torch
from torch import Tensor

from biofx.plasticity.kernels.base import wide
from biofx.plasticity.numerics.shards import Shard, all_sum
from biofx.plasticity.scheduler.binding import ParameterStep
from biofx.plasticity.scheduler.unit_activity import UnitActivity
from biofx.synapses import Entries, Population, Reader, Synapses


def obstacle(population: Population, synapses: Mapping[str, Synapses]) -> str | None:
    """Why units cannot be replaced, or None."""
    if population.reason is not None or not population.readers:
        return population.reason or "no layer that reads them is known"
    if population.size < 2:
        return "there is one unit only"
    names = [entry.name for entry in population.incoming]
    read = [reader.weight.name for reader in population.readers]
    for name in (*names, *read):
        if name not in synapses:
            return f"{name} carries no synapses"
        if synapses[name].gamma > 1:
            return f"{name} is split into Γ = {synapses[name].gamma} synapses per connection"
        if len(synapses[name].layers) > 1:
            return f"{name} is shared by several layers"
    if set(names) & set(read):
        return "one parameter holds both their incoming and their outgoing weights"
    if any(synapses[name].groups > 1 for name in read):
        return "they are read in groups"
    if not any(UnitActivity.axis(synapses[name]) for name in read):
        kinds = ", ".join(sorted({synapses[name].kind for name in read}))
        return f"their activity cannot be measured where they are read ({kinds})"
    return None


def weights_of(population: Population) -> list[Entries]:
    """All weights that change when units of a population do."""
    return [*population.incoming, *(reader.weight for reader in population.readers)]


def of_units(values: Tensor, entries: Entries, size: int) -> Tensor:
    """Values per index of an axis as values per unit and entry, of shape (units, count)."""
    if entries.step == 1 and entries.stride == entries.count:  # one run: no gathering
        stop = entries.start + size * entries.count
        return values[entries.start : stop].view(size, entries.count)
    return values[entries.index(torch.arange(size, device=values.device))]


def summed(values: Tensor, shard: Shard, axis: int) -> Tensor:
    """Sums per index of one axis, over all shards."""
    if shard.size == shard.shape:
        return values
    whole = values.new_zeros(shard.shape[axis])
    whole[shard.offsets[axis] : shard.offsets[axis] + shard.size[axis]] = values
    return all_sum(whole, shard)


def entries_mask(weight: Tensor, shard: Shard, entries: Entries, units: Tensor) -> Tensor:
    """The local part of some units' entries, as a mask that broadcasts to the local tensor."""
    axis = entries.axis
    line = torch.zeros(shard.shape[axis], dtype=torch.bool, device=weight.device)
    line[entries.index(units.to(weight.device)).flatten()] = True
    line = line[shard.offsets[axis] : shard.offsets[axis] + shard.size[axis]]
    shape = [1] * weight.dim()
    shape[axis] = len(line)
    return line.view(shape)


def sent_on_average(
    site: ParameterStep, synapses: Synapses, reader: Reader, units: Tensor, means: Tensor
) -> Tensor:
    """What units send on the average to each unit of a reader: Σ w_out·mean h."""
    entries, shard, weight = reader.weight, site.binding.shard, wide(site.weight)
    amount = torch.zeros(shard.shape[entries.axis], dtype=weight.dtype, device=weight.device)
    amount[entries.index(units)] = means[:, None].to(weight.dtype)
    amount = amount[shard.offsets[entries.axis] :][: shard.size[entries.axis]]
    shape = [1] * weight.dim()
    shape[entries.axis] = len(amount)
    axes = [axis for axis in range(weight.dim()) if axis != synapses.post_axis]
    return summed((weight * amount.view(shape)).sum(axes), shard, synapses.post_axis)


def add_mask(fresh: dict[str, Tensor], name: str, mask: Tensor, weight: Tensor) -> None:
    """Mark more synapses of a parameter as new."""
    mask = mask.expand(weight.shape)
    fresh[name] = fresh[name] | mask if name in fresh else mask
