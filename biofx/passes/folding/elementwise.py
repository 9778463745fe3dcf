"""Fold rules: functions of each element alone, sums and products of values that repeat alike."""

import copy
import operator
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import fx, nn
from torch.nn import functional as F

from biofx.capture import inplace
from biofx.passes.expansion import group_repeat, group_sum
from biofx.passes.folding.layout import Layout, Rep, Unfoldable, equal_units
from biofx.passes.numbers import is_number

if TYPE_CHECKING:
    from biofx.passes.folding.graph import Folding

_UNARY = (
    "relu", "relu6", "leaky_relu", "elu", "selu", "celu", "gelu", "silu", "mish", "hardswish",
    "hardsigmoid", "hardtanh", "softplus", "sigmoid", "tanh", "logsigmoid", "softsign",
    "tanhshrink", "softshrink", "hardshrink", "threshold", "sqrt", "rsqrt", "exp", "exp2",
    "expm1", "log", "log1p", "log2", "log10", "sin", "cos", "tan", "sinh", "cosh", "asin",
    "acos", "atan", "erf", "square", "reciprocal", "neg", "abs", "sign", "floor", "ceil",
    "round", "trunc", "nan_to_num", "clamp", "clamp_min", "clamp_max", "clip", "to", "float",
    "half", "double", "bfloat16", "contiguous", "clone", "detach", "logit", "sgn"
)  # fmt: skip
_BINARY = (
    "add", "sub", "mul", "div", "true_divide", "pow", "maximum", "minimum", "where", "eq", "ne",
    "lt", "le", "gt", "ge", "masked_fill", "lerp", "addcmul", "clamp", "clamp_min", "clamp_max",
    "clip", "type_as", "fmod", "remainder", "atan2", "hypot"
)  # fmt: skip
_OPERATORS = (
    "add", "sub", "mul", "truediv", "pow", "neg", "pos", "eq", "ne", "lt", "le", "gt", "ge",
    "and_", "or_", "xor", "invert", "mod"
)  # fmt: skip
_DROPOUT = (
    "dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout"
)  # fmt: skip
_ACTIVATIONS = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish,
    nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh, nn.Softplus, nn.Sigmoid, nn.Tanh, nn.LogSigmoid,
    nn.Softsign, nn.Tanhshrink, nn.Softshrink, nn.Hardshrink, nn.Threshold, nn.Identity,
    nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout,
)  # fmt: skip
_STATEMENTS: dict[Any, Any] = {
    inplace.iadd: operator.add, inplace.isub: operator.sub, inplace.imul: operator.mul,
    inplace.itruediv: operator.truediv,
}  # fmt: skip


def pointwise(fold: "Folding", node: fx.Node) -> Rep:
    """Any function that acts on each position alone: all operands must repeat alike."""
    if "out" in node.kwargs:
        raise Unfoldable("it writes into another value")
    operands = [n for n in node.all_input_nodes if not is_number(n)]
    reps = {n: fold.rep(n) for n in operands if fold.constant(n) is None}
    layouts = {rep.layout for rep in reps.values() if rep.layout.repeats}
    if len(layouts) > 1:
        raise Unfoldable("its operands repeat differently")
    if not layouts:
        return _plain(fold, node, list(reps.values()))
    layout = layouts.pop()
    args: Any = {}
    for operand in operands:
        if operand not in reps:
            args[operand] = _per_unit(fold, node, operand, layout)
        elif not reps[operand].layout.repeats:
            other = reps[operand].layout
            if other.axis != layout.axis or other.full != 1:
                raise Unfoldable("it meets a value that does not repeat")
    ranks = [rep.rank for rep in reps.values()]
    likely = [rep.likely for rep in reps.values()]
    rank = max(r for r in ranks if r) if all(ranks) else None
    guess = max((r for r in likely if r), default=None)

    def swap(arguments: Any) -> Any:
        arguments = fx.node.map_arg(arguments, lambda n: args.get(n, n))
        return fold.small(arguments)

    op, target, kwargs = node.op, node.target, dict(node.kwargs)
    kwargs.pop("inplace", None)
    # an `inplace` by position; the small value may have other names, so change a copy
    positional = tuple(False if arg is True else arg for arg in node.args)
    if target in _STATEMENTS:
        target = _STATEMENTS[target]
    elif op == "call_method" and str(target).endswith("_"):
        target = str(target)[:-1]
    return fold.build(
        node, layout, rank=rank, likely=guess, op=op, target=target,
        args=swap(positional), kwargs=swap(kwargs),
    )  # fmt: skip


def _plain(fold: "Folding", node: fx.Node, reps: list[Rep]) -> Rep:
    # broadcasting may change the number of units: only one operand, or all the same
    if len({rep.layout for rep in reps}) != 1:
        raise Unfoldable("nothing repeats")
    if any(fold.constant(n) is not None for n in node.all_input_nodes):
        raise Unfoldable("nothing repeats")
    rank = reps[0].rank if len(reps) == 1 else None
    return Rep(node, reps[0].layout, rank, reps[0].likely)


def _per_unit(fold: "Folding", node: fx.Node, operand: fx.Node, layout: Layout) -> fx.Node:
    """A parameter that meets a repeating value: a scale per channel, say."""
    value = fold.constant(operand)
    assert value is not None
    if value.dim() < -layout.axis or value.shape[layout.axis] == 1:
        return operand
    if layout.spread:
        raise Unfoldable("it meets a parameter with a value for every element")
    small = equal_units(value.movedim(layout.axis, 0), layout)
    if small is None:
        raise Unfoldable("its parameter differs inside a group")
    moved = small.movedim(0, layout.axis).contiguous()
    return fold.tensor(str(operand.target), moved, (layout,), node)


def activation(fold: "Folding", node: fx.Node) -> Rep:
    """A module that acts on each element alone."""
    if len(node.args) != 1 or node.kwargs:
        raise Unfoldable("it is called in an unusual way")
    rep = fold.rep(node.args[0])
    target = node.target
    module = fold.submodules[str(target)]
    if rep.layout.repeats and getattr(module, "inplace", False):
        module = copy.copy(module)
        module.inplace = False  # type: ignore[assignment]
        target = fold.hold(str(target), module, ("apart",))
    return fold.build(node, rep.layout, rank=rep.rank, likely=rep.likely, target=target)


def dropout(fold: "Folding", node: fx.Node) -> Rep:
    """Dropout as a function: nothing, if it is told not to train."""
    training = node.args[2] if len(node.args) > 2 else node.kwargs.get("training", True)
    if training is not False:
        raise Unfoldable("it draws random numbers")
    return pointwise(fold, node)


def repeat(fold: "Folding", node: fx.Node) -> Rep:
    """The repetition itself: where it all begins."""
    gamma: Any
    source, gamma, axis = node.args
    rep = fold.rep(source)
    if rep.layout.axis != axis or rep.layout.spread:
        raise Unfoldable("nothing is known about how many units it repeats")
    name = str(node.meta.get("biofx_path", ""))
    layout = rep.layout.repeated(gamma)
    return Rep(rep.node, layout, rep.rank, rep.likely, rep.origins | {name})


def total(fold: "Folding", node: fx.Node) -> Rep:
    """A sum over groups of units."""
    gamma: Any
    axis: Any
    source, gamma, axis = node.args
    rep = fold.rep(source)
    layout = rep.layout
    if layout.axis != axis or layout.spread or any(u * c % gamma for u, c in layout.runs):
        raise Unfoldable("its groups are not those that repeat")
    if not layout.repeats:
        return Rep(node, Layout(axis, ((layout.full // gamma, 1),)), rep.rank, rep.likely)
    if any(copies % gamma for _, copies in layout.runs):
        raise Unfoldable("its groups are not those that repeat")
    runs = tuple((units, copies // gamma) for units, copies in layout.runs)
    return fold.build(
        node, Layout(axis, runs), rank=rep.rank, likely=rep.likely,
        target=operator.mul, args=(rep.node, gamma), kwargs={},
    )  # fmt: skip


def _functions() -> dict[Callable[..., Any], Any]:
    table: dict[Callable[..., Any], Any] = {group_repeat: repeat, group_sum: total}
    for name in (*_UNARY, *_BINARY):
        for home in (torch, F):
            if hasattr(home, name):
                table[getattr(home, name)] = pointwise
    for name in _OPERATORS:
        table[getattr(operator, name)] = pointwise
    for statement in _STATEMENTS:
        table[statement] = pointwise
    for name in _DROPOUT:
        table[getattr(F, name)] = dropout
    return table


FUNCTIONS = _functions()
METHODS = dict.fromkeys((*_UNARY, *_BINARY), pointwise) | {
    f"{name}_": pointwise
    for name in ("relu", "add", "sub", "mul", "div", "sigmoid", "tanh", "clamp")
}
MODULES: dict[type[nn.Module], Any] = dict.fromkeys(_ACTIVATIONS, activation)
