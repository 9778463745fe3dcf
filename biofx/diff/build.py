"""From a transformed model to the tree of its changes: the flat graph, grouped by module."""

import math
import operator
import re
from typing import Any

from torch import fx, nn

from biofx.copying.template import rebuild
from biofx.diff.node import PLUMBING, DiffNode, Status
from biofx.diff.text import measured
from biofx.diff.words import own_synapses, particular
from biofx.modules.graph_module import graph_of
from biofx.modules.graphs import called_module
from biofx.passes import Provenance, function_name
from biofx.synapses import Layer, Record, original_class, record_of, unwrap

_PLACE = re.compile(r'File "(.*)", line (\d+)')
_ACTIONS: dict[str, Status] = {"augmented": "replaced", "split": "split", "skipped": "skipped"}


def build(model: nn.Module) -> DiffNode:
    """The tree of a transformed model: every node of its graph once, under its modules.

    Raises:
        ModelError: the model was not made by `biofx.transform`.
    """
    return _Builder(unwrap(model), record_of(model)).build()


class _Builder:
    def __init__(self, root: nn.Module, record: Record) -> None:
        self.record = record
        self.modules = dict(root.named_modules())
        self.made: dict[str, DiffNode] = {}
        self.tree = self._module("", None)
        self.open = [self.tree]  # the modules that the node before is in

    def build(self) -> DiffNode:
        for node in graph_of(self.modules[""]).nodes:
            if node.op in PLUMBING or ("" in self.record.opaque):
                continue
            parent = self._enter(_modules(node))
            parent.children.append(self._node(node, parent))
        for name in self.modules:
            if name in self.made or not (name in self.record.layers or name in self.record.opaque):
                continue
            above = name
            while above not in self.made:
                above = above.rpartition(".")[0]
            self.made[above].children.append(self._module(name, self.made[above]))
        for inner in self.tree.walk():
            if inner.synapses and inner.shape is None and inner.children:
                inner.shape = inner.children[-1].shape  # of a split layer
        return self.tree

    def _enter(self, path: list[str]) -> DiffNode:
        """The node of the innermost module of a path, where it goes on or as a new one."""
        depth = 1
        while depth <= min(len(path), len(self.open) - 1) and (
            self.open[depth].path == path[depth - 1]
        ):
            depth += 1
        del self.open[depth:]
        for name in path[depth - 1 :]:
            parent = self.open[-1]
            parent.children.append(self._module(name, parent))
            self.open.append(parent.children[-1])
        return self.open[-1]

    def _module(self, path: str, parent: DiffNode | None) -> DiffNode:
        """What is known about a module."""
        above = parent.path if parent is not None else None
        inside = bool(above) and path.startswith(f"{above}.")
        node = DiffNode(name=path[len(above or "") + 1 :] if inside else path, path=path)
        module = self.modules.get(path)
        if module is not None:
            node.old = node.new = original_class(module).__name__
            node.parameters = sum(parameter.numel() for parameter in module.parameters())
        node.again = path in self.made
        self.made.setdefault(path, node)
        layer = self.record.layers.get(path)
        if layer is not None:
            self._layer(node, layer)
        elif path in self.record.opaque:
            node.status, node.reason = "opaque", self.record.opaque[path]
        return node

    def _layer(self, node: DiffNode, layer: Layer) -> None:
        node.status, node.reason = _ACTIONS[layer.action], layer.reason
        node.new = layer.new_type
        node.synapses = layer.parameters
        node.settings = particular(self.record, layer)
        node.count = sum(math.prod(s.shape) for s in own_synapses(self.record, layer))
        if layer.parameters:
            node.rank, node.output = layer.rank, layer.output

    def _node(self, node: fx.Node, parent: DiffNode) -> DiffNode:
        module = called_module(node)
        if module is not None:
            found = self._module(module, parent)
        else:
            name = function_name(node.target) if node.op == "call_function" else str(node.target)
            found = DiffNode(name=name, old=name, new=name)
            provenance = node.meta.get("biofx")
            if isinstance(provenance, Provenance) and provenance.status == "inserted":
                found.status, found.old, found.reason = "inserted", "", provenance.reason
                found.name = _applied(node, name)
        found.op, found.node = node.op, node.name
        found.inputs = tuple(source.name for source in node.all_input_nodes)
        found.plumbing = node.target in (getattr, rebuild) or _takes_part(node)
        found.shape = _shape(node.meta.get("tensor_meta"))
        place = _PLACE.search(str(node.meta.get("stack_trace") or ""))
        if place is not None:
            found.place = f"{place[1].replace(chr(92), '/').rpartition('/')[2]}:{place[2]}"
        return found


def _modules(node: fx.Node) -> list[str]:
    """Qualified names of the modules that a node is in, from the outside, without the model."""
    stack = node.meta.get("nn_module_stack") or {}
    names = [str(path) for path, _ in stack.values() if path]
    whole: Any = node
    while isinstance(whole, fx.Node) and whole.target is operator.getitem:
        whole = whole.args[0]  # part of what a layer gives
    if isinstance(whole, fx.Node) and names[-1:] == [called_module(whole)]:
        names.pop()
    return names


def _takes_part(node: fx.Node) -> bool:
    """Whether a node takes a value out of several."""
    if node.target is not operator.getitem:
        return False
    source = node.args[0]
    several = isinstance(source, fx.Node) and not hasattr(source.meta.get("tensor_meta"), "shape")
    return several and isinstance(node.args[1], int | str)


def _applied(node: fx.Node, name: str) -> str:
    """An inserted node by what it is applied to: ``group_sum(weight)``."""
    source = node.args[0] if node.args else None
    if isinstance(source, fx.Node) and source.op == "get_attr":
        return f"{name}({str(source.target).rpartition('.')[2]})"
    return name


def _shape(meta: Any) -> tuple[int, ...] | None:
    if isinstance(meta, tuple) and not hasattr(meta, "shape"):  # of several tensors, the first
        meta = meta[0] if meta else None
    shape = getattr(meta, "shape", None)
    return None if shape is None else tuple(int(size) for size in shape)


def arguments(model: nn.Module) -> dict[str, str]:
    """{graph node: input of the model}: ``x 1×3×32×32`` where shapes are known, ``n=3``.

    What is None is left out.
    """
    graph = graph_of(unwrap(model))
    call = getattr(graph._codegen, "call", None)
    written = dict(text.split("=", 1) for text in call.describe()) if call is not None else {}
    found = {}
    for node in graph.nodes:
        if node.op != "placeholder":
            continue
        name = str(node.target)
        shape = _shape(node.meta.get("tensor_meta"))
        value = written.get(name, "None" if name.startswith("*") else "")
        if shape is not None:
            found[node.name] = f"{name} {measured(shape)}"
        elif value != "None":
            found[node.name] = f"{name}={value}" if value else name
    return found
