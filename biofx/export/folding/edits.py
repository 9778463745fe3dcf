"""Makes the changes that an analysis has found: smaller weights, norms and split layers."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from biofx.export.folding.analysis import Analysis, Edit
from biofx.export.folding.layout import equal_units, sum_columns
from biofx.export.folding.norms import PER_UNIT
from biofx.modules import graphs
from biofx.modules.graph_layer import PackedGraphLayer, layer_graph
from biofx.modules.lowering import group_repeat, group_sum
from biofx.modules.plain import graph_module, turn_into
from biofx.synapses import synapses_at


def apply(bio: nn.Module, model: nn.Module, found: Analysis, kept: Mapping[str, str]) -> None:
    """Change a plain model in place.

    Args:
        bio: the transformed model.
        model: a plain copy of it.
        found: what was found on such a copy.
        kept: the split layers whose results stay repeated.
    """
    with torch.no_grad():
        for name, use in found.uses.items():
            if name in found.split:
                continue
            if use.edit is not None and (name in found.modules):
                _change(model.get_submodule(name), use.edit)
            elif use.edit is not None:
                owner, _, parameter = name.rpartition(".")
                _change_parameter(model.get_submodule(owner), parameter, use.edit)
        changed = {
            model.get_submodule(name): _smaller(
                bio.get_submodule(name),
                model.get_submodule(name),
                found.uses[name].edit,
                name in kept,
            )
            for name in found.split
            if not isinstance(bio.get_submodule(name), PackedGraphLayer)  # its sums are made
        }
    for module, made in changed.items():
        turn_into(module, made)


def _change(module: Any, edit: Edit) -> None:
    if edit.kind == "columns":
        full = module.weight.shape[edit.axis]
        weight = sum_columns(module.weight, edit.layout, edit.axis)
        module.weight = nn.Parameter(weight, requires_grad=module.weight.requires_grad)
        for name in ("in_features", "in_channels", "nx"):
            if hasattr(module, name):  # of a grouped convolution, the inputs of all groups
                setattr(module, name, getattr(module, name) * weight.shape[edit.axis] // full)
        return
    small = edit.layout.small
    for name in PER_UNIT:
        value = getattr(module, name, None)
        if value is not None and len(value) == edit.layout.full:
            fresh = equal_units(value, edit.layout)
            assert fresh is not None, "the analysis has compared them"
            if isinstance(value, nn.Parameter):
                setattr(module, name, nn.Parameter(fresh, requires_grad=value.requires_grad))
            else:
                setattr(module, name, fresh)
    for name in ("num_features", "num_channels", "num_parameters", "in_channels", "out_channels"):
        if getattr(module, name, None) == edit.layout.full:
            setattr(module, name, small)
    if isinstance(module, nn.LayerNorm):
        module.normalized_shape = (small,)
    elif hasattr(module, "groups"):  # one filter a channel
        module.groups = small


def _change_parameter(owner: nn.Module, name: str, edit: Edit) -> None:
    old = owner._parameters[name]
    assert old is not None
    if edit.kind == "columns":
        fresh: Tensor | None = sum_columns(old, edit.layout, edit.axis)
    else:
        fresh = equal_units(old, edit.layout, edit.axis)
    assert fresh is not None, "the analysis has compared them"
    owner._parameters[name] = nn.Parameter(fresh, requires_grad=old.requires_grad)


def _smaller(layer: Any, module: Any, edit: Edit | None, repeats: bool) -> nn.Module:
    """A split layer with its sums made, and its result repeated only if that is needed."""
    graph = graphs.copied(layer_graph(layer))
    held: dict[str, Any] = {}
    for node in list(graph.nodes):
        if node.op in ("get_attr", "call_module"):
            held[str(node.target)] = value = getattr(module, str(node.target))
            if isinstance(value, Tensor):
                held[str(node.target)] = _summed(graph, node, value)
    weight = synapses_at(layer)[0].parameter.rpartition(".")[2]
    if edit is not None:
        held[weight] = sum_columns(held[weight], edit.layout, edit.axis)
    for name, value in held.items():
        if isinstance(value, Tensor):
            grad = getattr(module, name).requires_grad
            held[name] = nn.Parameter(value.detach().clone(), requires_grad=grad)
    result: Any = graph.output_node().args[0]
    if result.target is group_repeat and not repeats:
        graph.output_node().args = (result.args[0],)
        graph.erase_node(result)
    return graph_module(module, graph, held)


def _summed(graph: fx.Graph, read: fx.Node, value: Tensor) -> Tensor:
    """The value of a parameter after the sums over it, which leave the graph."""
    while len(read.users) == 1:
        (user,) = read.users
        if user.target is not group_sum:
            break
        gamma: Any
        axis: Any
        _, gamma, axis = user.args
        value = group_sum(value, gamma, axis)
        user.replace_all_uses_with(read)
        graph.erase_node(user)
    return value
