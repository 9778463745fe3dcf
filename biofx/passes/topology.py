"""Topology: which weight layers there are, what lies downstream of what, depth and rank."""

import operator
from collections.abc import Iterable, Iterator

import networkx as nx
from torch import fx, nn
from torch.fx.passes.infra.pass_base import PassBase, PassResult

from biofx.capture import Captured, inplace, is_leaf
from biofx.passes.direct import used_directly
from biofx.passes.draft import Draft, WeightLayer, join
from biofx.synapses import axes_of

# Names of the weight layers that a value comes from; "=name" is the weight of a layer itself.
Sources = frozenset[str]
_INPUT = "?"  # the model's own input, which distinguishes data from what is made of weights alone

_IN_PLACE = inplace.__name__


class Topology(PassBase):
    """Finds the weight layers and ranks them by a networkx digraph of what feeds what.

    An output layer is one with no weight layer downstream, however deeply nested. Inside an
    opaque module, the children are taken to run one after another, in the order in which they
    were registered.
    """

    def __init__(self, draft: Draft) -> None:
        self.draft = draft
        self.flow = nx.DiGraph()
        self._names: dict[nn.Module, str] = {}
        self._marks: set[str] = set()
        self._inside: list[nn.Module] = []  # a child may have registered its parent

    def requires(self, graph_module: nn.Module) -> None:
        assert not self.draft.weights, "topology runs first"

    def call(self, graph_module: nn.Module) -> PassResult:
        self._names = self.draft.session.names
        for module, name in self._names.items():
            axes = axes_of(module)
            if not axes and isinstance(module, Captured):
                axes = list(used_directly(module).values())
            if axes:
                self.draft.weights[name] = WeightLayer(name, module, axes)
        self._ignore()
        self._rank(self._visit(graph_module, frozenset({_INPUT})))
        return PassResult(graph_module, False)

    def ensures(self, graph_module: nn.Module) -> None:
        ranks = [layer.rank for layer in self.draft.weights.values()]
        assert ranks == sorted(ranks), "weight layers are listed in topological order"

    # --- weights -----------------------------------------------------------------------------

    def _ignore(self) -> None:
        """Report the matrices that belong to no weight layer."""
        known = {
            id(layer.module.get_parameter(axes.parameter))
            for layer in self.draft.weights.values()
            for axes in layer.axes
        }
        for module, name in self._names.items():
            for key, parameter in module._parameters.items():
                if parameter is not None and parameter.ndim >= 2 and id(parameter) not in known:
                    reason = f"parameter {key!r} has no known weight op in its graph"
                    if is_leaf(module):
                        reason = f"{type(module).__name__} is not a weight layer"
                    elif not isinstance(module, Captured):
                        reason = f"parameter {key!r} has no known weight op in Python code"
                    self.draft.ignored.setdefault(name, reason)

    # --- flow --------------------------------------------------------------------------------

    def _visit(self, module: nn.Module, sources: Sources, *, in_graph: bool = False) -> Sources:
        """Follow the data through a module; gives the weight layers its result comes from."""
        name = self._names[module]
        if isinstance(module, Captured):
            return self._visit_graph(name, module, sources)
        self._inside.append(module)
        if name in self.draft.weights:
            self.draft.weights[name].in_graph |= in_graph
            sources = self._reach(name, sources)
        for child in module.children():
            if child in self._names and child not in self._inside:
                sources = self._visit(child, sources, in_graph=in_graph)
        self._inside.pop()
        return sources

    def _visit_graph(self, name: str, module: Captured, inputs: Sources) -> Sources:
        self._inside.append(module)
        values: dict[fx.Node, Sources] = {}
        result: Sources = frozenset()
        for node in module.graph.nodes:
            upstream = _union(values[arg] for arg in node.all_input_nodes)
            if node.op == "placeholder":
                values[node] = inputs
            elif node.op == "call_module":
                child = module.get_submodule(str(node.target))
                # what is asked of a class is kept, and each graph has a class of its own
                leaf = not isinstance(child, Captured) and is_leaf(child)
                values[node] = self._visit(child, upstream, in_graph=leaf)
                layer = self.draft.weights.get(self._names.get(child, ""))
                if layer is not None:
                    layer.nodes.append(node)
            elif node.op == "get_attr":
                values[node] = self._marked(name, str(node.target))
            elif node.op == "output":
                result = upstream
            elif upstream <= self._marks:
                values[node] = upstream  # computed from weights alone
            else:
                values[node] = self._apply(upstream, node)
            if _changes_in_place(node):
                for changed in _bases(node.args[0]):
                    values[changed] = values[changed] | values[node]
        own = self.draft.weights.get(name)
        if own is not None:
            own.in_graph = True
            if not own.reached:
                self._reach(name, inputs)
        self._inside.pop()
        return result - self._marks

    def _marked(self, name: str, target: str) -> Sources:
        """Sources of a parameter that a graph reads: the mark of its layer, if it is a weight."""
        owner, _, parameter = target.rpartition(".")
        layer = self.draft.weights.get(join(name, owner) if owner else name)
        if layer is None:
            return frozenset()
        if owner:
            self.draft.read_directly.add(layer.name)
        if parameter not in {axes.parameter for axes in layer.axes}:
            return frozenset()
        self._marks.add(f"={layer.name}")
        return frozenset({f"={layer.name}"})

    def _apply(self, upstream: Sources, node: fx.Node | None = None) -> Sources:
        """An operation on data and weights: every marked weight is reached from the data."""
        marks = upstream & self._marks
        data = upstream - marks
        for mark in marks:
            layer = self.draft.weights[mark[1:]]
            layer.in_graph = True
            if node is not None:
                layer.nodes.append(node)
        return _union(self._reach(mark[1:], data) for mark in sorted(marks)) if marks else data

    def _reach(self, name: str, sources: Sources) -> Sources:
        if sources & self._marks:
            sources = self._apply(sources)
        layer = self.draft.weights[name]
        layer.reached = True
        self.flow.add_node(name)
        self.flow.add_edges_from((source, name) for source in sources - {name, _INPUT})
        return frozenset({name})

    # --- depth and rank ----------------------------------------------------------------------

    def _rank(self, result: Sources) -> None:
        order = {name: position for position, name in enumerate(self.flow.nodes)}
        if all(order[u] < order[v] for u, v in self.flow.edges):
            forward, ranked = self.flow, list(order)  # as nearly always: no layer is used again
            ends = [{name} for name, later in self.flow.out_degree if not later]
        else:
            groups = nx.condensation(self.flow)
            group_of = groups.graph["mapping"]
            # A layer that is used again later closes a cycle: its first use gives it its place.
            forward = nx.DiGraph()
            forward.add_nodes_from(order)
            forward.add_edges_from(
                (u, v)
                for u, v in self.flow.edges
                if group_of[u] != group_of[v] or order[u] < order[v]
            )
            ranked = list(nx.lexicographical_topological_sort(forward, key=order.__getitem__))
            members = groups.nodes(data="members")
            ends = [found for group, found in members if groups.out_degree(group) == 0]
        for rank, name in enumerate(ranked):
            layer = self.draft.weights[name]
            above = (self.draft.weights[before].depth + 1 for before in forward.predecessors(name))
            layer.depth, layer.rank = max(above, default=0), rank
        for end in ends:
            for name in end & result or end:
                self.draft.weights[name].output = True
        rank = len(ranked)
        for name, layer in self.draft.weights.items():
            if not layer.reached:
                layer.rank = rank
                ranked.append(name)
                rank += 1
        self.draft.weights = {name: self.draft.weights[name] for name in ranked}


def _changes_in_place(node: fx.Node) -> bool:
    if node.op == "call_method":
        name = str(node.target)
        return name.endswith("_") and not name.endswith("__")
    return node.op == "call_function" and getattr(node.target, "__module__", "") == _IN_PLACE


def _bases(value: object) -> Iterator[fx.Node]:
    """The node that is changed in place, and those that it is a view of."""
    while isinstance(value, fx.Node):
        yield value
        view = value.target is operator.getitem or (value.op == "call_method" and value.args)
        value = value.args[0] if view else None


def _union(parts: Iterable[Sources]) -> Sources:
    union: Sources = frozenset()
    for part in parts:
        if part is not union:
            union = union | part if union else part
    return union
