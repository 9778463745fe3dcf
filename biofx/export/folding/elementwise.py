"""Folding: functions of each element alone."""

import operator
from typing import Any

import torch
from torch import fx, nn

from biofx.export.folding.analysis import Analysis, Edit
from biofx.export.folding.layout import Rep, Unfoldable, equal_units

UNARY = (
    "relu", "relu6", "leaky_relu", "elu", "selu", "celu", "gelu", "silu", "mish", "hardswish",
    "hardsigmoid", "hardtanh", "softplus", "sigmoid", "tanh", "logsigmoid", "softsign",
    "tanhshrink", "softshrink", "hardshrink", "threshold", "sqrt", "rsqrt", "exp", "exp2",
    "expm1", "log", "log1p", "log2", "log10", "sin", "cos", "tan", "sinh", "cosh", "asin", "acos",
    "atan", "erf", "square", "reciprocal", "neg", "abs", "sign", "floor", "ceil", "round",
    "trunc", "nan_to_num", "clamp", "clamp_min", "clamp_max", "clip", "to", "float", "half",
    "double", "bfloat16", "contiguous", "clone", "detach", "as_subclass", "logit", "sgn",
)  # fmt: skip
BINARY = (
    "add", "sub", "mul", "div", "true_divide", "pow", "maximum", "minimum", "where", "eq", "ne",
    "lt", "le", "gt", "ge", "masked_fill", "lerp", "addcmul", "type_as", "fmod", "remainder",
    "atan2", "hypot",
)  # fmt: skip
OPERATORS = (
    "add", "sub", "mul", "truediv", "pow", "neg", "pos", "eq", "ne", "lt", "le", "gt", "ge",
    "and_", "or_", "xor", "invert", "mod",
)  # fmt: skip
DROPOUT = (
    "dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout",
)  # fmt: skip
ACTIVATIONS = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish,
    nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh, nn.Softplus, nn.Sigmoid, nn.Tanh, nn.LogSigmoid,
    nn.Softsign, nn.Tanhshrink, nn.Softshrink, nn.Hardshrink, nn.Threshold, nn.Identity,
    nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout,
)  # fmt: skip


def pointwise(analysis: Analysis, node: fx.Node) -> Rep | None:
    """Any function that acts on each position alone: all operands must repeat alike."""
    if not analysis.repeats(node):
        return unrepeated(analysis, node)
    if "out" in node.kwargs:
        raise Unfoldable("it writes into another value")
    operands = [n for n in node.all_input_nodes if not is_number(n)]
    reps = [analysis.rep(n) for n in operands if analysis.parameter(n) is None]
    layouts = {rep.layout for rep in reps if rep.layout.repeats}
    if len(layouts) > 1:
        raise Unfoldable("its operands repeat differently")
    layout = layouts.pop()
    origins = frozenset().union(*(rep.origins for rep in reps))
    ranks = [rep.rank for rep in reps]
    found = Rep(layout, max(filter(None, ranks), default=None), origins)
    for operand in operands:
        value = analysis.parameter(operand)
        if value is not None:
            _per_unit(analysis, operand, value, found)
            continue
        other = analysis.rep(operand).layout
        if not other.repeats and (other.axis != layout.axis or other.full != 1):
            raise Unfoldable("it meets a value that does not repeat")
    return found


def unrepeated(analysis: Analysis, node: fx.Node) -> Rep | None:
    # broadcasting may change the number of units: only where all operands are alike
    operands = node.all_input_nodes
    known = {analysis.reps[n] for n in operands if n in analysis.reps}
    return known.pop() if len(known) == 1 and all(n in analysis.reps for n in operands) else None


def is_number(node: fx.Node) -> bool:
    """Whether a node is a size."""
    if node.target is getattr:
        return node.args[1] in ("dtype", "device", "ndim")
    if node.target in ("size", "dim", "numel"):
        return len(node.args) > 1 or node.target != "size"
    return node.target is operator.getitem and is_shape(node.args[0])


def is_shape(node: Any) -> bool:
    return isinstance(node, fx.Node) and (
        (node.target == "size" and len(node.args) == 1)
        or (node.target is getattr and node.args[1] == "shape")
    )


def _per_unit(analysis: Analysis, operand: fx.Node, value: torch.Tensor, rep: Rep) -> None:
    """A parameter that meets a repeating value: a scale per channel, say."""
    layout = rep.layout
    if value.dim() < -layout.axis or value.shape[layout.axis] == 1:
        analysis.use(operand, None, None)
        return
    if layout.spread:
        raise Unfoldable("it meets a parameter with a value for every element")
    if equal_units(value, layout, layout.axis) is None:
        raise Unfoldable("its parameter differs inside a group")
    analysis.use(operand, Edit("units", layout, layout.axis), rep)


def activation(analysis: Analysis, node: fx.Node) -> Rep | None:
    """A module that acts on each element alone."""
    if not analysis.repeats(node):
        return unrepeated(analysis, node)
    analysis.module(node)
    return analysis.rep(node.args[0])


def dropout(analysis: Analysis, node: fx.Node) -> Rep | None:
    """Dropout as a function: nothing, if it is told not to train."""
    training = node.args[2] if len(node.args) > 2 else node.kwargs.get("training", True)
    if training is not False and analysis.repeats(node):
        raise Unfoldable("it draws random numbers")
    return pointwise(analysis, node)
