"""Folding: weight layers, which take each repeated value once."""

from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

from biofx.export.folding.analysis import Analysis, Edit
from biofx.export.folding.layout import Layout, Rep, Unfoldable, equal_units


def class_key(target: Any) -> Any:
    """A class of a package that may not be installed, by its name."""
    if isinstance(target, type) and target.__module__ == "transformers.pytorch_utils":
        return f"{target.__module__}.{target.__qualname__}"
    return target


SPATIAL: dict[Any, int] = {
    nn.Conv1d: 1, nn.Conv2d: 2, nn.Conv3d: 3, torch.conv1d: 1, torch.conv2d: 2, torch.conv3d: 3,
    nn.ConvTranspose1d: 1, nn.ConvTranspose2d: 2, nn.ConvTranspose3d: 3,
    nn.Linear: 0, F.linear: 0, "transformers.pytorch_utils.Conv1D": 0,
}  # fmt: skip
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
# Modules whose weight is (inputs, outputs).
_INPUTS_FIRST = (*TRANSPOSED, "transformers.pytorch_utils.Conv1D")
WEIGHT_FUNCTIONS = (F.linear, torch.conv1d, torch.conv2d, torch.conv3d)


def columns(analysis: Analysis, node: fx.Node, kind: type[nn.Module]) -> int | None:
    """Let a weight layer take each value once; gives the likely rank of its result.

    Raises:
        Unfoldable: its inputs repeat, and it cannot.
    """
    spatial = SPATIAL.get(class_key(kind))
    source: Any = node.args[0] if node.args else None
    rep = analysis.reps.get(source)
    rank = spatial + 2 if spatial else rep.rank if rep is not None else None
    if not analysis.repeats(node):
        analysis.use(node, None, None)
        return rank
    weight = analysis.module(node).weight
    rep = analysis.rep(source)
    if spatial is None:
        raise Unfoldable("nothing is known about what it keeps")
    groups = getattr(analysis.layers[str(node.target)], "groups", 1)
    axis = 0 if class_key(kind) in _INPUTS_FIRST else 1
    inputs = weight.shape[axis] * (1 if kind in TRANSPOSED else groups)
    _check_columns(rep.layout, spatial, inputs, groups)
    layout = rep.layout
    if groups > 1 and kind not in TRANSPOSED:  # each group of filters sees its share of the inputs
        assert layout.copies is not None
        layout = Layout(layout.axis, ((weight.shape[1] // layout.copies, layout.copies),))
    analysis.use(node, Edit("columns", layout, axis), rep, absorbs=True)
    return rank


def _check_columns(layout: Layout, spatial: int, inputs: int, groups: int) -> None:
    if layout.axis != -spatial - 1:
        raise Unfoldable("its inputs run along another axis than what repeats")
    if inputs % layout.full or (not layout.spread and inputs != layout.full):
        raise Unfoldable(f"it has {inputs} inputs, and {layout.full} units feed it")
    if groups > 1 and (layout.copies is None or layout.spread or inputs // groups % layout.copies):
        raise Unfoldable("its groups of channels are not those that repeat")


def layer(analysis: Analysis, node: fx.Node) -> Rep | None:
    """`nn.Linear`, `nn.Conv2d` and the like."""
    module: Any = analysis.modules[str(node.target)]
    kind = type(module)
    spatial = SPATIAL[class_key(kind)]
    groups = getattr(module, "groups", 1)
    first = class_key(kind) in _INPUTS_FIRST
    units = module.weight.shape[1] * groups if first else module.weight.shape[0]
    source: Any = node.args[0] if node.args else None
    rep = analysis.reps.get(source)
    if groups > 1 and groups == units and rep is not None and rep.layout.repeats:
        found = _depthwise(analysis, node, module, rep, spatial)
        if found is not None:
            return found
    rank = columns(analysis, node, kind)
    return Rep(Layout(-spatial - 1, ((units, 1),)), rank)


def _depthwise(
    analysis: Analysis, node: fx.Node, module: Any, rep: Rep, spatial: int
) -> Rep | None:
    """Each channel for itself: what repeated goes on repeating, if the filters are equal."""
    layout = rep.layout
    if type(module) in TRANSPOSED or module.weight.shape[1] != 1 or layout.axis != -spatial - 1:
        return None
    tensors = [t for t in (module.weight, module.bias) if t is not None]
    if layout.spread or any(equal_units(t, layout) is None for t in tensors):
        raise Unfoldable("it treats each channel apart, and its weights differ inside a group")
    analysis.use(node, Edit("units", layout), rep)
    return rep


def function(analysis: Analysis, node: fx.Node) -> Rep | None:
    """`F.linear`, `torch.conv2d` and the like, on parameters."""
    names = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
    given: dict[str, Any] = dict(zip(names, node.args, strict=False)) | dict(node.kwargs)
    weight, bias = analysis.parameter(given["weight"]), given.get("bias")
    if weight is None or (bias is not None and analysis.parameter(bias) is None):
        if analysis.repeats(node):
            raise Unfoldable("its weight is computed")
        return None
    spatial = SPATIAL[node.target]
    rep = analysis.reps.get(given["input"])
    if rep is not None and rep.layout.repeats:
        _check_columns(rep.layout, spatial, weight.shape[1], given.get("groups", 1))
        if given.get("groups", 1) != 1:
            raise Unfoldable("its groups of channels are not those that repeat")
        analysis.use(given["weight"], Edit("columns", rep.layout, 1), rep, absorbs=True)
    else:
        analysis.use(given["weight"], None, None)
    rank = spatial + 2 if spatial else rep.rank if rep is not None else None
    return Rep(Layout(-spatial - 1, ((weight.shape[0], 1),)), rank)
