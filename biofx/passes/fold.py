"""Fold: what a weight split repeats is computed once."""

import copy
import inspect
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import fx, nn
from torch.fx.passes.infra.pass_base import PassBase, PassResult

from biofx.capture import clone
from biofx.passes.expansion import group_repeat, group_sum
from biofx.passes.folding.graph import Folding
from biofx.passes.mentions import codes

Arguments = tuple[tuple[Any, ...], Mapping[str, Any]]


@dataclass
class FoldReport:
    """What the fold pass did.

    Attributes:
        summed: split layers whose sum over synapses is now part of the weight.
        absorbed: {layer: split layers} of the layers that take each value once now, which one of
            those split layers repeated.
        unfolded: {split layer: reason} where a value is still repeated.
        parameters: number of parameters (before, after).
    """

    summed: list[str] = field(default_factory=list)
    absorbed: dict[str, list[str]] = field(default_factory=dict)
    unfolded: dict[str, str] = field(default_factory=dict)
    parameters: tuple[int, int] = (0, 0)

    @property
    def changed(self) -> bool:
        """Whether results may differ from the unfolded model's by rounding."""
        return bool(self.absorbed)

    def __str__(self) -> str:
        before, after = self.parameters
        share = f" ({after / before:.0%})" if before else ""
        lines = [
            f"{len(self.summed)} split layers summed, {len(self.absorbed)} layers take their "
            f"inputs once; parameters {before:,} → {after:,}{share}"
        ]
        lines += [f"not folded behind {name}: {why}" for name, why in self.unfolded.items()]
        return "\n".join(lines)


class Fold(PassBase):
    """Removes the repetition that weight splitting puts into flat graphs.

    A split layer's result holds each value Γ times. What lies behind it is computed on one copy,
    as far as it keeps the repetition (elementwise functions, pooling, flatten, concatenation, sums
    of equally repeated values, …), up to the next weight layer, which gets the sum of the columns
    that meet equal inputs. The sums of weights within split layers become constants. Where an
    operation does not keep the repetition, the value is repeated in front of it, and the report
    says why.

    Exact up to rounding; to the bit where the report's `changed` is False. Where an operation means
    different things for values of different rank and the rank is not certain, the graph asserts it.

    Args:
        arguments: example (args, kwargs), which tell ranks that nothing else tells.
    """

    def __init__(self, arguments: Arguments | None = None) -> None:
        self.arguments = arguments
        self.report = FoldReport()

    def requires(self, graph_module: nn.Module) -> None:
        assert not any(module.training for module in graph_module.modules()), "call eval() first"

    def call(self, graph_module: nn.Module) -> PassResult:
        before = _count(graph_module)
        flat = []
        for name, module in graph_module.named_modules():
            if isinstance(module, fx.GraphModule) and _is_split(module.graph):
                reader = _reader(graph_module, name)
                if reader is None:
                    flat.append(module)
                else:
                    why = f"{reader or 'the model'} is Python code that may read its weights"
                    self.report.unfolded[name] = why
        ranks = _ranks(graph_module, flat, self.arguments) if self.arguments and flat else {}
        for module in flat:
            folding = Folding(module, ranks.get(module, {}))
            folding.run()
            self._report(folding)
        self.report.parameters = before, _count(graph_module)
        return PassResult(graph_module, bool(flat))

    def ensures(self, graph_module: nn.Module) -> None:
        for module in graph_module.modules():
            if isinstance(module, fx.GraphModule):
                module.graph.lint()

    def _report(self, folding: Folding) -> None:
        report = self.report
        report.summed += [name for name in folding.summed if name not in report.summed]
        for name, origins in folding.absorbed.items():
            report.absorbed[name] = sorted({*report.absorbed.get(name, []), *origins})
        for name, why in folding.unfolded.items():
            report.unfolded.setdefault(name, why)


def _is_split(graph: fx.Graph) -> bool:
    return any(node.target in (group_sum, group_repeat) for node in graph.nodes)


_READS = frozenset(
    ("parameters", "named_parameters", "state_dict", "functional_call", "get_parameter",
     "_parameters", "weight", "bias")
)  # fmt: skip


def _reader(root: nn.Module, name: str) -> str | None:
    """A module above that runs Python code which names parameters, if there is one."""
    while name:
        name = name.rpartition(".")[0]
        if _names_parameters(type(root.get_submodule(name))):
            return name
    return None


def _names_parameters(kind: type[nn.Module]) -> bool:
    if issubclass(kind, fx.GraphModule) or kind.__module__.startswith("torch."):
        return False
    own = kind.__mro__[: kind.__mro__.index(nn.Module)]
    members = [inspect.unwrap(f) for base in own for f in vars(base).values() if callable(f)]
    functions = [f for f in members if inspect.isfunction(f) and f.__name__ != "__init__"]
    return any(_READS & {*code.co_names} for function in functions for code in codes(function))


def _count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


class _Ranks(fx.Interpreter):
    """Runs a graph and notes the number of dimensions of every tensor in it."""

    def __init__(
        self, module: fx.GraphModule, graph: fx.Graph, seen: dict[fx.Node, int | None]
    ) -> None:
        super().__init__(module, graph=graph)
        self.extra_traceback = False
        self.seen = seen

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, torch.Tensor):
            rank = value.dim()
            self.seen[n] = rank if self.seen.get(n, rank) == rank else None
        return value


def _ranks(
    root: nn.Module, flat: list[fx.GraphModule], arguments: Arguments
) -> dict[fx.GraphModule, dict[fx.Node, int | None]]:
    """Run a copy of the model once on examples."""
    found: dict[fx.GraphModule, dict[fx.Node, int | None]] = defaultdict(dict)
    twin = clone(root, share=False)  # a run may change parameters and buffers

    def record(original: fx.GraphModule, module: Any, *args: Any, **kwargs: Any) -> Any:
        bound = inspect.signature(type(module).forward).bind(module, *args, **kwargs)
        bound.apply_defaults()
        ranks = _Ranks(module, original.graph, found[original])
        return ranks.run(*list(bound.arguments.values())[1:])

    for original, module in zip(root.modules(), twin.modules(), strict=True):
        if original in flat:
            module.__dict__["forward"] = partial(record, original, module)
    try:
        with torch.random.fork_rng(), torch.no_grad():
            twin(*copy.deepcopy(arguments[0]), **copy.deepcopy(dict(arguments[1])))
    except Exception:
        # Ranks are hints, and the graph asserts those that it uses. Python code above a graph may
        # want more of it than to call it; whether that compiles, the exporter will see.
        found.clear()
    return found
