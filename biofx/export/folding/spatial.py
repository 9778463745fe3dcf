"""Folding: pooling, padding, means over axes that do not repeat; concatenation."""

from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

from biofx.export.folding.analysis import Analysis
from biofx.export.folding.elementwise import unrepeated
from biofx.export.folding.layout import Layout, Rep, Unfoldable

_KINDS = ("MaxPool", "AvgPool", "AdaptiveAvgPool", "AdaptiveMaxPool", "LPPool", "ConstantPad",
          "ZeroPad", "ReflectionPad", "ReplicationPad", "CircularPad")  # fmt: skip
POOLS: dict[Any, int] = {
    getattr(nn, f"{kind}{d}d"): d
    for kind in _KINDS
    for d in (1, 2, 3)
    if hasattr(nn, f"{kind}{d}d")
} | {
    getattr(home, name): d
    for d in (1, 2, 3)
    for home in (torch, F)
    for kind in ("max_pool", "avg_pool", "adaptive_avg_pool", "adaptive_max_pool", "lp_pool")
    for name in (f"{kind}{d}d", f"_{kind}{d}d")
    if hasattr(home, name)
}  # fmt: skip


def pool(analysis: Analysis, node: fx.Node) -> Rep | None:
    """Anything that works on the last one, two or three axes."""
    if not analysis.repeats(node):
        return unrepeated(analysis, node)
    if node.op == "call_module":
        module = analysis.module(node)
        dims, indices = POOLS[type(module)], getattr(module, "return_indices", False)
    else:
        dims, indices = POOLS[node.target], node.kwargs.get("return_indices", False)
        indices = indices or "with_indices" in getattr(node.target, "__name__", "")
    if indices or any(arg is True for arg in node.args[6:]):
        raise Unfoldable("it returns indices too")
    rep = analysis.rep(node.args[0])
    if rep.layout.axis >= -dims:
        raise Unfoldable("it mixes what repeats")
    return rep


def pad(analysis: Analysis, node: fx.Node) -> Rep | None:
    """`F.pad` of axes that do not repeat."""
    if not analysis.repeats(node):
        return None
    widths = node.args[1] if len(node.args) > 1 else node.kwargs.get("pad")
    rep = analysis.rep(node.args[0])
    if not isinstance(widths, list | tuple) or rep.layout.axis >= -(len(widths) // 2):
        raise Unfoldable("it pads what repeats")
    return rep


def resize(analysis: Analysis, node: fx.Node) -> Rep | None:
    """`nn.Upsample`, `F.interpolate`: all axes but the first two."""
    if not analysis.repeats(node):
        return None
    rep = analysis.rep(node.args[0])
    if rep.layout.axis > 1 - analysis.rank_of(node.args[0], "which axes it resizes"):
        raise Unfoldable("it resizes what repeats")
    return rep


def reduce(analysis: Analysis, node: fx.Node) -> Rep | None:
    """Means, sums and extremes over other axes than the one that repeats."""
    if not analysis.repeats(node):
        return None
    source: Any = node.args[0]
    rep = analysis.rep(source)
    dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    keep = node.args[2] if len(node.args) > 2 else node.kwargs.get("keepdim", False)
    dims = [dim] if isinstance(dim, int) else dim
    if not isinstance(dims, list | tuple) or not all(isinstance(d, int) for d in dims):
        raise Unfoldable("it runs over what repeats")
    axes = [analysis.from_end(source, d) for d in dims]
    axis = rep.layout.axis
    if axis in axes:
        raise Unfoldable("it runs over what repeats")
    if keep:
        return rep
    rank = rep.rank - len(axes) if rep.rank else None
    return Rep(rep.layout.moved(axis + sum(a > axis for a in axes)), rank, rep.origins)


def softmax(analysis: Analysis, node: fx.Node) -> Rep | None:
    """Softmax along another axis than the one that repeats."""
    if not analysis.repeats(node):
        return None
    rep = analysis.rep(node.args[0])
    dim: Any = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    if node.op == "call_module":
        dim = analysis.module(node).dim
    if not isinstance(dim, int) or analysis.from_end(node.args[0], dim) == rep.layout.axis:
        raise Unfoldable("it runs over what repeats")
    return rep


def cat(analysis: Analysis, node: fx.Node) -> Rep | None:
    """Concatenation: along the repeating axis, layouts join; along another, they must agree."""
    parts = node.args[0] if node.args else node.kwargs.get("tensors")
    dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
    if not isinstance(parts, list | tuple) or not parts or not isinstance(dim, int):
        raise Unfoldable("it is called in an unusual way")
    if not analysis.repeats(node) and not all(part in analysis.reps for part in parts):
        return None
    reps = [analysis.rep(part) for part in parts]
    layouts = [rep.layout for rep in reps]
    ranks = [rep.rank for rep in reps if rep.rank]
    origins = frozenset().union(*(rep.origins for rep in reps))
    axis = layouts[0].axis
    if any(layout.axis != axis for layout in layouts):
        raise Unfoldable("its operands repeat along different axes")
    if dim >= 0 and not ranks:
        raise Unfoldable(f"which axis {dim} is depends on the number of dimensions")
    if (dim if dim < 0 else dim - ranks[0]) == axis:
        if any(layout.spread for layout in layouts):
            raise Unfoldable("it joins flattened channels")
        layout = Layout.joined(axis, layouts)
    elif len(set(layouts)) == 1:
        layout = layouts[0]
    else:
        raise Unfoldable("its operands repeat differently")
    return Rep(layout, min(ranks, default=None), origins)
