"""Units of recurrent layers: a hidden unit has a row in every gate."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from biofx.passes.context import WeightLayer
from biofx.passes.units.flow import Source
from biofx.passes.units.ids import DATA, Ids
from biofx.passes.units.step import Step, UnknownShape, shape_of


def recurrent(step: Step, layer: WeightLayer, args: Sequence[Any], kwargs: dict[str, Any]) -> Ids:
    """`nn.RNN`, `nn.LSTM`, `nn.GRU` and their cells.

    A block is one layer in one direction. Its units are read by its own recurrent weights and by
    the next layer; states that are given from outside are not followed.
    """
    module: Any = layer.module
    given = dict(zip(("input", "hx"), args, strict=False)) | kwargs
    ids = step.ids(given.get("input"))
    if given.get("hx") is not None:
        step.flow.lose(step.ids(given["hx"]), f"{step.what} takes them as its first state")
    if isinstance(module, nn.RNNCellBase):
        return _cell(step, layer, ids)
    shape = shape_of(given["input"])
    if shape is None:  # a packed sequence
        step.flow.unknown(ids, f"{step.what} on packed sequences")
        shape = torch.Size((1, 1, module.input_size))
        packed = True
    else:
        packed = False
    directions = ("", "_reverse") if module.bidirectional else ("",)
    names = [(place, end) for place in range(module.num_layers) for end in directions]
    several = len(names) > 1
    column = step.flow.columns(ids, -1, module.input_size, step.what)
    last: list[Source] = []
    hidden: list[Source] = []
    for place in range(module.num_layers):
        made = []
        for end in directions:
            block = f"l{place}{end}" if several else ""
            _read(step, layer, f"weight_ih_l{place}{end}", column, f"bias_ih_l{place}{end}")
            made.append(_direction(step, layer, f"_l{place}{end}", block))
        hidden += made
        last = made
        column = torch.cat([source.ids for source in made])
    if packed:
        for source in last:
            step.flow.note(source.ids, f"{step.what} on packed sequences")
        return DATA
    out = torch.cat([source.ids for source in last]).expand(*shape[:-1], -1)
    batch = shape[0 if module.batch_first else 1 : 1 if module.batch_first else 2]
    batch = batch if len(shape) == 3 else torch.Size(())
    state = torch.stack([source.ids for source in hidden])
    state = state.reshape(len(hidden), *[1] * len(batch), -1).expand(-1, *batch, -1)
    return (out, (state, state)) if isinstance(module, nn.LSTM) and not module.proj_size else (
        (out, (state, DATA)) if isinstance(module, nn.LSTM) else (out, state)
    )  # fmt: skip


def _cell(step: Step, layer: WeightLayer, ids: Ids) -> Ids:
    module: Any = layer.module
    column = step.flow.columns(ids, -1, module.input_size, step.what)
    _read(step, layer, "weight_ih", column, "bias_ih")
    source = _direction(step, layer, "", "")
    meta = step.node.meta.get("tensor_meta")
    if meta is None:
        raise UnknownShape
    shape = meta.shape if hasattr(meta, "shape") else meta[0].shape
    out = source.ids.expand(shape)
    return (out, out) if isinstance(module, nn.LSTMCell) else out


def _direction(step: Step, layer: WeightLayer, suffix: str, block: str) -> Source:
    """One layer in one direction: its units, and what reads them within it."""
    module: Any = layer.module
    size = module.hidden_size
    projected = getattr(module, "proj_size", 0)
    cells = f"{block}.cells" if block else "cells"
    source = step.flow.source(layer.name, size, cells if projected else block)
    for name, role in (
        ("weight_ih", "incoming"), ("weight_hh", "incoming"), ("bias_ih", "bias"),
        ("bias_hh", "bias"),
    ):  # fmt: skip
        held = module._parameters.get(name + suffix)
        if held is not None:  # a row of each gate
            rows = source.ids.repeat(held.shape[0] // size)
            step.flow.claim(role, layer.name, _name(step, layer, name + suffix), 0, rows)
    if projected:
        _read(step, layer, f"weight_hr{suffix}", source.ids, None)
        source = step.flow.source(layer.name, projected, block)
        name = _name(step, layer, f"weight_hr{suffix}")
        step.flow.claim("incoming", layer.name, name, 0, source.ids)
    _read(step, layer, f"weight_hh{suffix}", source.ids, f"bias_hh{suffix}")
    return source


def _name(step: Step, layer: WeightLayer, name: str) -> str:
    full = f"{layer.name}.{name}" if layer.name else name
    return step.names.of(layer.module._parameters[name], full)  # type: ignore[arg-type]


def _read(step: Step, layer: WeightLayer, name: str, column: Tensor, bias: str | None) -> None:
    own = bias is not None and layer.module._parameters.get(bias) is not None
    step.flow.claim(
        "read", layer.name, _name(step, layer, name), 1, column,
        _name(step, layer, bias) if own and bias is not None else None,
    )  # fmt: skip
