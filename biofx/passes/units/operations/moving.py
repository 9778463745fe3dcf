"""Operations that move elements."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from biofx.passes.units.ids import DATA, Ids, first, full, repeats, resized
from biofx.passes.units.operations.table import follows, words
from biofx.passes.units.step import Step

_MOVES = words("""
    transpose permute squeeze unsqueeze expand flip movedim moveaxis swapaxes swapdims t adjoint
    rot90 view_as_real t_copy broadcast_to
""")
_RESHAPES = words("""
    view reshape flatten unflatten ravel view_as reshape_as unsafe_view _unsafe_view
""")
_PARTS = words("""
    chunk split split_with_sizes tensor_split unbind unsafe_chunk unsafe_split select narrow
    pixel_shuffle pixel_unshuffle channel_shuffle native_channel_shuffle diagonal hsplit vsplit
    dsplit
""")
_WHOLES = words("""
    cat concat concatenate stack hstack vstack dstack repeat tile repeat_interleave roll tril
    triu column_stack row_stack
""")


@follows(*_MOVES, *_WHOLES)
def _moved(step: Step, *args: Any, **kwargs: Any) -> Ids:
    return step.run(*args, **kwargs)


@follows("broadcast_tensors")
def _broadcast(step: Step, *values: Any) -> Ids:
    shapes = step.shapes()
    return tuple(full(step.ids(v), shape) for v, shape in zip(values, shapes, strict=True))


@follows(*_RESHAPES)
def _reshaped(step: Step, input: Any, *args: Any, **kwargs: Any) -> Ids:
    before = step.ids(input)
    if step.name in ("view", "reshape", "_unsafe_view", "view_as", "reshape_as"):
        if args and isinstance(args[0], torch.dtype):
            return before if step.shape() == before.shape else step.unknown()
        after = before.reshape(step.shape())
    else:
        after = step.run(input, *args, **kwargs)
    step.flow.cut(before, after, step.what)
    return after


@follows(*_PARTS)
def _parts(step: Step, input: Any, *args: Any, **kwargs: Any) -> Ids:
    after = step.run(input, *args, **kwargs)
    step.flow.cut(step.ids(input), after, step.what)
    return after


@follows("getitem", "__getitem__")
def _item(step: Step, input: Any, index: Any) -> Ids:
    value = step.ids(input)
    if not isinstance(value, Tensor):
        try:
            return value[index]
        except (TypeError, KeyError, IndexError):
            return DATA
    places = index if isinstance(index, tuple) else (index,)
    if any(isinstance(place, list | fx.Node) for place in places):
        return _indexed(step, value, list(places))
    after = value[index]
    step.flow.cut(value, after, step.what)
    return after


def _indexed(step: Step, value: Tensor, places: list[Any]) -> Ids:
    """Indexing by tensors: where the ids repeat along the axes that are indexed, any place does."""
    consumed = [step.axes_of_index(place) for place in places]
    if Ellipsis in places:
        at = places.index(Ellipsis)
        missing = value.dim() - sum(n for n in consumed if n)
        places[at : at + 1] = [slice(None)] * missing
        consumed[at : at + 1] = [1] * missing
    axis = 0
    axes: list[int] = []
    simple: list[Any] = []
    for place, count in zip(places, consumed, strict=True):
        known = step.constant(place)
        if isinstance(known, Tensor):
            simple.append(known)
        elif isinstance(place, fx.Node):
            axes += range(axis, axis + count)
            simple += step.any_place(place, count)
        else:
            simple.append(place)
        axis += count
    if not repeats(value, axes):
        return step.flow.lose(value, f"{step.what} picks units by data")
    after = value[tuple(simple)]
    if after.shape != step.shape(after.shape):
        after = resized(after, step.shape())
    step.flow.cut(value, after, step.what)
    return after


@follows("gather", "take_along_dim", "index_select")
def _gathered(step: Step, input: Any, dim: int, index: Any, **_: Any) -> Ids:
    value = step.ids(input)
    if not isinstance(value, Tensor):
        return step.unknown()
    known = step.constant(index)
    if isinstance(known, Tensor):
        after = getattr(torch, step.name)(value, dim, known)
    elif repeats(value, [dim]):
        shape = step.shape()
        after = first(value, [dim])
        for axis, size in enumerate(shape):
            if axis != dim % value.dim():
                after = after.narrow(axis, 0, size)
        after = after.expand(shape)
    else:
        return step.flow.lose(value, f"{step.what} picks units by data")
    step.flow.cut(value, after, step.what)
    return after


@follows("pad", "constant_pad_nd", "zero_pad2d")
def _padded(
    step: Step, input: Any, pad: Sequence[int], mode: Any = "constant", *_: Any, **__: Any
) -> Ids:
    value = step.ids(input)
    sizes = list(pad)
    axes = [value.dim() - 1 - k // 2 for k, size in enumerate(sizes) if size]
    if repeats(value, axes):
        return resized(value, step.shape())
    if isinstance(mode, str) and mode != "constant":  # copies, which exist for floats only
        return torch.nn.functional.pad(value.double(), sizes, mode).long()
    return torch.nn.functional.pad(value, sizes)
