"""Id tensors: for each element of a value, which unit of which layer it belongs to.

An id tensor has the shape of the value that it stands for and is expanded (stride 0) along every
axis on which it repeats, so that it takes no memory and no time. A value whose elements all have
the same id that is no unit's is that number.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

# What belongs to no unit: parameters and constants; inputs and mixtures of units. Units follow.
CONSTANT, DATA, FIRST = 0, 1, 2

# A number or tensor of ids, or a container of them.
Ids = Any


def narrowed(*ids: Tensor) -> tuple[Tensor, ...]:
    """Id tensors of one shape without the axes along which all of them are expanded."""
    for axis in range(ids[0].dim()):
        if ids[0].shape[axis] > 1 and all(t.stride(axis) == 0 for t in ids):
            ids = tuple(t.narrow(axis, 0, 1) for t in ids)
    return ids


def units_in(ids: Ids) -> Tensor:
    """The units in a value, sorted, each once."""
    found = [narrowed(t)[0].flatten() for t in tensors(ids)]
    if not found:
        return torch.empty(0, dtype=torch.int64)
    unique: Tensor = torch.unique(torch.cat(found) if len(found) > 1 else found[0])
    return unique[unique >= FIRST]


def tensors(ids: Ids) -> list[Tensor]:
    """The id tensors in a container."""
    if isinstance(ids, Tensor):
        return [ids]
    if isinstance(ids, dict):
        ids = list(ids.values())
    if isinstance(ids, list | tuple):
        return [t for item in ids for t in tensors(item)]
    return []


def code(ids: Ids) -> int:
    """What a value without units is: `DATA` if any part of it is."""
    if isinstance(ids, Tensor):
        return DATA
    if isinstance(ids, dict):
        ids = list(ids.values())
    if isinstance(ids, list | tuple):
        return max(map(code, ids), default=CONSTANT)
    number: int = ids
    return number


def full(ids: Ids, shape: Sequence[int]) -> Tensor:
    """A number of ids as a tensor; a tensor broadcast to a shape."""
    tensor = ids if isinstance(ids, Tensor) else torch.tensor(int(ids))
    return tensor.expand(tuple(shape))


def repeats(ids: Tensor, axes: Iterable[int]) -> bool:
    """Whether ids are the same all along these axes."""
    if ids.numel() == 0:
        return True
    (small,) = narrowed(ids)
    return all(
        small.shape[axis] == 1 or bool((small == small.narrow(axis, 0, 1)).all()) for axis in axes
    )


def first(ids: Tensor, axes: Iterable[int], *, keep: bool = True) -> Tensor:
    """The first place of these axes, for ids that repeat along them."""
    axes = sorted({axis % max(ids.dim(), 1) for axis in axes}, reverse=True)
    for axis in axes:
        ids = ids.narrow(axis, 0, 1)
        if not keep:
            ids = ids.squeeze(axis)
    return ids


def resized(ids: Tensor, shape: Sequence[int]) -> Tensor:
    """Ids that repeat along the axes whose size differs."""
    for axis, size in enumerate(shape):
        if ids.shape[axis] != size:
            ids = ids.narrow(axis, 0, 1)
    return ids.expand(tuple(shape))
