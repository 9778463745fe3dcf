"""How weight layers read units and make new ones."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from biofx.passes.context import WeightLayer
from biofx.passes.units.flow import Source
from biofx.passes.units.ids import DATA, Ids, full
from biofx.passes.units.recurrent import recurrent
from biofx.passes.units.step import Step, UnknownShape, shape_of
from biofx.synapses import Axes


def call_layer(step: Step, layer: WeightLayer, args: Sequence[Any], kwargs: dict[str, Any]) -> Ids:
    """A weight layer of the registry: it reads what comes in and makes units of its own."""
    module, axes = layer.module, layer.axes[0]
    if isinstance(module, nn.MultiheadAttention):
        return attention(step, layer, args, kwargs)
    if isinstance(module, nn.RNNBase | nn.RNNCellBase):
        return recurrent(step, layer, args, kwargs)
    if computed(module, axes):
        step.flow.lose(
            [step.ids(node) for node in step.node.all_input_nodes],
            f"{layer.name}, which reads them, computes its weight",
        )
        source = step.flow.source(layer.name, _units(module, axes))
        step.flow.note(source.ids, "the layer computes its weight")
        return _made(step, source, axes.units)
    if axes.kind == "bilinear":
        weight, bias = _names(step, layer, axes)
        held = module.get_parameter(axes.parameter)
        for axis, value in ((1, args[0]), (2, args[1])):
            _read(step, layer.name, weight, axis, step.ids(value), -1, held.shape[axis], bias)
        return _made(step, _claimed(step, layer, axes, weight, bias), -1)
    inputs = [*args, *kwargs.values()]
    if not inputs:
        return step.unknown()
    value = step.ids(inputs[0])
    weight, bias = _names(step, layer, axes)
    if axes.kind == "embedding":
        step.flow.lose(value, f"{layer.name} takes them as indices")
    elif axes.units is None or not _is_known(axes.kind):
        step.flow.lose(value, f"it is not known along which axis {layer.name} reads them")
    else:
        apply(step, layer.name, weight, axes, value, bias)
    return _made(step, _claimed(step, layer, axes, weight, bias), axes.units)


def _is_known(kind: str) -> bool:
    return kind == "linear" or kind.startswith("conv")


def computed(module: nn.Module, axes: Axes) -> bool:
    """Whether a layer's weight is made of other parameters at each call."""
    name = axes.parameter
    if "." in name:
        return True
    return any(
        name.endswith(suffix) and name.removesuffix(suffix) not in module._parameters
        and hasattr(module, name.removesuffix(suffix))
        for suffix in ("_orig", "_v")
    )  # fmt: skip


def _units(module: nn.Module, axes: Axes) -> int:
    parameter = module.get_parameter(axes.parameter)
    groups = axes.groups if axes.kind.startswith("conv_transpose") else 1
    return parameter.shape[axes.post] * groups


def _names(step: Step, layer: WeightLayer, axes: Axes) -> tuple[str, str | None]:
    """Qualified names of a layer's weight and bias."""
    prefix = f"{layer.name}." if layer.name else ""
    weight = layer.module.get_parameter(axes.parameter)
    bias = layer.module._parameters.get("bias")
    units = _units(layer.module, axes)
    known = bias is not None and tuple(bias.shape) == (units,)
    return (
        step.names.of(weight, prefix + axes.parameter),
        step.names.of(bias, f"{prefix}bias") if known and bias is not None else None,
    )


def _claimed(step: Step, layer: WeightLayer, axes: Axes, weight: str, bias: str | None) -> Source:
    """The units of a layer, with its weight's and bias's entries."""
    module = layer.module
    source = step.flow.source(layer.name, _units(module, axes))
    held = module.get_parameter(axes.parameter)
    if axes.kind.startswith("conv_transpose") and axes.groups > 1:
        step.flow.note(source.ids, "a grouped transposed convolution shares rows between units")
    else:
        step.flow.claim("incoming", layer.name, weight, axes.post % held.dim(), source.ids)
    if bias is not None:
        step.flow.claim("bias", layer.name, bias, 0, source.ids)
    return source


def _made(step: Step, source: Source, axis: int | None) -> Ids:
    """The output of a layer, whose units lie along an axis."""
    if axis is None:
        step.flow.note(source.ids, "it is not known on which axis of its output the units lie")
        return DATA
    shape = step.shape()
    if shape[axis] != source.size:
        step.flow.note(source.ids, "its output has another shape than its weights say")
        return DATA
    lines = [1] * len(shape)
    lines[axis] = source.size
    return source.ids.reshape(lines).expand(shape)


def _read(
    step: Step, layer: str, weight: str, axis: int, value: Ids, along: int, size: int,
    bias: str | None,
) -> None:  # fmt: skip
    if not isinstance(value, Tensor):
        step.flow.claim("read", layer, weight, axis, full(value, (size,)), bias)
        return
    if value.shape[along] != size:
        step.flow.lose(value, f"{step.what} reads them in another shape than its weights say")
        return
    column = step.flow.columns(value, along, size, step.what)
    step.flow.claim("read", layer, weight, axis, column, bias)


def apply(step: Step, layer: str, weight: str, axes: Axes, value: Ids, bias: str | None) -> None:
    """A linear layer or convolution reads units."""
    held = step.root.get_parameter(weight)
    along = axes.units if axes.units is not None else -1
    post, pre = axes.post % held.dim(), axes.pre % held.dim()
    inputs = held.shape[pre]
    if axes.groups == 1 or axes.kind.startswith("conv_transpose"):
        _read(step, layer, weight, pre, value, along, inputs, bias)
    elif inputs == 1:  # each unit has rows of its own
        column = step.flow.columns(value, along, axes.groups, step.what)
        rows = column.repeat_interleave(held.shape[post] // axes.groups)
        step.flow.claim("read", layer, weight, post, rows, bias)
    else:
        step.flow.lose(value, f"{layer}, which reads them, is a grouped convolution")


# --- attention ----------------------------------------------------------------------------------


def attention(step: Step, layer: WeightLayer, args: Sequence[Any], kwargs: dict[str, Any]) -> Ids:
    """`nn.MultiheadAttention`: blocks q, k and v, and the units of the output projection."""
    module: Any = layer.module
    given = dict(zip(("query", "key", "value"), args, strict=False)) | kwargs
    parts = {part: given[name] for part, name in zip("qkv", ("query", "key", "value"), strict=True)}
    size, prefix = module.embed_dim, f"{layer.name}." if layer.name else ""
    bias = module.in_proj_bias
    bias_name = step.names.of(bias, prefix + "in_proj_bias") if bias is not None else None
    packed = module.in_proj_weight is not None
    reading = [step.ids(node) for node in parts.values()]
    alike = all(_same(reading[0], value) for value in reading[1:])
    sources: dict[str, Source] = {}
    for place, part in enumerate("qkv"):
        source = sources[part] = step.flow.source(layer.name, size, part)
        held = module.in_proj_weight if packed else getattr(module, f"{part}_proj_weight")
        name = "in_proj_weight" if packed else f"{part}_proj_weight"
        name = step.names.of(held, prefix + name)
        start = place * size
        value = reading[place]
        if not packed or (alike and place == 0):
            _read(step, layer.name, name, 1, value, -1, held.shape[1], bias_name)
        elif packed and not alike:
            step.flow.lose(value, f"{layer.name} reads several inputs with the same columns")
        _rows(step, "incoming", layer.name, name, source, start if packed else 0, held.shape[0])
        if bias_name is not None:
            _rows(step, "bias", layer.name, bias_name, source, start, 3 * size)
    step.flow.note(sources["q"].ids, f"{step.what} sums over queries times keys")
    step.flow.note(sources["k"].ids, f"{step.what} sums over queries times keys")
    heads = sources["v"].ids.reshape(module.num_heads, -1)
    for part in "qkv":  # heads are blocks
        step.flow.cut(
            sources[part].ids, sources[part].ids.reshape(heads.shape), f"heads of {layer.name}"
        )
    projection = f"{prefix}out_proj"
    out = module.out_proj
    out_bias = step.names.of(out.bias, f"{projection}.bias") if out.bias is not None else None
    weight = step.names.of(out.weight, f"{projection}.weight")
    step.flow.claim("read", projection, weight, 1, sources["v"].ids, out_bias)
    made = step.flow.source(projection, size)
    step.flow.claim("incoming", projection, weight, 0, made.ids)
    if out_bias is not None:
        step.flow.claim("bias", projection, out_bias, 0, made.ids)
    shape = shape_of(given["query"])
    if shape is None:
        raise UnknownShape
    return made.ids.expand(*shape[:-1], size), DATA


def _rows(
    step: Step, role: str, layer: str, name: str, source: Source, start: int, total: int
) -> None:
    ids = torch.zeros(total, dtype=torch.int64)
    ids[start : start + source.size] = source.ids
    step.flow.claim(role, layer, name, 0, ids)


def _same(a: Ids, b: Ids) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return (a.shape == b.shape and a is b) or torch.equal(a, b)
    return not isinstance(a, Tensor) and not isinstance(b, Tensor)
