"""Follows units through a graph, node by node."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from biofx.capture.memory import KEPT
from biofx.capture.writer import READ_BY_PYTHON, UNSEEN
from biofx.copying.template import rebuild
from biofx.passes.context import WeightLayer
from biofx.passes.units.flow import Flow
from biofx.passes.units.functional import FUNCTIONAL, call_functional
from biofx.passes.units.ids import CONSTANT, DATA, Ids, code, tensors
from biofx.passes.units.layers import call_layer
from biofx.passes.units.operations import OPERATIONS, SHAPE_ONLY
from biofx.passes.units.plain_layers import call_plain
from biofx.passes.units.step import Names, Step, UnknownShape, attribute, shape_of
from biofx.passes.views import bases, changed_by, sharing


def follow(
    root: nn.Module,
    graph: fx.Graph,
    weights: Mapping[str, WeightLayer],
    layer_of: Mapping[str, str],
) -> Flow:
    """The ids of every value of a recorded graph.

    Args:
        root: the model, for its modules and parameters.
        graph: flat, with the shapes of values in ``meta["tensor_meta"]``.
        weights: the weight layers, by name.
        layer_of: {target of a call_module node: name of the weight layer that it is}.
    """
    flow = Flow()
    owners: dict[int, str] = {}
    for layer in weights.values():
        for axes in layer.axes:
            prefix = f"{layer.name}." if layer.name else ""
            owners.setdefault(
                id(layer.module.get_parameter(axes.parameter)), prefix + axes.parameter
            )
    for name, parameter in root.named_parameters():  # biases and scales may be shared too
        owners.setdefault(id(parameter), name)
    names = Names(owners)
    last_use = {source: node for node in graph.nodes for source in node.all_input_nodes}
    for node in graph.nodes:
        step = Step(flow, root, names, node, name_of(node)[0])
        flow.values[node] = _visit(step, weights, layer_of, last_use)
        _note_weights(step)
        _note_written(step)
        if READ_BY_PYTHON in node.meta:
            flow.note(flow.values[node], "Python reads their values")
            flow.use(flow.weights.get(node, ()), "Python reads their weights")
        for value in list(flow.values.values()) if UNSEEN in node.meta else ():
            flow.note(value, "something that was not seen may read them")
        if KEPT in node.meta:
            _keep(step, node.meta[KEPT])
    flow.settle_uses()
    return flow


def _note_weights(step: Step) -> None:
    """Keep in mind of which weights a constant is made; say where they meet anything else."""
    flow, node = step.flow, step.node
    if node.op == "get_attr":
        held = attribute(step.root, str(node.target))
        if isinstance(held, Tensor):
            flow.weights[node] = frozenset({step.names.of(held, str(node.target))})
        return
    names, result = step.weights(), flow.values[node]
    if node.op == "output":
        flow.use(names, "their weights are a result of the model")
    elif names and code(result) == CONSTANT and not tensors(result):
        flow.weights[node] = names
    else:
        flow.use(names, f"{step.what} uses their weights too")


def _visit(
    step: Step, weights: Mapping[str, WeightLayer], layer_of: Mapping[str, str],
    last_use: Mapping[fx.Node, fx.Node],
) -> Ids:  # fmt: skip
    flow, node = step.flow, step.node
    if node.op == "placeholder":
        return DATA
    if node.op == "get_attr":
        return CONSTANT
    if node.op == "output":
        return flow.lose(
            [flow.values[n] for n in node.all_input_nodes], "they are a result of the model"
        )
    values = [flow.values[n] for n in node.all_input_nodes]
    if node.target is rebuild:
        return tuple(values)
    name, known = name_of(node)
    if name in SHAPE_ONLY and known:
        step.take_shapes(SHAPE_ONLY[name])
    try:
        if node.op == "call_module":
            target = str(node.target)
            if target in layer_of:
                step.what = f"{target or 'the model'}"
                return step.finish(
                    call_layer(step, weights[layer_of[target]], node.args, dict(node.kwargs))
                )
            if not any(map(tensors, values)):
                return max(map(code, values), default=DATA)
            step.what = f"{step.name} ({target})"
            module = step.root.get_submodule(target)
            return step.finish(call_plain(step, module, node.args, dict(node.kwargs)))
        if name in FUNCTIONAL and known:
            made = call_functional(step, weights)
            if made is not None:
                return step.finish(made)
        if not any(map(tensors, values)):
            if name == "getitem" and isinstance(values[0], tuple | dict):
                return OPERATIONS["getitem"](step, *node.args)
            used = (flow.values[n] for n in node.all_input_nodes if n not in step.taken)
            return max(map(code, used), default=CONSTANT)
        function = OPERATIONS.get(name) if known else None
        if function is None:
            return step.unknown()
        changed = changed_by(node)
        given = {key: value for key, value in node.kwargs.items() if key != "out"}
        result = step.finish(function(step, *node.args, **given))
        if changed is not None:
            return _write(step, changed, result, last_use)
        return _checked(step, result)
    except (
        UnknownShape,
        TypeError,
        ValueError,
        RuntimeError,
        IndexError,
        AttributeError,
        KeyError,
    ):
        return step.unknown()


def _checked(step: Step, result: Ids) -> Ids:
    """A result whose shape is that of the value."""
    if isinstance(result, Tensor):
        shape = shape_of(step.node)
        if shape is not None and shape != result.shape:
            return step.unknown()
    return result


def name_of(node: fx.Node) -> tuple[str, bool]:
    """An operation's name, without the mark of changing its argument; whether it is torch's."""
    target: Any = node.target
    if node.op == "call_module":
        return str(target), True
    if node.op == "call_method":
        name = str(target)
        if name == "unfold":
            name = "unfold_method"
        return _bare(name), True
    schema = getattr(target, "_schema", None)
    if isinstance(target, torch._ops.OpOverload | torch._ops.OpOverloadPacket):
        text = str(schema.name if schema is not None else target._qualified_op_name)  # type: ignore[union-attr]
        space, _, name = text.partition("::")
        return _bare(name), space in ("aten", "prims")
    name = str(getattr(target, "__name__", target))
    place = str(getattr(target, "__module__", None) or "torch")
    if name == "unfold":
        name = "unfold_windows"
    return _bare(name), place.partition(".")[0] in ("torch", "_operator", "builtins", "math")


def _bare(name: str) -> str:
    return name.removesuffix("_") if name.endswith("_") and not name.endswith("__") else name


# --- what is changed in place -------------------------------------------------------------------


def _write(step: Step, changed: fx.Node, result: Ids, last_use: Mapping[fx.Node, fx.Node]) -> Ids:
    """An operation has put `result` where the value of a node was."""
    flow, before = step.flow, step.flow.values[changed]
    same = isinstance(before, Tensor) and isinstance(result, Tensor) and torch.equal(before, result)
    if same:
        return result
    if any(other < step.node < last_use.get(other, other) for other in sharing(changed)):
        flow.note([before, result], f"{step.what} writes into a tensor that is also seen elsewhere")
    flow.values[changed] = result
    return result


def _note_written(step: Step) -> None:
    """What shares memory with a constant that was written into is no constant any more."""
    flow, changed = step.flow, changed_by(step.node)
    if changed is None:
        return
    result, names = flow.values[step.node], flow.weights.get(step.node, frozenset())
    *_, first = bases(changed)
    if first.op == "get_attr":
        _keep(step, str(first.target), flow.weights.get(first, frozenset()))
    kept = code(result) == CONSTANT and not tensors(result)
    for other in (changed, *sharing(changed)):
        if not kept and not tensors(flow.values.get(other)):
            flow.values[other] = DATA
        if names:
            flow.weights[other] = flow.weights.get(other, frozenset()) | names


def _keep(step: Step, name: str, own: frozenset[str] = frozenset()) -> None:
    """The model keeps the value of a node, for a later call or for whoever reads it there."""
    flow, node = step.flow, step.node
    flow.note(flow.values[node], f"the model keeps them in {name}")
    made = flow.weights.get(node, frozenset())
    flow.use(made - own, f"the model keeps what their weights make in {name}")
