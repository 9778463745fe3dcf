"""Lower: a traced graph becomes a module that TorchScript compiles."""

import operator
import typing
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

from biofx.capture import Arguments, Captured
from biofx.export.attempt import Impossible
from biofx.export.export_signature import give_types
from biofx.modules import graphs
from biofx.modules.lowering import lower, safe_target
from biofx.synapses import original_class


def graph_module(
    model: nn.Module, captured: Captured, arguments: Arguments | None
) -> tuple[fx.GraphModule, tuple[str, ...]]:
    """The graph of a model as a module of torch's functions only, and names of its parameters.

    Args:
        model: a plain model, which the module shares its tensors with.
        captured: its graph, traced without example inputs.
        arguments: example inputs.

    Raises:
        Impossible: the graph is for other arguments, or reads what TorchScript cannot hold.
    """
    graph = graphs.copied(captured.graph)
    call: Any = captured.graph._codegen.call  # type: ignore[attr-defined]
    graph.set_codegen(fx.graph.CodeGen())
    try:
        hints = typing.get_type_hints(original_class(model).forward)
    except Exception:  # names that only type checkers know
        hints = {}
    names = give_types(graph, call, arguments, hints)
    graphs.call_forwards(graph)
    lower(graph)
    for node in graph.find_nodes(op="call_function", target=torch.set_grad_enabled):
        graph.erase_node(node)  # a file is for inference
    held: dict[str, Any] = {}
    for node in graph.nodes:
        if node.op in ("get_attr", "call_module"):
            value = _held(model, captured, str(node.target))
            node.target = safe_target(str(node.target))
            held[node.target] = value
        elif node.op == "call_method" and node.target == "norm":
            # a Python function behind the method fills in its defaults; compilers see neither
            node.op, node.target = "call_function", torch.norm
    for node in list(graph.nodes):
        if node.target is torch.addmm and _adds_vector(held, node):
            # TorchScript takes addmm apart, which rounds once more; linear calls it whole
            bias, x, weight = node.args
            with graph.inserting_before(node):
                transposed = graph.call_method("t", (weight,))
                fresh = graph.call_function(F.linear, (x, transposed, bias))
            node.replace_all_uses_with(fresh)
            graph.erase_node(node)
    graph.lint()
    return fx.GraphModule(held, graph, original_class(model).__name__).eval(), names


def _held(model: nn.Module, captured: Captured, target: str) -> Any:
    value: Any = captured.constants.get(target)
    if value is None:
        value = operator.attrgetter(target)(model)
    if not isinstance(value, torch.Tensor | nn.Module):
        raise Impossible(f"the graph reads {target}, a {type(value).__name__}")
    return value


def _adds_vector(held: dict[str, Any], node: fx.Node) -> bool:
    if len(node.args) != 3 or node.kwargs:
        return False
    bias = node.args[0]
    tensor = held.get(str(bias.target)) if isinstance(bias, fx.Node) else None
    return isinstance(tensor, torch.Tensor) and tensor.dim() == 1
