"""Fold rules: flatten, views, transposes, slices, sizes."""

import operator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import fx, nn

from biofx.passes.folding.layout import Layout, Rep, Replaced, Unfoldable
from biofx.passes.folding.spatial import from_end

if TYPE_CHECKING:
    from biofx.passes.folding.graph import Folding


def flatten(fold: "Folding", node: fx.Node) -> Rep:
    """`nn.Flatten`, `torch.flatten`: a channel becomes a block of neighbours."""
    source: Any = node.args[0]
    if node.op == "call_module":
        module: Any = fold.submodules[str(node.target)]
        start, end = module.start_dim, module.end_dim
    else:
        start = node.args[1] if len(node.args) > 1 else node.kwargs.get("start_dim", 0)
        end = node.args[2] if len(node.args) > 2 else node.kwargs.get("end_dim", -1)
    if not isinstance(start, int) or not isinstance(end, int):
        raise Unfoldable("it is called in an unusual way")
    rank = fold.rank_of(source, node, "what it flattens")
    layout = _flat(fold.rep(source).layout, rank, start % rank, end % rank)
    return fold.build(node, layout, rank=rank - (end % rank - start % rank))


def _flat(layout: Layout, rank: int, start: int, end: int) -> Layout:
    place = rank + layout.axis
    if place < start:
        return replace(layout, axis=layout.axis + end - start)
    if place > end or start == end:
        return layout
    if place > start:
        raise Unfoldable("it flattens other axes into what repeats")
    return replace(layout, axis=start - (rank - (end - start)), spread=True)


def view(fold: "Folding", node: fx.Node) -> Rep:
    """`x.view(len(x), -1)` and its kind, which flatten all but the first axis."""
    source: Any = node.args[0]
    sizes: Any = node.args[1:]
    if len(sizes) == 1 and isinstance(sizes[0], list | tuple):
        sizes = tuple(sizes[0])
    rep = fold.rep(source)
    if not rep.layout.repeats:
        raise Unfoldable("nothing repeats")
    if len(sizes) != 2 or node.kwargs:
        raise Unfoldable("it is not known to keep what repeats")
    rank = fold.rank_of(source, node, "what it flattens")
    layout = _flat(fold.rep(source).layout, rank, 1, rank - 1)
    rows, columns = sizes
    flat = fold.build(node, layout, rank=2, op="call_method", target="flatten",
                      args=(fold.small(source), 1), kwargs={})  # fmt: skip
    if not (isinstance(rows, int) and rows == -1):
        _assert_size(fold, node, flat.node, 0, rows)
    if isinstance(columns, int) and columns >= 0:
        if columns * layout.small % layout.full:
            raise Unfoldable("it cuts through what repeats")
        _assert_size(fold, node, flat.node, 1, columns * layout.small // layout.full)
    elif not isinstance(columns, int):
        raise Unfoldable("it is not known to keep what repeats")
    return flat


def _assert_size(fold: "Folding", node: fx.Node, value: fx.Node, dim: int, size: Any) -> None:
    with fold.graph.inserting_before(node):
        actual = fold.graph.call_method("size", (value, dim))
        same = fold.graph.call_function(operator.eq, (actual, fold.small(size)))
        message = (
            f"exported with fold=True for inputs whose first axis {fold.describe(node)} keeps; "
            "export with fold=False for others"
        )
        fold.graph.call_function(torch._assert, (same, message))


def transpose(fold: "Folding", node: fx.Node) -> Rep:
    """Two axes change places."""
    source: Any = node.args[0]
    dims = node.args[1:3] if len(node.args) == 3 else None
    if dims is None or node.kwargs or not all(isinstance(d, int) for d in dims):
        raise Unfoldable("it is called in an unusual way")
    a, b = (from_end(fold, source, node, d) for d in dims)  # type: ignore[arg-type]
    rep = fold.rep(source)
    axis = {a: b, b: a}.get(rep.layout.axis, rep.layout.axis)
    return fold.build(node, replace(rep.layout, axis=axis), rank=rep.rank, likely=rep.likely)


def permute(fold: "Folding", node: fx.Node) -> Rep:
    """All axes change places; their number tells the rank."""
    dims: Any = node.args[1:]
    if len(dims) == 1 and isinstance(dims[0], list | tuple):
        dims = dims[0]
    if node.kwargs or not dims or not all(isinstance(d, int) for d in dims):
        raise Unfoldable("it is called in an unusual way")
    rep = fold.rep(node.args[0])
    rank = len(dims)
    axis = [d % rank for d in dims].index(rank + rep.layout.axis) - rank
    return fold.build(node, replace(rep.layout, axis=axis), rank=rank)


def unsqueeze(fold: "Folding", node: fx.Node) -> Rep:
    """A new axis of length 1."""
    source: Any = node.args[0]
    dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    if not isinstance(dim, int):
        raise Unfoldable("it is called in an unusual way")
    place = dim if dim < 0 else dim - fold.rank_of(source, node, f"which axis {dim} is") - 1
    rep = fold.rep(source)
    axis = rep.layout.axis - (place >= rep.layout.axis)  # one more axis to its right
    return fold.build(
        node, replace(rep.layout, axis=axis),
        rank=rep.rank + 1 if rep.rank else None, likely=rep.likely + 1 if rep.likely else None,
    )  # fmt: skip


def item(fold: "Folding", node: fx.Node) -> Rep:
    """Slices and single positions of axes that do not repeat."""
    source: Any = node.args[0]
    index: Any = node.args[1] if isinstance(node.args[1], tuple | list) else (node.args[1],)
    rep = fold.rep(source)
    if not all(i is None or i is Ellipsis or isinstance(i, int | slice) for i in index):
        raise Unfoldable("it selects by computed positions")
    rank = fold.rank_of(source, node, "what it selects")
    missing = rank - sum(i is not None and i is not Ellipsis for i in index)
    rest = [slice(None)] * missing
    at = index.index(Ellipsis) if Ellipsis in index else len(index)
    full = [*index[:at], *rest, *index[at + 1 :]]
    place, axis, right, seen = rank + rep.layout.axis, None, 0, 0
    for entry in full:
        if entry is None:
            right += axis is not None
            continue
        if seen == place:
            if entry != slice(None):
                raise Unfoldable("it selects some of what repeats")
            axis = 0
        elif axis is not None and isinstance(entry, slice):
            right += 1
        seen += 1
    after = rank + sum(i is None for i in full) - sum(isinstance(i, int) for i in full)
    return fold.build(node, replace(rep.layout, axis=-1 - right), rank=after)


def size(fold: "Folding", node: fx.Node) -> Rep:
    """The length of an axis that does not repeat: the small value has the same."""
    source: Any = node.args[0]
    rep = fold.rep(source)
    if not rep.layout.repeats:
        raise Unfoldable("nothing repeats")
    if node.target == "dim":
        _replace(fold, node, fold.graph.call_method, "dim", (rep.node,))
    elif len(node.args) > 1 and isinstance(node.args[1], int):
        if from_end(fold, source, node, node.args[1]) == rep.layout.axis:
            raise Unfoldable("it asks for the length of what repeats")
        _replace(fold, node, fold.graph.call_method, "size", (rep.node, node.args[1]))
    else:
        _sizes(fold, node, source, rep)
    raise Replaced


def shape(fold: "Folding", node: fx.Node) -> Rep:
    """`x.shape`, of which single entries are taken."""
    if node.args[1] in ("dtype", "device"):
        rep = fold.rep(node.args[0])
        _replace(fold, node, fold.graph.call_function, getattr, (rep.node, node.args[1]))
    elif node.args[1] == "shape":
        source: Any = node.args[0]
        _sizes(fold, node, source, fold.rep(source))
    else:
        raise Unfoldable("nothing is known about what it keeps")
    raise Replaced


def _sizes(fold: "Folding", node: fx.Node, source: fx.Node, rep: Rep) -> None:
    for user in node.users:
        alone = user.target is operator.getitem and isinstance(user.args[1], int)
        if not alone or from_end(fold, source, node, user.args[1]) == rep.layout.axis:  # type: ignore[arg-type]
            raise Unfoldable("it asks for the length of what repeats")
    _replace(fold, node, fold.graph.call_method, "size", (rep.node,))


def _replace(fold: "Folding", node: fx.Node, make: Any, target: Any, args: Any) -> None:
    with fold.graph.inserting_before(node):
        fresh = make(target, args)
    node.replace_all_uses_with(fresh)


FUNCTIONS: dict[Any, Any] = {
    torch.flatten: flatten, torch.reshape: view, torch.transpose: transpose,
    torch.swapaxes: transpose, torch.permute: permute, torch.unsqueeze: unsqueeze,
    operator.getitem: item, getattr: shape,
}  # fmt: skip
METHODS: dict[str, Any] = {
    "flatten": flatten, "view": view, "reshape": view, "transpose": transpose,
    "swapaxes": transpose, "permute": permute, "unsqueeze": unsqueeze, "size": size, "dim": size,
}  # fmt: skip
MODULES: dict[type[nn.Module], Any] = {nn.Flatten: flatten}
