"""How a parameter's tensors are presented to a kernel: in as few dimensions as possible."""

import functools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from biofx.plasticity.shards import Shard


def one_run(leaves: Sequence[Tensor], shard: Shard) -> bool:
    """Whether memory and global indices of all tensors that are no scalars are one run."""
    if shard.first is None:
        return False
    size = shard.size
    return all(not leaf.dim() or (leaf.shape == size and leaf.is_contiguous()) for leaf in leaves)


@functools.lru_cache(maxsize=4096)
def offset(shard: Shard, device: torch.device) -> Tensor:
    """Global index of the first local element, in the integer type that indices need."""
    strides = _strides(shard)
    first = sum(start * stride for start, stride in zip(shard.offsets, strides, strict=True))
    return integers((first,), shard.numel >= 2**31, device)[0].clone()


def arrange(
    leaves: Sequence[Tensor], *, lead: int, shard: Shard
) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """How to view tensors in the order in which memory holds one of them, dimensions merged.

    Args:
        leaves: tensors that broadcast to the shard's size.
        lead: place of the tensor whose order counts.
        shard: where the elements lie in the whole.

    Returns:
        A function that views a tensor so, and the steps of the global index along the dimensions
        of such views.
    """
    size = torch.Size(shard.size)
    whole = _strides(shard)
    # Dimensions of size 1 would be compiled as special cases; slowest in memory first.
    order = [axis for axis in range(len(size)) if size[axis] != 1]
    order.sort(key=leaves[lead].stride, reverse=True)
    strides = [leaf.expand(size).stride() for leaf in leaves if leaf.dim()]
    blocks = _merged(order, size, [*strides, whole])
    shape = [math.prod(size[axis] for axis in block) for block in blocks]

    def view(tensor: Tensor) -> Tensor:
        if not tensor.dim():
            return tensor
        tensor = tensor.expand(size)
        steps = [tensor.stride(block[-1]) for block in blocks]
        return alone(tensor.as_strided(shape, steps, tensor.storage_offset()))

    steps = tuple(whole[block[-1]] for block in blocks)
    return view, integers(steps, shard.numel >= 2**31, leaves[lead].device)


def alone(view: Tensor) -> Tensor:
    """The same memory, but no view: a kernel would be bound to the shape of what it views."""
    return view.data


@functools.lru_cache(maxsize=4096)
def integers(values: tuple[int, ...], wide: bool, device: torch.device) -> Tensor:
    """A tensor of shape (number of values,): int64 if wide, else int32."""
    return torch.tensor(values, dtype=torch.int64 if wide else torch.int32, device=device)


@functools.lru_cache(maxsize=4096)
def _strides(shard: Shard) -> tuple[int, ...]:
    return tuple(math.prod(shard.shape[axis + 1 :]) for axis in range(len(shard.shape)))


def _merged(
    order: Sequence[int], size: torch.Size, strides: Sequence[tuple[int, ...]]
) -> list[list[int]]:
    """Neighbouring axes that are one axis to every tensor, joined."""
    blocks: list[list[int]] = []
    for axis in order:
        last = blocks[-1][-1] if blocks else axis
        if blocks and all(s[last] == s[axis] * size[axis] for s in strides):
            blocks[-1].append(axis)
        else:
            blocks.append([axis])
    return blocks
