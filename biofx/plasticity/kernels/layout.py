"""How a parameter's tensors are presented to a kernel: in as few dimensions as possible."""

import functools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from biofx.plasticity.numerics.shards import Shard

LONG = 64  # elements: from there on, a row is worth a loop


def one_run(leaves: Sequence[Tensor], shard: Shard) -> bool:
    """Whether memory and global indices of all tensors that are no scalars are one run."""
    if shard.first is None:
        return False
    size = shard.size
    for leaf in leaves:  # a loop, for this stands in the way of each kernel
        if leaf.dim() and (leaf.shape != size or not leaf.is_contiguous()):
            return False
    return True


@functools.lru_cache(maxsize=4096)
def matrix(size: torch.Size) -> tuple[int, int] | None:
    """Rows and columns, at least 2 of each, that hold as many elements as `size`.

    Rows are the leading dimensions, so far as columns are long enough to be worth a loop. None if
    the number of elements is prime, or if float32 cannot count the columns.
    """
    rows, columns = 1, math.prod(size)
    if not columns:
        return None
    for length in size:
        if rows > 1 and columns // length < LONG:
            break
        rows, columns = rows * length, columns // length
    if columns < 2:
        rows, columns = columns, rows
    if rows < 2:
        rows = next((n for n in range(2, math.isqrt(columns) + 1) if columns % n == 0), 1)
        columns //= rows
    return (rows, columns) if rows > 1 and columns <= 2**24 else None


@functools.lru_cache(maxsize=256)
def line(length: int, device: torch.device) -> Tensor:
    """0, 1, … length − 1 as float32, which vectors of code load faster than integers."""
    return torch.arange(length, dtype=torch.float32, device=device)


def offset(shard: Shard, device: torch.device) -> Tensor:
    """Global index of the first local element, in the integer type that indices need."""
    return _offset(shard.shape, shard.offsets, device)


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
    whole = strides_of(shard.shape)
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


def as_bytes(tensor: Tensor) -> Tensor:
    """Booleans as the bytes that they are: the compiler writes masks one element at a time."""
    return tensor.view(torch.uint8) if tensor.dtype == torch.bool else tensor


def alone(view: Tensor) -> Tensor:
    """The same memory, but no view: a kernel would be bound to the shape of what it views."""
    return view.data


@functools.lru_cache(maxsize=4096)
def integers(values: tuple[int, ...], wide: bool, device: torch.device) -> Tensor:
    """A tensor of shape (number of values,): int64 if wide, else int32."""
    return torch.tensor(values, dtype=torch.int64 if wide else torch.int32, device=device)


# Caches hold shapes, not shards: those would keep process groups, and their threads, until the end.


@functools.lru_cache(maxsize=4096)
def _offset(shape: tuple[int, ...], offsets: tuple[int, ...], device: torch.device) -> Tensor:
    strides = strides_of(shape)
    first = sum(start * stride for start, stride in zip(offsets, strides, strict=True))
    return integers((first,), math.prod(shape) >= 2**31, device)[0].clone()


@functools.lru_cache(maxsize=4096)
def strides_of(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Steps of the index along each dimension of a tensor that lies in one run."""
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


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
