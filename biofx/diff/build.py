"""From a transformed model to the tree of its changes, read from record and provenance."""

from collections.abc import Iterator, Mapping

from torch import fx, nn

from biofx.capture import Captured
from biofx.diff.assumptions import assumptions
from biofx.diff.node import DiffNode, Status
from biofx.passes import Provenance, function_name, join
from biofx.synapses import Layer, Record, original_class, record_of, unwrap


def build(model: nn.Module) -> DiffNode:
    """The tree of a transformed model: every node of every graph once, every module that matters.

    Raises:
        ModelError: the model was not made by `biofx.transform`.
    """
    record = record_of(model)
    return _Builder(unwrap(model), record).build()


class _Builder:
    def __init__(self, root: nn.Module, record: Record) -> None:
        self.root = root
        self.record = record
        self.names = {module: name for name, module in root.named_modules()}
        self.made: dict[str, DiffNode] = {}  # the node under which a module is unfolded
        self.sizes: dict[nn.Module, int] = {}

    def build(self) -> DiffNode:
        tree = self._module(DiffNode(name="", path=""), self.root)
        # What no graph and no opaque parent led to: unused heads, layers called by torch itself.
        for name, module in self.root.named_modules():
            if name in self.made or not self._matters(name, module):
                continue
            above = name
            while above not in self.made:
                above = above.rpartition(".")[0]
            local = name[len(above) + 1 :] if above else name
            self.made[above].children.append(self._module(DiffNode(name=local, path=name), module))
        for node in tree.walk():
            if node.again and node.path is not None and not self.made[node.path].quiet:
                node.notes = ("called again",)
        return tree

    def _matters(self, name: str, module: nn.Module) -> bool:
        return (
            name in self.record.layers
            or name in self.record.opaque
            or (isinstance(module, Captured) and name != "")
        )

    def _module(self, node: DiffNode, module: nn.Module) -> DiffNode:
        """Fill in what is known about a module, and what is inside it."""
        name = self.names[module]
        layer = self.record.layers.get(name)
        node.path = name
        node.old = original_class(module).__name__
        node.new = layer.new_type if layer is not None else node.old
        node.parameters = self._size(module)
        notes: list[str] = []
        if layer is not None:
            self._layer(node, layer, notes)
        if name in self.record.opaque:
            if node.status == "unchanged":
                node.status, node.reason = "opaque", self.record.opaque[name]
            else:
                notes.append(f"stays Python: {self.record.opaque[name]}")
        if name in self.record.partly:
            notes.append(f"partly Python: {self.record.partly[name]}")
        if isinstance(module, Captured) and module.stale:
            notes.append(f"its graph was given up: {module.stale}")
        node.notes = tuple(notes)
        if name in self.made:
            node.again = True
            node.notes = ()
            return node
        self.made[name] = node
        if isinstance(module, Captured):
            node.assumes = assumptions(module._graph._codegen.call)  # type: ignore[attr-defined]
            shapes = self.record.shapes.get(name, {})
            node.children = [self._node(module, n, name, shapes) for n in module.graph.nodes]
        elif name in self.record.opaque:
            node.children = [
                self._module(DiffNode(name=local), child) for local, child in _children(module)
            ]
        return node

    def _node(
        self,
        island: Captured,
        fx_node: fx.Node,
        prefix: str,
        shapes: Mapping[str, tuple[int, ...]],
    ) -> DiffNode:
        node = DiffNode(name=fx_node.name, op=fx_node.op, shape=shapes.get(fx_node.name))
        provenance = fx_node.meta.get("biofx")
        if fx_node.op == "call_module":
            node.name = str(fx_node.target)
            self._module(node, island.get_submodule(node.name))
        elif fx_node.op == "call_function":
            node.old = node.new = function_name(fx_node.target)
        else:
            node.old = node.new = str(fx_node.target)
        if isinstance(provenance, Provenance):
            node.status = provenance.status
            node.old = provenance.old or ("" if provenance.status == "inserted" else node.old)
            node.new = provenance.new or node.new
            node.reason = node.reason or provenance.reason
            if provenance.status == "inserted":
                node.name = _applied(fx_node)
            layer = self.record.layers.get(provenance.layer)
            if node.path is None and layer is not None and provenance.layer == prefix:
                node.synapses = layer.parameters
        return node

    def _layer(self, node: DiffNode, layer: Layer, notes: list[str]) -> None:
        statuses: dict[str, Status] = {"skipped": "skipped"}
        node.status = statuses.get(layer.action, "replaced")
        node.reason = layer.reason
        node.synapses = layer.parameters
        if layer.parameters:
            node.rank, node.output = layer.rank, layer.output
        for parameter in layer.parameters:
            synapses = self.record.synapses[parameter]
            others = [other for other in synapses.layers if other != layer.name]
            if others:
                notes.append(f"tied: {parameter} also serves {', '.join(others)}")
            changed = _deviations(self.record, parameter)
            if changed and changed not in notes:
                notes.append(changed)

    def _size(self, module: nn.Module) -> int:
        return sum(parameter.numel() for parameter in module.parameters())


def _children(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Children by name; those of a container that has no forward of its own in its place."""
    for name, child in module.named_children():
        if type(child).forward is nn.Module.forward:
            for inner, grandchild in _children(child):
                yield join(name, inner), grandchild
        else:
            yield name, child


def _applied(node: fx.Node) -> str:
    """An inserted node by what it is applied to: ``group_sum(weight)``."""
    source = node.args[0] if node.args else None
    name = function_name(node.target) if node.op == "call_function" else str(node.target)
    if isinstance(source, fx.Node) and source.op == "get_attr":
        return f"{name}({source.target})"
    return name if node.op == "call_function" else node.name


def _deviations(record: Record, parameter: str) -> str:
    """Settings of one parameter that differ from the model's: ``"overrides: base_lr=0.2"``."""
    base, own = record.config, record.synapses[parameter].config
    if own == base:
        return ""
    defaults, changed = base.to_dict(), own.to_dict()
    names = [n for n in {**defaults, **changed} if getattr(base, n) != getattr(own, n)]
    return "overrides: " + ", ".join(f"{name}={_short(getattr(own, name))}" for name in names)


def _short(value: object) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return str(getattr(value, "__name__", value))
