"""The graph of a layer that is split, in either mode."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

from biofx.errors import ConfigError
from biofx.modules.lowering import group_repeat, group_sum
from biofx.passes.context import Provenance, function_name
from biofx.passes.expansion import expand_parameter
from biofx.synapses import Axes, Synapses

_CONVS = {torch.conv1d, torch.conv2d, torch.conv3d}
_TRANSPOSED = {torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d}
WEIGHT_OPS = {F.linear, torch.addmm, *_CONVS, *_TRANSPOSED}


def group(
    module: nn.Module, graph: fx.Graph, op: fx.Node, axes: Axes, synapses: Synapses
) -> Synapses:
    """Mode group: φ, sums of Γ neighbouring units, each repeated Γ times."""
    gamma = synapses.config.weight_splitting_Gamma
    output = graph.output_node()
    phi = activation(synapses.config.weight_splitting_activation_function)
    per_group = synapses.shape[synapses.post_axis]
    if not synapses.kind.startswith("conv_transpose"):
        per_group //= synapses.groups
    bound = op.target in _SIGNATURES and output.args[0] is op
    if phi is None and bound and per_group % gamma == 0:
        # Σ(Wx + b) = (ΣW)x + Σb: sum the weight, not the units
        arguments = _bind(op)
        for name, axis in (("weight", synapses.post_axis), ("bias", 0)):
            if arguments.get(name) is not None:
                with graph.inserting_before(op):
                    arguments[name] = insert(graph, group_sum, (arguments[name], gamma, axis))
        op.args, op.kwargs = (), arguments
        value: Any = op
    else:
        value = output.args[0]
        with graph.inserting_before(output):
            if phi is not None:
                value = _insert_phi(module, graph, value, phi)
            value = insert(graph, group_sum, (value, gamma, axes.units))
    with graph.inserting_before(output):
        value = insert(graph, group_repeat, (value, gamma, axes.units))
    output.args = (value,)
    return replace(synapses, gamma=gamma, split="group")


def expand(module: nn.Module, graph: fx.Graph, axes: Axes, synapses: Synapses) -> Synapses:
    """Mode expand: Γ synapses per connection, which the graph sums."""
    gamma, axis = synapses.config.weight_splitting_Gamma, synapses.post_axis
    weight = next(
        node for node in graph.nodes if node.op == "get_attr" and node.target == axes.parameter
    )
    with graph.inserting_after(weight):
        total = insert(graph, group_sum, (weight, gamma, axis))
    weight.replace_all_uses_with(total, delete_user_cb=lambda user: user is not total)
    return expand_parameter(module, axes.parameter, axis, synapses)


def insert(graph: fx.Graph, target: Any, args: tuple[Any, ...]) -> fx.Node:
    """A node that splitting puts in."""
    node = graph.call_function(target, args)
    why = f"Γ={args[1]}"
    node.meta["biofx"] = Provenance("inserted", by="split", new=function_name(target), reason=why)
    return node


def _insert_phi(
    module: nn.Module, graph: fx.Graph, value: Any, phi: Callable[[Any], Any]
) -> fx.Node:
    if isinstance(phi, nn.Module):
        module.add_module("weight_splitting_activation_function", phi)
        node = graph.call_module("weight_splitting_activation_function", (value,))
        name = type(phi).__name__
    else:
        node = graph.call_function(phi, (value,))
        name = function_name(phi)
    node.meta["biofx"] = Provenance("inserted", by="split", new=name, reason="φ")
    return node


def activation(function: Callable[[Any], Any] | str) -> Callable[[Any], Any] | None:
    """φ as a callable; None for the identity."""
    if isinstance(function, str):
        if function == "identity":
            return None
        found = getattr(F, function, None) or getattr(torch, function, None)
        if not callable(found):
            raise ConfigError(
                f"weight_splitting_activation_function={function!r} is not a function of "
                "torch.nn.functional"
            )
        return found  # type: ignore[no-any-return]
    if isinstance(function, nn.Identity):
        return None
    if isinstance(function, nn.Module) and any(True for _ in function.parameters()):
        raise ConfigError("weight_splitting_activation_function must have no parameters")
    return function


def weight_op(graph: fx.Graph, parameter: str) -> fx.Node | None:
    """The operation over a weight, if there is one and no other reads it."""
    ops = [node for node in graph.nodes if node.target in WEIGHT_OPS]
    reads = [n for n in graph.nodes if n.op == "get_attr" and n.target == parameter]
    return ops[0] if len(ops) == 1 and len(reads) == 1 else None


_CONV_ARGUMENTS = "input weight bias stride padding dilation groups"
_TRANSPOSED_ARGUMENTS = "input weight bias stride padding output_padding groups dilation"
_SIGNATURES: dict[Any, str] = {
    F.linear: "input weight bias",
    **dict.fromkeys(_CONVS, _CONV_ARGUMENTS),
    **dict.fromkeys(_TRANSPOSED, _TRANSPOSED_ARGUMENTS),
}


def _bind(op: fx.Node) -> dict[str, Any]:
    """The arguments of a weight op by name."""
    return dict(zip(_SIGNATURES[op.target].split(), op.args, strict=False)) | dict(op.kwargs)
