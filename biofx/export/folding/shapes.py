"""Folding: flatten, views, transposes, slices, sizes."""

import operator
from math import prod
from typing import Any

import torch
from torch import fx

from biofx.export.folding.analysis import Analysis
from biofx.export.folding.elementwise import is_number, is_shape
from biofx.export.folding.layout import Layout, Rep, Unfoldable


def _shape(node: Any) -> tuple[int, ...] | None:
    shape = getattr(node.meta.get("tensor_meta"), "shape", None)
    return None if shape is None else tuple(shape)


def reshape(analysis: Analysis, node: fx.Node) -> Rep | None:
    """Flatten, view, reshape: a channel becomes a block of neighbours."""
    source: Any = node.args[0]
    if not analysis.repeats(node):
        return None
    rep = analysis.rep(source)
    before, after = _shape(source), _shape(node)
    if before is not None and after is not None:
        return Rep(_reshaped(rep.layout, before, after), len(after), rep.origins)
    start, end = _flattened(analysis, node)
    rank = analysis.rank_of(source, "what it flattens")
    start, end = start % rank, end % rank
    return Rep(_flat(rep.layout, rank, start, end), rank - (end - start), rep.origins)


def _flattened(analysis: Analysis, node: fx.Node) -> tuple[int, int]:
    """The dimensions that a node flattens into one: (first, last)."""
    if node.op == "call_module":
        module = analysis.module(node)
        return module.start_dim, module.end_dim
    if node.target in (torch.flatten, "flatten"):
        start = node.args[1] if len(node.args) > 1 else node.kwargs.get("start_dim", 0)
        end = node.args[2] if len(node.args) > 2 else node.kwargs.get("end_dim", -1)
        if isinstance(start, int) and isinstance(end, int):
            return start, end
    sizes: Any = node.args[1:]
    if len(sizes) == 1 and isinstance(sizes[0], list | tuple):
        sizes = tuple(sizes[0])
    # `x.view(len(x), -1)`
    if len(sizes) == 2 and sizes[1] == -1 and isinstance(sizes[0], fx.Node) and _is_first(sizes[0]):
        return 1, -1
    raise Unfoldable("it is not known to keep what repeats")


def _is_first(node: fx.Node) -> bool:
    """Whether a node is the length of the first axis of something."""
    return is_number(node) and node.args[1:] == (0,)


def _flat(layout: Layout, rank: int, start: int, end: int) -> Layout:
    place = rank + layout.axis
    if place < start:
        return layout.moved(layout.axis + end - start)
    if place > end or start == end:
        return layout
    if place > start:
        raise Unfoldable("it flattens other axes into what repeats")
    return Layout(start - (rank - (end - start)), layout.runs, spread=True)


def _reshaped(layout: Layout, before: tuple[int, ...], after: tuple[int, ...]) -> Layout:
    """The layout after a view, from the shapes of a run."""
    place = len(before) + layout.axis
    size, head = before[place], prod(before[:place])
    for position, length in enumerate(after):
        if prod(after[:position]) != head or length == 1:
            continue
        if length == size:
            return layout.moved(position - len(after))
        if length in {
            size * prod(before[place + 1 : k]) for k in range(place + 2, len(before) + 1)
        }:
            return Layout(position - len(after), layout.runs, spread=True)
        break
    raise Unfoldable(
        "it is not known to keep what repeats: it flattens other axes into it, or cuts"
    )


def transpose(analysis: Analysis, node: fx.Node) -> Rep | None:
    """Two axes change places."""
    if not analysis.repeats(node):
        return None
    source: Any = node.args[0]
    dims: Any = node.args[1:3]
    if len(node.args) != 3 or node.kwargs or not all(isinstance(d, int) for d in dims):
        raise Unfoldable("it is called in an unusual way")
    a, b = (analysis.from_end(source, d) for d in dims)
    rep = analysis.rep(source)
    axis = {a: b, b: a}.get(rep.layout.axis, rep.layout.axis)
    return Rep(rep.layout.moved(axis), rep.rank, rep.origins)


def permute(analysis: Analysis, node: fx.Node) -> Rep | None:
    """All axes change places; their number tells the rank."""
    if not analysis.repeats(node):
        return None
    dims: Any = node.args[1:]
    if len(dims) == 1 and isinstance(dims[0], list | tuple):
        dims = dims[0]
    if node.kwargs or not dims or not all(isinstance(d, int) for d in dims):
        raise Unfoldable("it is called in an unusual way")
    rep, rank = analysis.rep(node.args[0]), len(dims)
    axis = [d % rank for d in dims].index(rank + rep.layout.axis) - rank
    return Rep(rep.layout.moved(axis), rank, rep.origins)


def unsqueeze(analysis: Analysis, node: fx.Node) -> Rep | None:
    """A new axis of length 1."""
    if not analysis.repeats(node):
        return None
    dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    if not isinstance(dim, int):
        raise Unfoldable("it is called in an unusual way")
    place = dim if dim < 0 else analysis.from_end(node.args[0], dim) - 1
    rep = analysis.rep(node.args[0])
    axis = rep.layout.axis - (place >= rep.layout.axis)  # one more axis to its right
    return Rep(rep.layout.moved(axis), rep.rank + 1 if rep.rank else None, rep.origins)


def item(analysis: Analysis, node: fx.Node) -> Rep | None:
    """Slices and single positions of axes that do not repeat."""
    if not analysis.repeats(node):
        return None
    source: Any = node.args[0]
    index: Any = node.args[1] if isinstance(node.args[1], tuple | list) else (node.args[1],)
    if not all(i is None or i is Ellipsis or isinstance(i, int | slice) for i in index):
        raise Unfoldable("it selects by computed positions")
    rank = analysis.rank_of(source, "what it selects")
    rep = analysis.rep(source)
    missing = rank - sum(i is not None and i is not Ellipsis for i in index)
    at = index.index(Ellipsis) if Ellipsis in index else len(index)
    entries = [*index[:at], *[slice(None)] * missing, *index[at + 1 :]]
    place, right, seen, found = rank + rep.layout.axis, 0, 0, False
    for entry in entries:
        if entry is None:
            right += found
            continue
        if seen == place:
            if entry != slice(None):
                raise Unfoldable("it selects some of what repeats")
            found = True
        elif found and isinstance(entry, slice):
            right += 1
        seen += 1
    after = rank + sum(i is None for i in entries) - sum(isinstance(i, int) for i in entries)
    return Rep(rep.layout.moved(-1 - right), after, rep.origins)


def size(analysis: Analysis, node: fx.Node) -> Rep | None:
    """The length of an axis that does not repeat: the small value has the same."""
    if not analysis.repeats(node) or node.target in ("dim",):
        return None
    source: Any = node.args[0]
    asked = [node.args[1]] if node.target == "size" and len(node.args) > 1 else None
    if node.target is getattr and node.args[1] in ("dtype", "device", "ndim"):
        return None
    if asked is None:
        if not is_shape(node) or any(u.target is not operator.getitem for u in node.users):
            raise Unfoldable("nothing is known about what it keeps")
        asked = [user.args[1] for user in node.users]
    axis = analysis.rep(source).layout.axis
    if any(not isinstance(d, int) or analysis.from_end(source, d) == axis for d in asked):
        raise Unfoldable("it asks for the length of what repeats")
    return None
