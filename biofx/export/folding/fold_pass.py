"""Fold: what a weight split repeats is computed once."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import fx, nn

from biofx.capture import Arguments, capture
from biofx.copying import separate
from biofx.errors import ModelError
from biofx.export.attempt import Impossible
from biofx.export.check import Expected
from biofx.export.folding.analysis import Analysis
from biofx.export.folding.edits import apply
from biofx.modules.graph_layer import GraphLayer


@dataclass(frozen=True)
class FoldReport:
    """What folding did.

    Attributes:
        summed: split layers whose sum over synapses is now part of the weight.
        absorbed: {layer: split layers} of the layers that take each value once now, which one of
            those split layers repeated.
        unfolded: {split layer: reason} where a value is still repeated.
        parameters: number of parameters (before, after).
        branch: what the code asks of data, and takes a way by that may be another for other data.
    """

    summed: tuple[str, ...] = ()
    absorbed: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    unfolded: Mapping[str, str] = field(default_factory=dict)
    parameters: tuple[int, int] = (0, 0)
    branch: str = ""

    @property
    def changed(self) -> bool:
        """Whether results may differ from the unfolded model's by rounding."""
        return bool(self.absorbed or self.summed)

    def refused(self, why: str) -> "FoldReport":
        """The report of a model that is not folded after all."""
        names = {*self.summed, *self.unfolded, *(n for ns in self.absorbed.values() for n in ns)}
        before = self.parameters[0]
        return FoldReport(unfolded=dict.fromkeys(sorted(names), why), parameters=(before, before))

    def __str__(self) -> str:
        before, after = self.parameters
        share = f" ({after / before:.0%})" if before else ""
        lines = [
            f"{len(self.summed)} split layers summed, {len(self.absorbed)} layers take their "
            f"inputs once; parameters {before:,} → {after:,}{share}"
        ]
        lines += [f"not folded behind {name}: {why}" for name, why in self.unfolded.items()]
        return "\n".join(lines)


def fold(bio: nn.Module, model: nn.Module, arguments: Arguments | None) -> FoldReport:
    """Remove the repetition that weight splitting puts into a model.

    A split layer's result holds each value Γ times. It gives each once, where everything that
    reads the result keeps the repetition (elementwise functions, normalisation, pooling, flatten,
    concatenation, …) up to the next weight layers, which get the sum of the columns that meet
    equal inputs. The model's own forward then runs over smaller layers. The sums of weights within
    split layers become constants everywhere. Exact up to rounding.

    Args:
        bio: the transformed model; not changed.
        model: a plain copy of it in evaluation mode, with tensors of its own; changed in place.
        arguments: example inputs, whose way through the code counts. The folded model runs on them
            here; if its code wants the full width after all, it stays unfolded.
    """
    before = _count(model)
    split = [name for name, layer in bio.named_modules() if isinstance(layer, GraphLayer)]
    if not split:
        return FoldReport(parameters=(before, before))
    try:
        captured = capture(bio, arguments, training=False)
    except ModelError as error:
        reason = str(error)
        return FoldReport(unfolded=dict.fromkeys(split, reason), parameters=(before, before))
    kept: dict[str, str] = {}
    while True:
        found = _analysis(bio, model, captured.graph, captured.opaque, kept)
        if not found.failed:
            break
        kept.update(found.failed)
    if arguments is not None and not _runs(bio, model, found, kept, arguments):
        kept = dict.fromkeys(found.split, "the model's own code needs the full width") | kept
        found = _analysis(bio, model, captured.graph, captured.opaque, kept)
    apply(bio, model, found, kept)
    absorbed = {
        name: tuple(sorted(use.origins))
        for name, use in found.uses.items()
        if use.edit is not None and use.absorbs
    }
    unseen = "the graph does not show that it is called"
    unfolded = {name: kept[name] for name in split if name in kept} | {
        name: unseen for name in split if name not in found.split
    }
    branch = next((str(a) for a in captured.assumptions if a.kind == "data"), "")
    return FoldReport(tuple(found.split), absorbed, unfolded, (before, _count(model)), branch)


def _analysis(
    bio: nn.Module, model: nn.Module, graph: fx.Graph, opaque: Mapping[str, str],
    kept: Mapping[str, str],
) -> Analysis:  # fmt: skip
    layers = dict(bio.named_modules())
    hidden = frozenset(
        module for name in opaque if name for module in model.get_submodule(name).modules()
    )
    analysis = Analysis(graph, layers, model, hidden, kept)
    analysis.run()
    return analysis


def _runs(
    bio: nn.Module, model: nn.Module, found: Analysis, kept: Mapping[str, str], given: Arguments
) -> bool:
    """Whether the folded model gives the results of the other.

    Code may ask a value for its width, and compute with that number: `x / x.shape[-1] ** 0.5`.
    """
    twin = separate(model)
    expected = Expected(twin, given)
    apply(bio, twin, found, kept)
    try:
        expected.check(lambda arguments: twin(*arguments.args, **arguments.kwargs), folded=True)
    except Impossible:
        return False
    return True


def _count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
