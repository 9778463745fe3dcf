"""Fold rules: pooling, padding, resizing and means over axes that do not repeat; concatenation."""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import fx, nn
from torch.nn import functional as F

from biofx.passes.folding.layout import Layout, Rep, Unfoldable

if TYPE_CHECKING:
    from biofx.passes.folding.graph import Folding

_KINDS = ("MaxPool", "AvgPool", "AdaptiveAvgPool", "AdaptiveMaxPool", "LPPool", "ConstantPad",
          "ZeroPad", "ReflectionPad", "ReplicationPad", "CircularPad")  # fmt: skip
_POOLS: dict[Any, int] = {
    getattr(nn, f"{kind}{d}d"): d
    for kind in _KINDS
    for d in (1, 2, 3)
    if hasattr(nn, f"{kind}{d}d")
}
_POOL_FUNCTIONS: dict[Any, int] = {
    getattr(home, name): d
    for d in (1, 2, 3)
    for home in (torch, F)
    for kind in ("max_pool", "avg_pool", "adaptive_avg_pool", "adaptive_max_pool", "lp_pool")
    for name in (f"{kind}{d}d", f"_{kind}{d}d")
    if hasattr(home, name)
}


def pool(fold: "Folding", node: fx.Node) -> Rep:
    """Anything that works on the last one, two or three axes."""
    rep = fold.rep(node.args[0])
    if node.op == "call_module":
        module = fold.submodules[str(node.target)]
        dims, indices = _POOLS[type(module)], getattr(module, "return_indices", False)
    else:
        dims, indices = _POOL_FUNCTIONS[node.target], node.kwargs.get("return_indices", False)
        if "with_indices" in getattr(node.target, "__name__", ""):
            indices = True
    if indices or any(arg is True for arg in node.args[6:]):
        raise Unfoldable("it returns indices too")
    if rep.layout.axis >= -dims:
        raise Unfoldable("it mixes what repeats")
    return fold.build(node, rep.layout, rank=rep.rank, likely=rep.likely)


def pad(fold: "Folding", node: fx.Node) -> Rep:
    """`F.pad` of axes that do not repeat."""
    rep = fold.rep(node.args[0])
    widths = node.args[1] if len(node.args) > 1 else node.kwargs.get("pad")
    if not isinstance(widths, list | tuple) or rep.layout.axis >= -(len(widths) // 2):
        raise Unfoldable("it pads what repeats")
    return fold.build(node, rep.layout, rank=rep.rank, likely=rep.likely)


def resize(fold: "Folding", node: fx.Node) -> Rep:
    """`nn.Upsample`, `F.interpolate`: all axes but the first two."""
    source = node.args[0]
    rep = fold.rep(source)
    if rep.layout.repeats:
        assert isinstance(source, fx.Node)
        rank = fold.rank_of(source, node, "which axes it resizes")
        if rep.layout.axis > 1 - rank:
            raise Unfoldable("it resizes what repeats")
    return fold.build(node, rep.layout, rank=rep.rank, likely=rep.likely)


def reduce(fold: "Folding", node: fx.Node) -> Rep:
    """Means, sums and extremes over other axes than the one that repeats."""
    source = node.args[0]
    rep = fold.rep(source)
    dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    keep = node.args[2] if len(node.args) > 2 else node.kwargs.get("keepdim", False)
    dims = [dim] if isinstance(dim, int) else dim
    if not isinstance(dims, list | tuple) or not all(isinstance(d, int) for d in dims):
        raise Unfoldable("it runs over what repeats")
    axes = [from_end(fold, source, node, d) for d in dims]
    axis = rep.layout.axis
    if axis in axes:
        raise Unfoldable("it runs over what repeats")
    if keep:
        return fold.build(node, rep.layout, rank=rep.rank, likely=rep.likely)
    layout = replace(rep.layout, axis=axis + sum(a > axis for a in axes))
    rep = fold.rep(source)
    rank = rep.rank - len(axes) if rep.rank else None
    likely = rep.likely - len(axes) if rep.likely else None
    return fold.build(node, layout, rank=rank, likely=likely)


def softmax(fold: "Folding", node: fx.Node) -> Rep:
    """Softmax along another axis than the one that repeats."""
    rep = fold.rep(node.args[0])
    dim: Any = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    if node.op == "call_module":
        dim = fold.submodules[str(node.target)].dim
    if not isinstance(dim, int) or from_end(fold, node.args[0], node, dim) == rep.layout.axis:
        raise Unfoldable("it runs over what repeats")
    return fold.build(node, rep.layout, rank=rep.rank, likely=rep.likely)


def cat(fold: "Folding", node: fx.Node) -> Rep:
    """Concatenation: along the repeating axis, layouts join; along another, they must agree."""
    parts = node.args[0] if node.args else node.kwargs.get("tensors")
    dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
    if not isinstance(parts, list | tuple) or not parts or not isinstance(dim, int):
        raise Unfoldable("it is called in an unusual way")
    layouts = [fold.rep(part).layout for part in parts]
    axes = {layout.axis for layout in layouts}
    if len(axes) != 1:
        raise Unfoldable("its operands repeat along different axes")
    axis = axes.pop()
    for part in parts:  # all have one rank
        if fold.rep(part).layout.repeats:
            position = from_end(fold, part, node, dim)
            break
    else:
        position = dim
    if position == axis:
        if any(layout.spread for layout in layouts):
            raise Unfoldable("it joins flattened channels")
        layout = Layout.joined(axis, layouts)
    elif len(set(layouts)) == 1:
        layout = layouts[0]
    else:
        raise Unfoldable("its operands repeat differently")
    ranks = [rank for part in parts if (rank := fold.rep(part).rank) is not None]
    likely = [rank for part in parts if (rank := fold.rep(part).likely) is not None]
    return fold.build(
        node,
        layout,
        rank=min(ranks, default=None),
        likely=min(likely, default=None),
    )


def from_end(fold: "Folding", source: Any, node: fx.Node, dim: int) -> int:
    """A dimension counted from the end; asks for the rank only if it must."""
    if dim < 0:
        return dim
    return dim - fold.rank_of(source, node, f"which axis {dim} is")


FUNCTIONS: dict[Any, Any] = dict.fromkeys(_POOL_FUNCTIONS, pool) | {
    F.pad: pad, F.interpolate: resize,
    torch.mean: reduce, torch.sum: reduce, torch.amax: reduce, torch.amin: reduce,
    torch.softmax: softmax, F.softmax: softmax, torch.log_softmax: softmax, F.log_softmax: softmax,
    torch.cat: cat, torch.concat: cat, torch.concatenate: cat,
}  # fmt: skip
METHODS: dict[str, Any] = {
    "mean": reduce, "sum": reduce, "amax": reduce, "amin": reduce,
    "softmax": softmax, "log_softmax": softmax,
}  # fmt: skip
MODULES: dict[type[nn.Module], Any] = dict.fromkeys(_POOLS, pool) | {
    nn.Upsample: resize, nn.UpsamplingBilinear2d: resize, nn.UpsamplingNearest2d: resize,
    nn.Softmax: softmax, nn.LogSoftmax: softmax,
}  # fmt: skip
