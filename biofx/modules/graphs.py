"""Graphs copied and kept as plain data, with everything that is known about their nodes.

FX itself would trace the generated code anew, and lose `node.meta`.
"""

import functools
import importlib
import operator
from types import CodeType, FunctionType
from typing import Any

import torch
from torch import fx
from torch.fx.graph import PythonCode
from torch.fx.graph_module import _loader

from biofx.capture.call import FORWARD_ONLY, reserve

Nodes = list[tuple[Any, ...]]


def copied(graph: fx.Graph, owner: Any = None) -> fx.Graph:
    """A copy of a graph, for another module."""
    fresh = reserve(fx.Graph(owning_module=owner))
    values: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        values[node] = fresh.node_copy(node, values.__getitem__)
    fresh.set_codegen(graph._codegen)
    return fresh


def call_forwards(graph: fx.Graph) -> None:
    """Call the forward alone of each module whose hooks' operations stand in a graph.

    Passes see such a module as one `call_module` node. To FX that runs the module with its hooks,
    whose operations would run twice.
    """
    for node in graph.find_nodes(op="call_module"):
        if node.meta.pop(FORWARD_ONLY, False):
            with graph.inserting_before(node):
                module = graph.create_node("get_attr", node.target)
            module.meta.update({k: v for k, v in node.meta.items() if k in _PLACES})
            node.op, node.target, node.args = "call_method", "forward", (module, *node.args)


_PLACES = ("nn_module_stack", "stack_trace")


def called_module(node: fx.Node) -> str | None:
    """The name of the module that a node calls, with its hooks or without; None if it does not."""
    if node.op == "call_method" and node.target == "forward" and node.args:
        module = node.args[0]
        return str(module.target) if isinstance(module, fx.Node) else None
    return str(node.target) if node.op == "call_module" else None


def to_data(graph: fx.Graph) -> Nodes:
    """A graph as plain data, which `pickle` takes."""

    def encode(value: Any) -> Any:
        return fx.node.map_arg(value, lambda node: _Reference(node.name))  # type: ignore[arg-type,return-value]

    return [
        (node.op, node.name, _target_to_data(node.target), encode(node.args), encode(node.kwargs),
         node.type, dict(node.meta))
        for node in graph.nodes
    ]  # fmt: skip


def from_data(nodes: Nodes, owner: Any = None) -> fx.Graph:
    """The graph that `to_data` has taken apart."""
    graph = reserve(fx.Graph(owning_module=owner))
    made: dict[str, fx.Node] = {}

    def decode(value: Any) -> Any:
        if isinstance(value, _Reference):
            return made[value.name]
        if isinstance(value, dict):
            return {key: decode(item) for key, item in value.items()}
        if isinstance(value, slice):
            return slice(decode(value.start), decode(value.stop), decode(value.step))
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return type(value)(*(decode(item) for item in value))
        if isinstance(value, list | tuple):
            return type(value)(decode(item) for item in value)
        return value

    for op, name, target, args, kwargs, kind, meta in nodes:
        node = graph.create_node(
            op, _target_from_data(target), decode(args), decode(kwargs), name, kind
        )
        node.meta.update(meta)
        made[name] = node
    return graph


def compiled(graph: fx.Graph) -> tuple[FunctionType, PythonCode]:
    """The forward that a graph describes, and its code as FX generates it."""
    code = graph.python_code(root_module="self")
    names = dict(code.globals)
    exec(_code_of(code.src), names)
    forward: FunctionType = names.pop("forward")
    # A code object of its own, for torch.compile keeps what it makes by those.
    forward.__code__ = forward.__code__.replace()
    return forward, code


@functools.lru_cache(maxsize=256)
def _code_of(source: str) -> CodeType:
    """The code of a graph, under a file name by which tracebacks find the source."""
    return compile(source, _loader.cache(source, {}), "exec", dont_inherit=True)


class _Reference:
    def __init__(self, name: str) -> None:
        self.name = name


def _target_to_data(target: Any) -> Any:
    """A target as `pickle` takes it: most functions pickle by name, operators of torch do not."""
    if isinstance(target, torch._ops.OpOverload):
        return "op", *target._schema.name.split("::"), target._overloadname
    if isinstance(target, torch._ops.OpOverloadPacket):
        return "op", *target._qualified_op_name.split("::"), None
    if isinstance(target, str | type):
        return target
    name = fx.node._get_qualified_name(target)
    module, _, attribute = name.rpartition(".")
    module = module or "builtins"
    try:
        if operator.attrgetter(attribute)(importlib.import_module(module)) is target:
            return "function", module, attribute
    except (ImportError, AttributeError):
        pass
    return target


def _target_from_data(target: Any) -> Any:
    if not isinstance(target, tuple):
        return target
    if target[0] == "function":
        return operator.attrgetter(target[2])(importlib.import_module(target[1]))
    _, namespace, name, overload = target
    packet = getattr(getattr(torch.ops, namespace), name)
    return packet if overload is None else getattr(packet, overload)
