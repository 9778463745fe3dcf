"""Parameters as rules see them: the local part of a tensor and where it lies in the whole."""

import functools
import math
import sys
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from biofx.errors import PlasticityError
from biofx.plasticity.numerics.random import counters, shard_counters

SAMPLE = 2_048  # synapses of one parameter that its metrics look at


def is_sharded(tensor: Tensor) -> bool:
    """Whether the tensor is a DTensor (`fully_shard`, tensor parallelism)."""
    # Importing DTensor costs 0.3 s; a tensor can only be one if somebody has imported it.
    return hasattr(tensor, "device_mesh") and hasattr(tensor, "placements")


def layout_of(parameter: Tensor) -> tuple[Any, Any] | None:
    """The device mesh and the placements of a DTensor; None of an ordinary tensor."""
    if not is_sharded(parameter):
        return None
    return parameter.device_mesh, parameter.placements  # type: ignore[attr-defined]


def local(tensor: Tensor) -> Tensor:
    """The part of the tensor that lies in this process: detached, sharing its memory."""
    tensor = tensor.detach()
    return tensor.to_local() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def alike(first: Tensor, second: Tensor) -> bool:
    """Whether one tensor can be copied into the other's memory as it lies there."""
    return (
        first.shape == second.shape
        and first.dtype == second.dtype
        and first.device == second.device
        and first.stride() == second.stride()
    )


def local_gradient(grad: Tensor | None, parameter: Tensor) -> Tensor | None:
    """The local part of a DTensor's gradient, which is put where the parameter is.

    It may have come as sums that nobody has added up, or whole for a parameter that is sharded:
    optimizers see to that themselves.
    """
    if grad is None or grad.is_sparse:
        return grad  # what is done to a detached sparse tensor does not reach it
    if is_sharded(grad) and grad.placements != parameter.placements:  # type: ignore[attr-defined]
        mesh, places = parameter.device_mesh, parameter.placements  # type: ignore[attr-defined]
        moved: Tensor = grad.redistribute(mesh, places)  # type: ignore[attr-defined]
        if parameter.grad is grad:
            parameter.grad = moved
        grad = moved
    return local(grad)


def reshard(model: nn.Module) -> None:
    """Let the parameters of `fully_shard` be those that its optimizer has.

    After a forward, the root's own lie there whole until the backward.
    """
    fsdp = sys.modules.get("torch.distributed.fsdp")  # long to import, and not for nothing
    for module in model.modules() if fsdp is not None else ():
        if isinstance(module, fsdp.FSDPModule):  # type: ignore[union-attr]
            module.reshard()


@dataclass(frozen=True)
class Shard:
    """Where a process's part of a parameter lies in the whole; a block, whatever the placements.

    Attributes:
        shape: shape of the whole parameter.
        size: shape of the local part; `shape` for an ordinary parameter.
        offsets: where the local part begins, per dimension.
        groups: process groups over which the parameter is split; a global sum is the sum over all
            of them, one after the other.
        ready: kernels that have served this shard, by what they do.
    """

    shape: tuple[int, ...]
    size: tuple[int, ...]
    offsets: tuple[int, ...]
    groups: tuple[dist.ProcessGroup, ...] = ()
    ready: dict[Any, Any] = field(default_factory=dict, init=False, compare=False, repr=False)

    @functools.cached_property
    def numel(self) -> int:
        """Synapses of the whole parameter."""
        return math.prod(self.shape)

    @functools.cached_property
    def first(self) -> int | None:
        """Global index of the first local element, or None if the local ones are not one run."""
        split = [axis for axis, size in enumerate(self.size) if size != self.shape[axis]]
        if split and any(self.size[axis] != 1 for axis in range(split[-1])):
            return None
        index = 0
        for whole, offset in zip(self.shape, self.offsets, strict=True):
            index = index * whole + offset
        return index

    def index(self, device: torch.device) -> Tensor:
        """Global (row-major) index of each local element, of shape `size`, int32 or int64."""
        if self.size == self.shape:
            return counters(self.shape, device)
        return shard_counters(self.shape, self.size, offsets=self.offsets, device=device)

    def part(self, whole: Tensor) -> Tensor:
        """A copy of the local part of a tensor of the whole shape."""
        for axis, (offset, size) in enumerate(zip(self.offsets, self.size, strict=True)):
            whole = whole.narrow(axis, offset, size)
        return whole.clone(memory_format=torch.contiguous_format)


def shard_of(parameter: Tensor, name: str) -> Shard:
    """The shard of a parameter that this process holds.

    Raises:
        PlasticityError: the parameter is on the meta device, or its placements are not a division
            into blocks.
    """
    if parameter.is_meta:
        raise PlasticityError(
            f"{name} has no data yet (meta device); materialise the model before its scheduler "
            "is made"
        )
    shape = tuple(parameter.shape)
    if not is_sharded(parameter):
        return Shard(shape, shape, (0,) * len(shape))
    mesh: Any = parameter.device_mesh  # type: ignore[attr-defined]
    placements: tuple[Any, ...] = parameter.placements  # type: ignore[attr-defined]
    size = tuple(parameter.to_local().shape)  # type: ignore[attr-defined]
    blocks = [range(whole) for whole in shape]
    # `fully_shard` over tensor parallelism gives strided placements: cut after the plain ones.
    order = sorted(enumerate(placements), key=lambda cut: getattr(cut[1], "split_factor", 1))
    groups = []
    for dim, placement in order:
        if placement.is_replicate() or mesh.size(dim) == 1:
            continue
        axis = getattr(placement, "dim", None)
        if axis is not None:
            blocks[axis] = _chunk(blocks[axis], mesh.size(dim), mesh.get_local_rank(dim))
        groups.append(mesh.get_group(dim))
    if tuple(map(len, blocks)) != size:
        raise PlasticityError(
            f"{name}: cannot tell which block of shape {shape} the local part of shape {size} is "
            f"under the placements {placements}"
        )
    return Shard(shape, size, tuple(block.start for block in blocks), tuple(groups))


def _chunk(block: range, parts: int, place: int) -> range:
    """What `torch.chunk` gives to one place; places behind the last chunk get nothing."""
    size = -(-len(block) // parts)
    return block[min(place * size, len(block)) : min((place + 1) * size, len(block))]


def all_sum(values: Tensor, shard: Shard) -> Tensor:
    """Sum over all processes that hold a part of the parameter; in place where there are any."""
    for group in shard.groups:
        dist.all_reduce(values, group=group)
    return values


def gathered(values: Tensor, shard: Shard) -> Tensor:
    """A copy of the whole tensor of which a process holds a part."""
    if shard.size == shard.shape:
        return values.clone()
    whole = values.new_zeros(shard.shape)
    block = whole
    for axis, (offset, size) in enumerate(zip(shard.offsets, shard.size, strict=True)):
        block = block.narrow(axis, offset, size)
    block.copy_(values)
    return all_sum(whole, shard)


def replicas(model: nn.Module) -> tuple[dist.ProcessGroup, ...]:
    """Groups over which a model's batches are divided; a global sum is over one after the other.

    Those of `DistributedDataParallel` or of the parameters' mesh, if the model shows them; or else
    all processes.
    """
    world = dist.group.WORLD if dist.is_available() and dist.is_initialized() else None
    if world is None or world.size() == 1:
        return ()
    outer: Any = model
    while outer is not None and not isinstance(outer, nn.parallel.DistributedDataParallel):
        outer = getattr(outer, "_orig_mod", None)
    if outer is not None:
        return (outer.process_group,)
    for parameter in filter(is_sharded, model.parameters()):
        mesh: Any = parameter.device_mesh  # type: ignore[attr-defined]
        return tuple(mesh.get_group(dim) for dim in range(mesh.ndim))
    return (world,)


def spread(numel: int, count: int) -> Tensor:
    """Indices of at most `count` of `numel` elements, ascending, int64 of shape (count,).

    Multiples of a stride near the golden section, not evenly spaced ones: those of a matrix may all
    lie in a few of its columns.
    """
    if numel <= count:
        return torch.arange(numel)
    stride = round(numel * 0.6180339887498949)
    while math.gcd(stride, numel) != 1:
        stride += 1
    return (torch.arange(count) * stride % numel).sort().values


def sample_places(tensor: Tensor) -> tuple[Tensor, ...] | None:
    """Coordinates of `SAMPLE` elements, as `spread`; None is all, row by row."""
    if tensor.numel() <= SAMPLE:
        return None
    return torch.unravel_index(spread(tensor.numel(), SAMPLE).to(tensor.device), tensor.shape)


def sample(values: Tensor, size: torch.Size, places: tuple[Tensor, ...] | None) -> Tensor:
    """The values at some places of the shape that they broadcast to; scalars stay scalars."""
    if values.dim() == 0:
        return values
    whole = values.broadcast_to(size)
    return whole.reshape(-1) if places is None else whole[places]
