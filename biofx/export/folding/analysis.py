"""Which values of a graph repeat what a split layer repeats, and what would have to change."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import Tensor, fx, nn

from biofx.export.folding.layout import Layout, Rep, Unfoldable
from biofx.modules.graph_layer import GraphLayer, layer_graph
from biofx.modules.lowering import group_repeat
from biofx.synapses import original_class, synapses_at

Rule = Callable[["Analysis", fx.Node], Rep | None]


@dataclass(frozen=True)
class Edit:
    """What becomes of a module or parameter, for small values.

    Attributes:
        kind: "columns" (those that meet equal inputs are added), "units" (one of each group of
            equal ones stays).
        layout: of the value that it meets.
        axis: of the weight or parameter.
    """

    kind: Literal["columns", "units"]
    layout: Layout
    axis: int = 0


@dataclass(frozen=True)
class Use:
    """One way in which a module or parameter is used: `edit` is None if nothing repeats there."""

    edit: Edit | None
    origins: frozenset[str]
    absorbs: bool


class Analysis:
    """One look at a graph, with some split layers known to stay as they are.

    Args:
        graph: of the transformed model; a split layer is one node.
        layers: {name: module} of the transformed model.
        model: the plain model, whose modules and parameters would be changed.
        hidden: modules that code may use which the graph does not show.
        kept: {split layer: reason} of those whose values stay repeated.

    Attributes:
        uses: {name of a module or parameter: Use}.
        failed: {split layer: reason} newly found to have to stay.
        split: names of the split layers that the graph calls.
    """

    def __init__(
        self,
        graph: fx.Graph,
        layers: Mapping[str, nn.Module],
        model: nn.Module,
        hidden: frozenset[nn.Module],
        kept: Mapping[str, str],
    ) -> None:
        self.graph, self.layers, self.kept = graph, layers, kept
        self.modules: Mapping[str, nn.Module] = dict(model.named_modules())
        self.hidden = hidden
        self.model = model
        self.reps: dict[fx.Node, Rep] = {}
        self.uses: dict[str, Use] = {}
        self.failed: dict[str, str] = {}
        self.split: list[str] = []
        self._read = {
            id(value)
            for node in graph.find_nodes(op="get_attr")
            if (value := self.parameter(node)) is not None
        }
        self._called = {
            id(value)
            for node in graph.nodes
            if node.op == "call_module"
            for value in self.modules[str(node.target)].parameters()
        }

    def run(self) -> None:
        """Visit all nodes."""
        for node in self.graph.nodes:
            if node.op in ("placeholder", "get_attr"):
                continue
            try:
                rep = self._rule(node)(self, node)
            except Unfoldable as reason:
                at = f" (at {self._described(node)})" if node.op != "output" else ""
                for source in node.all_input_nodes:
                    self._fail(self.origins(source), f"{reason}{at}")
                continue
            if rep is not None:
                meta = node.meta.get("tensor_meta")
                shape = getattr(meta, "shape", None)
                self.reps[node] = rep if shape is None else replace(rep, rank=len(shape))

    def _rule(self, node: fx.Node) -> Rule:
        from biofx.export.folding.rules import rule_of

        if node.op == "call_module":
            name = str(node.target)
            if isinstance(self.layers[name], GraphLayer):
                return split_layer
            return rule_of(type(self.modules[name]))
        if node.op == "output":
            return _returned
        return rule_of(node.target)

    def _fail(self, origins: frozenset[str], why: str) -> None:
        for origin in origins:
            self.failed.setdefault(origin, why)

    def _described(self, node: fx.Node) -> str:
        if node.op == "call_module":
            name = str(node.target)
            kind = type(self.modules[name]).__name__
            return f"{name} ({kind})"
        name = getattr(node.target, "__name__", str(node.target))
        path = next(reversed(node.meta.get("nn_module_stack", {"": ""})))
        return f"{name} in {path}" if path else name

    # --- for rules ----------------------------------------------------------------------------

    def rep(self, value: Any) -> Rep:
        """What is known about a value.

        Raises:
            Unfoldable: nothing is.
        """
        if not isinstance(value, fx.Node) or value not in self.reps:
            raise Unfoldable("nothing is known about the other value that goes into it")
        return self.reps[value]

    def origins(self, value: Any) -> frozenset[str]:
        """The split layers whose repetition a value holds."""
        rep = self.reps.get(value)
        return rep.origins if rep is not None and rep.layout.repeats else frozenset()

    def repeats(self, node: fx.Node) -> bool:
        """Whether any input of a node repeats."""
        return any(self.origins(source) for source in node.all_input_nodes)

    def parameter(self, node: Any) -> Tensor | None:
        """The parameter that a node reads; None for anything else."""
        if not isinstance(node, fx.Node) or node.op != "get_attr":
            return None
        owner, _, name = str(node.target).rpartition(".")
        module = self.modules.get(owner)
        return None if module is None else module._parameters.get(name)

    def module(self, node: fx.Node) -> Any:
        """The plain module that a node calls with one argument."""
        if len(node.args) != 1 or node.kwargs:
            raise Unfoldable("it is called in an unusual way")
        return self.modules[str(node.target)]

    def rank_of(self, value: Any, why: str, guess: int | None = None) -> int:
        """The number of dimensions of a value.

        Raises:
            Unfoldable: it is not known.
        """
        rank = self.rep(value).rank or guess
        if rank is None:
            raise Unfoldable(f"{why} depends on the number of dimensions; give example_inputs")
        return rank

    def from_end(self, value: Any, dim: int) -> int:
        """A dimension counted from the end."""
        return dim if dim < 0 else dim - self.rank_of(value, f"which axis {dim} is")

    def use(self, node: fx.Node, edit: Edit | None, rep: Rep | None, absorbs: bool = False) -> None:
        """Note that a node uses its module, or the parameter that it reads, in some way.

        Raises:
            Unfoldable: it is used in another way elsewhere, or may be.
        """
        name = str(node.target)
        origins = rep.origins if rep is not None and edit is not None else frozenset()
        if edit is not None:
            if node.op == "get_attr":
                shared = id(self.parameter(node)) in self._called
            else:
                module = self.modules[name]
                shared = module in self.hidden or any(
                    id(p) in self._read for p in module.parameters()
                )
            if shared:
                raise Unfoldable("its weight is also used elsewhere")
        known = self.uses.setdefault(name, Use(edit, origins, absorbs))
        if known.edit != edit:
            why = f"{name} is used for values that repeat differently"
            self._fail(known.origins, why)
            raise Unfoldable(why)
        self.uses[name] = replace(known, origins=known.origins | origins)


def _returned(analysis: Analysis, node: fx.Node) -> Rep | None:
    if analysis.repeats(node):
        raise Unfoldable("the model returns it")
    return None


def split_layer(analysis: Analysis, node: fx.Node) -> Rep | None:
    """A split layer: where repetition begins."""
    from biofx.export.folding.weights import columns

    name = str(node.target)
    layer: Any = analysis.layers[name]
    if name not in analysis.split:
        analysis.split.append(name)
    rank = columns(analysis, node, original_class(layer))
    result = layer_graph(layer).output_node().args[0]
    if not isinstance(result, fx.Node) or result.target is not group_repeat:
        return None  # its weight alone is summed
    gamma: Any
    axis: Any
    _, gamma, axis = result.args
    synapses = synapses_at(layer)[0]
    units = synapses.shape[synapses.post_axis]
    if synapses.kind.startswith("conv_transpose"):
        units *= synapses.groups
    if name in analysis.kept:
        return Rep(Layout(axis, ((units, 1),)), rank)
    if analysis.modules[name] in analysis.hidden:
        analysis._fail(frozenset([name]), "code that could not be traced may use it")
        return None
    return Rep(Layout(axis, ((units // gamma, gamma),)), rank, frozenset([name]))
