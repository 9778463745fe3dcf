"""How a parameter's tensors are presented to a kernel: in as few dimensions as possible."""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from biofx.plasticity.shards import Shard


class Layout(NamedTuple):
    """Tensors of one parameter, and how to number their elements.

    Element (i, j, …) of the arranged tensors has the global index first + i·strides[0] +
    j·strides[1] + …; without strides there is one dimension, of stride 1.
    """

    tensors: dict[str, Tensor]
    inputs: Any
    first: Tensor
    strides: Tensor | None


def arrange(tensors: Mapping[str, Tensor], inputs: Any, *, lead: str, shard: Shard) -> Layout:
    """Views of the tensors, in the order in which memory holds one of them.

    Args:
        tensors: of the shard's size.
        inputs: tuples and dictionaries of tensors that broadcast to the size.
        lead: the name of the tensor whose order counts.
        shard: where the elements lie in the whole.
    """
    size = torch.Size(shard.size)
    loose = [t for t in _leaves(inputs) if t.dim()]
    wide = torch.int64 if shard.numel >= 2**31 else torch.int32
    device = tensors[lead].device
    run = shard.first
    if run is not None and all(
        t.shape == size and t.is_contiguous() for t in (*tensors.values(), *loose)
    ):
        return Layout(
            {name: _alone(t.view(-1)) for name, t in tensors.items()},
            _mapped(inputs, lambda t: _alone(t.view(-1))),
            _integers((run,), wide, device)[0],
            None,
        )
    whole = [math.prod(shard.shape[axis + 1 :]) for axis in range(len(size))]
    first = sum(offset * stride for offset, stride in zip(shard.offsets, whole, strict=True))
    spread = [t.expand(size) for t in (*tensors.values(), *loose)]
    # Dimensions of size 1 would be compiled as special cases; slowest in memory first.
    order = [axis for axis in range(len(size)) if size[axis] != 1]
    order.sort(key=tensors[lead].stride, reverse=True)
    blocks = _merged(order, size, [t.stride() for t in spread] + [tuple(whole)])
    shape = [math.prod(size[axis] for axis in block) for block in blocks]

    def view(tensor: Tensor) -> Tensor:
        if not tensor.dim():
            return tensor
        tensor = tensor.expand(size)
        steps = [tensor.stride(block[-1]) for block in blocks]
        return _alone(tensor.as_strided(shape, steps, tensor.storage_offset()))

    return Layout(
        {name: view(t) for name, t in tensors.items()},
        _mapped(inputs, view),
        _integers((first,), wide, device)[0],
        _integers(tuple(whole[block[-1]] for block in blocks), wide, device),
    )


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


def _alone(view: Tensor) -> Tensor:
    """The same memory, no view of another tensor: kernels would be bound to that one's shape."""
    return view.data


def _leaves(inputs: Any) -> list[Tensor]:
    if isinstance(inputs, Tensor):
        return [inputs]
    values = inputs.values() if isinstance(inputs, Mapping) else inputs
    return [leaf for value in values for leaf in _leaves(value)]


def _mapped(inputs: Any, function: Any) -> Any:
    if isinstance(inputs, Tensor):
        return function(inputs) if inputs.dim() else inputs
    if isinstance(inputs, Mapping):
        return {name: _mapped(value, function) for name, value in inputs.items()}
    return tuple(_mapped(value, function) for value in inputs)


@functools.lru_cache(maxsize=4096)
def _integers(values: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=dtype, device=device)
