"""Topology: which weight layers there are, what lies downstream of what, depth and rank."""

from collections.abc import Iterable, Set
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from torch import fx, nn
from torch.fx.passes.infra.pass_base import PassBase, PassResult

from biofx.capture import Assumption
from biofx.capture.leaves import is_leaf
from biofx.capture.memory import KEPT
from biofx.capture.targets import asks_form
from biofx.capture.writer import UNSEEN
from biofx.copying.template import rebuild
from biofx.passes.context import TransformContext, WeightLayer
from biofx.passes.functional_weights import ELEMENTWISE, functional_weights
from biofx.passes.views import bases, changed_by
from biofx.synapses import Wiring, axes_of, original_class

REMEDY = "unknown without example_inputs"

_HIDDEN = "a tensor that was computed by something unseen"

# Names of the weight layers that a value comes from.
Sources = frozenset[str]
_NOTHING: Sources = frozenset()


@dataclass
class _Flow:
    """What is known about values while the graph is read from its inputs to its outputs.

    Attributes:
        sources: weight layers that a node's value comes from directly.
        weights: layers whose weights a node's value is made of, and of no data; of constants, none.
        edges: (from, to), in the order in which they were found.
        into: {weight layer: opaque module that its value flows into}.
        result: weight layers that the model's result comes from directly.
        state: {tensor that the model keeps for a later call: weight layers that it comes from}.
    """

    sources: dict[fx.Node, Sources] = field(default_factory=dict)
    weights: dict[fx.Node, Sources] = field(default_factory=dict)
    edges: dict[tuple[str, str], None] = field(default_factory=dict)
    order: dict[str, None] = field(default_factory=dict)
    into: dict[str, str] = field(default_factory=dict)
    result: Sources = frozenset()
    state: dict[str, Sources] = field(default_factory=dict)


class Topology(PassBase):
    """Finds the weight layers and ranks them by what feeds what in the graph.

    An output layer is one with no weight layer downstream. Of what lies inside or behind a module
    that could not be traced nothing is guessed: it is unknown.
    """

    def __init__(self, context: TransformContext) -> None:
        self.context = context
        self.flow = _Flow()

    def requires(self, graph_module: nn.Module) -> None:
        assert not self.context.weights, "topology runs first"

    def call(self, graph_module: nn.Module) -> PassResult:
        context = self.context
        functional = functional_weights(graph_module, context.graph)
        for module, name in context.names.items():
            known = axes_of(module)
            axes = known or functional.get(name)
            if axes:
                context.weights[name] = WeightLayer(name, module, list(axes), bool(known))
        self._ignore()
        for node in context.graph.nodes:
            self._visit(graph_module, node)
        self._read_state()
        self._mark_unknown()
        self._rank()
        return PassResult(graph_module, False)

    def ensures(self, graph_module: nn.Module) -> None:
        ranks = [layer.rank for layer in self.context.weights.values()]
        assert ranks == sorted(ranks), "weight layers are listed in topological order"

    def _ignore(self) -> None:
        """Report the matrices that belong to no weight layer."""
        known = {
            id(layer.module.get_parameter(axes.parameter))
            for layer in self.context.weights.values()
            for axes in layer.axes
        }
        for module, name in self.context.names.items():
            for key, parameter in module._parameters.items():
                if parameter is not None and parameter.ndim >= 2 and id(parameter) not in known:
                    reason = f"no operation is known to use its parameter {key!r} as a weight"
                    if is_leaf(module):
                        reason = f"{original_class(module).__name__} is not a weight layer"
                    elif not self.context.captured.whole:
                        reason = f"how its parameter {key!r} is used is {REMEDY}"
                    self.context.ignored.setdefault(name, reason)

    # --- flow ------------------------------------------------------------------------------------

    def _visit(self, root: nn.Module, node: fx.Node) -> None:
        flow = self.flow
        data = [source for source in node.all_input_nodes if source not in flow.weights]
        upstream = _union(flow.sources[source] for source in data)
        if node.op == "get_attr":
            owner, _, parameter = str(node.target).rpartition(".")
            layer = self._layer_at(root, owner)
            if layer is not None and layer.name != "" and is_leaf(layer.module):
                self.context.read_directly.add(layer.name)
            flow.weights[node] = _NOTHING
            for name in flow.order if UNSEEN in node.meta else ():
                flow.into.setdefault(name, f"its output may go into {_HIDDEN}")
            if layer is not None and parameter in {axes.parameter for axes in layer.axes}:
                flow.weights[node] = frozenset({layer.name})
        elif node.op == "call_module":
            flow.sources[node] = self._call(root, node, upstream)
        elif asks_form(node):
            flow.weights[node] = _NOTHING
        elif node.op == "output":
            flow.result = upstream
            self._returned(node.all_input_nodes)
        else:
            made_of = [flow.weights.get(source, _NOTHING) for source in node.all_input_nodes]
            used = _union(made_of)
            # A constant that is multiplied by a weight as data is goes through the layer.
            through = bool(used) and node.target not in ELEMENTWISE and not all(made_of)
            if not data and not through and node.op != "placeholder":
                flow.weights[node] = used  # computed from weights and constants alone
            elif used:
                flow.sources[node] = _union(
                    self._reach(self.context.weights[name], upstream, node) for name in sorted(used)
                )
            else:
                flow.sources[node] = upstream
        if node in flow.sources:
            if KEPT in node.meta:
                self._keep(node.meta[KEPT], node)
                self._returned([node])
            for changed in bases(changed_by(node)):
                if changed.op == "get_attr":
                    self._keep(str(changed.target), node)
                if not flow.weights.get(changed):
                    flow.weights.pop(changed, None)  # data was put into a constant
                    flow.sources[changed] = flow.sources.get(changed, _NOTHING) | flow.sources[node]

    def _call(self, root: nn.Module, node: fx.Node, upstream: Sources) -> Sources:
        target = str(node.target)
        if target in self.context.captured.opaque:
            return self._enter_opaque(target, upstream)
        layer = self._layer_at(root, target)
        if layer is None:
            return upstream
        upstream = self._reach(layer, upstream, node)
        if not layer.module._modules:
            return upstream
        for name in self._inside(layer.name):  # the output projection of an attention layer
            upstream = self._reach(self.context.weights[name], upstream, None)
        return upstream

    def _enter_opaque(self, target: str, upstream: Sources) -> Sources:
        inside = self._inside(target)
        if not inside:
            return upstream  # without layers of its own, it is one more function of what goes in
        reason = f"{target}, which could not be traced"
        for name in upstream:
            self.flow.into.setdefault(name, f"its output goes into {reason}")
        for name in inside:
            self.context.weights[name].unknown = f"it is inside {reason}"
        return _NOTHING

    def _layer_at(self, root: nn.Module, target: str) -> WeightLayer | None:
        try:
            module = root.get_submodule(target)
        except AttributeError:
            return None
        return self.context.weights.get(self.context.names.get(module, "?"))

    def _inside(self, name: str) -> list[str]:
        prefix = f"{name}." if name else ""
        return [one for one in self.context.weights if one.startswith(prefix) and one != name]

    def _reach(self, layer: WeightLayer, sources: Sources, node: fx.Node | None) -> Sources:
        layer.reached = True
        layer.fed = layer.fed or bool(self._read(layer, sources, node))
        if node is not None:
            layer.nodes.append(node)
        self.flow.order[layer.name] = None
        self.flow.edges.update(
            ((name, layer.name), None) for name in sorted(sources - {layer.name})
        )
        return frozenset({layer.name})

    def _read(self, layer: WeightLayer, sources: Sources, node: fx.Node | None) -> Sources:
        """Of what a layer comes from, what its input weights read: not its states."""
        if node is None or not isinstance(layer.module, nn.RNNBase | nn.RNNCellBase):
            return sources
        given = [*node.args[:1], node.kwargs.get("input")]
        return _union(self.flow.sources.get(n, _NOTHING) for n in given if isinstance(n, fx.Node))

    def _keep(self, name: str, node: fx.Node) -> None:
        self.flow.state[name] = self.flow.state.get(name, _NOTHING) | self.flow.sources[node]

    def _read_state(self) -> None:
        """Add edges to the layers that a later call leads to what the model has kept."""
        layers = {
            node: name for name, layer in self.context.weights.items() for node in layer.nodes
        }
        for start in self.context.graph.find_nodes(op="get_attr") if self.flow.state else ():
            sources = self.flow.state.get(str(start.target), _NOTHING)
            waiting, seen = list(start.users) if sources else [], set[fx.Node]()
            while waiting:
                node = waiting.pop()
                if node in layers:
                    name = layers[node]
                    self.context.weights[name].fed = True
                    self.flow.edges.update(((one, name), None) for one in sorted(sources - {name}))
                elif node not in seen:
                    seen.add(node)
                    waiting += node.users

    def _returned(self, given: Iterable[fx.Node]) -> None:
        """Note the layers whose output is, unmixed with others', a result of the model."""
        results = list(given)
        for value in results:
            if value.target is rebuild:  # an object: its tensors are the results
                results += value.all_input_nodes
                continue
            sources = self.flow.sources.get(value, _NOTHING)
            if len(sources) == 1:
                self.context.weights[next(iter(sources))].returned = True

    # --- what is unknown -------------------------------------------------------------------------

    def _mark_unknown(self) -> None:
        context = self.context
        for name, reason in self.flow.into.items():
            context.weights[name].unknown = context.weights[name].unknown or reason
        whole_reason = context.captured.opaque.get("")
        for layer in context.weights.values():
            if layer.reached or layer.unknown:
                continue
            if whole_reason is not None:
                layer.unknown = f"the model could not be traced ({whole_reason})"
            elif not context.captured.whole:
                layer.unknown = "nothing that was traced calls it"

    # --- depth and rank --------------------------------------------------------------------------

    def _rank(self) -> None:
        context, order = self.context, {name: place for place, name in enumerate(self.flow.order)}
        edges = list(self.flow.edges)
        if any(order[u] >= order[v] for u, v in edges):
            forward, ranked, ends = _without_cycles(order, edges, self.flow.result)
        else:  # as nearly always: no layer is used again
            forward, ranked = edges, list(order)
            ends = set(order) - {u for u, _ in edges}
        before: dict[str, list[str]] = {}
        for u, v in forward:
            before.setdefault(v, []).append(u)
        for rank, name in enumerate(ranked):
            layer = context.weights[name]
            above = (context.weights[other].depth + 1 for other in before.get(name, ()))
            layer.depth, layer.rank = max(above, default=0), rank
        self._mark_outputs(ends)
        for name, layer in context.weights.items():
            if not layer.reached:
                layer.rank = len(ranked)
                ranked.append(name)
        context.weights = {name: context.weights[name] for name in ranked}
        context.wiring = Wiring(
            edges=tuple(edges),
            order=tuple(name for name in ranked if context.weights[name].reached),
            outputs=tuple(name for name in ranked if context.weights[name].output),
            unknown={
                name: layer.unknown for name, layer in context.weights.items() if layer.unknown
            },
        )

    def _mark_outputs(self, ends: set[str]) -> None:
        context = self.context
        named = context.config.outputs
        if named:
            chosen = [n for n in context.weights if any(fnmatchcase(n, glob) for glob in named)]
            for name in chosen:
                context.weights[name].output = True
            for layer in context.weights.values():
                layer.unknown = None  # as the user says
            told = ", ".join(chosen) or "none"
            context.assumptions.append(
                Assumption("outputs", f"output layers as the configuration says: {told}")
            )
            return
        for name in ends:
            context.weights[name].output = context.weights[name].unknown is None


def _without_cycles(
    order: dict[str, int], edges: list[tuple[str, str]], result: Set[str]
) -> tuple[list[tuple[str, str]], list[str], set[str]]:
    """Edges without those that close a cycle, a topological order, and the ends.

    A layer that is used again later closes a cycle: its first use gives it its place. Where a cycle
    is the end of the model, those of its layers are the ends that the `result` comes from.
    """
    import networkx as nx

    flow: nx.DiGraph[str] = nx.DiGraph()
    flow.add_nodes_from(order)
    flow.add_edges_from(edges)
    groups = nx.condensation(flow)
    group_of = groups.graph["mapping"]
    kept = [(u, v) for u, v in edges if group_of[u] != group_of[v] or order[u] < order[v]]
    forward: nx.DiGraph[str] = nx.DiGraph()
    forward.add_nodes_from(order)
    forward.add_edges_from(kept)
    ranked = list(nx.lexicographical_topological_sort(forward, key=order.__getitem__))
    ends: set[str] = set()
    for group, members in groups.nodes(data="members"):
        if groups.out_degree(group) == 0:
            for last in (members & result, members):
                final = {u for u in last if not any(v in last for w, v in kept if w == u)}
                if final:
                    ends |= final
                    break
    return kept, ranked, ends


def _union(parts: Iterable[Sources]) -> Sources:
    union = _NOTHING
    for part in parts:
        if part is not union:
            union = union | part if union else part
    return union
