"""Parameters used as weights without a layer: `F.linear(x, self.w)`, `x @ self.w`."""

from collections.abc import Mapping
from typing import Any

from torch import fx

from biofx.passes.context import WeightLayer
from biofx.passes.units.ids import Ids
from biofx.passes.units.layers import apply
from biofx.passes.units.step import Step
from biofx.synapses import Axes

# Where a function takes its input, weight and bias. See `_axes_of_use` too.
FUNCTIONAL: dict[str, tuple[int, int, int | None]] = {
    "linear": (0, 1, 2), "conv1d": (0, 1, 2), "conv2d": (0, 1, 2), "conv3d": (0, 1, 2),
    "conv_transpose1d": (0, 1, 2), "conv_transpose2d": (0, 1, 2), "conv_transpose3d": (0, 1, 2),
    "matmul": (0, 1, None), "mm": (0, 1, None), "addmm": (1, 2, 0), "embedding": (0, 1, None),
}  # fmt: skip
_NAMES = ("input", "weight", "bias")


def call_functional(step: Step, weights: Mapping[str, WeightLayer]) -> Ids | None:
    """A function over a weight of the model reads units and makes new ones; None if it does not."""
    node = step.node
    given = []
    for name, place in zip(_NAMES, FUNCTIONAL[step.name], strict=True):
        inside = place is not None and place < len(node.args)
        given.append(node.args[place] if inside and place is not None else node.kwargs.get(name))
    value, weight, bias = given
    turned = _turned(weight)
    found = step.parameter(turned or weight)
    layer_axes = _axes(weights, found[0]) if found is not None else None
    if found is None or layer_axes is None:
        return None
    layer, axes = layer_axes
    name, held = found
    assert isinstance(weight, fx.Node)  # as it was found
    if held.dim() != 2 and not step.name.startswith("conv"):
        return None
    if axes.groups > 1:
        return None
    bias_found = step.parameter(bias)
    bias_name = bias_found[0] if bias_found is not None else None
    shape = step.shape()
    along = 1 - len(shape) if step.name.startswith("conv") else -1
    if step.name.startswith("conv"):
        along = -(held.dim() - 1)
    if (axes.pre % held.dim(), axes.post % held.dim()) != _axes_of_use(step.name, turned):
        why = f"{step.what} reads them with the weights of {layer} turned round"
        return step.flow.lose(step.ids(value), why)
    step.claimed.add(weight)
    axes = Axes(axes.parameter, _kind(axes.kind), axes.post, axes.pre, units=along)
    if step.name == "embedding":
        step.flow.lose(step.ids(value), f"{layer} takes them as indices")
    else:
        apply(step, layer, name, axes, step.ids(value), bias_name)
    source = step.flow.source(layer, held.shape[axes.post], _block(weights[layer], axes))
    step.flow.claim("incoming", layer, name, axes.post % held.dim(), source.ids)
    if bias_name is not None and isinstance(bias, fx.Node):
        step.flow.claim("bias", layer, bias_name, 0, source.ids)
        step.claimed.add(bias)
    if shape[along] != source.size:
        return step.flow.lose(source.ids, "its output has another shape than its weights say")
    lines = [1] * len(shape)
    lines[along] = source.size
    return source.ids.reshape(lines).expand(shape)


def _axes_of_use(name: str, turned: fx.Node | None) -> tuple[int, int]:
    """Over which axis of a weight a function sums, and which one its result has."""
    first = name == "linear" or (name.startswith("conv") and "transpose" not in name)
    return (1, 0) if first != (turned is not None) else (0, 1)


def _turned(value: Any) -> fx.Node | None:
    """What a matrix is the transpose of."""
    if not isinstance(value, fx.Node) or not value.args:
        return None
    by_attribute = value.target is getattr and value.args[1] in ("T", "mT")
    by_call = value.target == "t" or str(getattr(value.target, "__name__", "")) == "t"
    swapped = value.target in ("transpose",) and set(value.args[1:]) in ({0, 1}, {-1, -2})
    inner = value.args[0]
    return inner if (by_attribute or by_call or swapped) and isinstance(inner, fx.Node) else None


def _axes(weights: Mapping[str, WeightLayer], name: str) -> tuple[str, Axes] | None:
    owner, _, parameter = name.rpartition(".")
    layer = weights.get(owner)
    axes = next((a for a in layer.axes if a.parameter == parameter), None) if layer else None
    return (owner, axes) if axes is not None else None


def _block(layer: WeightLayer, axes: Axes) -> str:
    return axes.parameter if len(layer.axes) > 1 else ""


def _kind(kind: str) -> str:
    return "linear" if kind in ("matmul", "einsum") else kind
