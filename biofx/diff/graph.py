"""`diff` and `GraphDiff`: what `biofx.transform` changed, as data and as a picture."""

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from rich.console import Console, ConsoleOptions, RenderResult
from torch import nn

from biofx.config import BioConfig
from biofx.diff.build import build
from biofx.diff.glyphs import Glyphs
from biofx.diff.node import DiffNode
from biofx.diff.picture import draw, suited, terminal_width
from biofx.synapses import Layer, Record, Synapses, record_of

Function = Literal["identical", "rounding", "changed"]


def diff(model: nn.Module) -> "GraphDiff":
    """What `biofx.transform` changed in a model, as a tree of graph nodes.

    Args:
        model: the result of `biofx.transform`, wrapped or not.

    Returns:
        A snapshot: it does not change when the model does. `print` it, `rich.print` it for
        colours, or take it apart with `.tree` and `.to_dict()`.

    Raises:
        ModelError: the model was not made by `biofx.transform`.
    """
    return GraphDiff(build(model), record_of(model))


@dataclass(frozen=True)
class GraphDiff:
    """The difference between a model and what `biofx.transform` made of it.

    ``str()`` gives plain text as wide as the terminal (at least 80 columns); rich prints it in
    colour as wide as its console. Both fold what repeats; `unfolded()` shows every node.

    Attributes:
        tree: the model; its children are the nodes of its graph in the order of execution.
        record: what the passes noted down: layers, synapses, opaque modules and reasons.
        full: show every node of every graph.
        verified: what `biofx.verify` found, if it was asked.
    """

    tree: DiffNode
    record: Record
    full: bool = False
    verified: str | None = None

    def unfolded(self) -> "GraphDiff":
        """The same, showing every node of every graph."""
        return dataclasses.replace(self, full=True)

    @property
    def function(self) -> Function:
        """What became of the function that the model computes.

        "identical" bit for bit, equal up to "rounding" (a layer was expanded), or "changed" (a
        layer was split in groups).
        """
        modes = {synapses.split for synapses in self.record.synapses.values()}
        return "changed" if "group" in modes else "rounding" if "expand" in modes else "identical"

    @property
    def nodes(self) -> dict[str, int]:
        """{status: number of graph nodes} over all graphs."""
        counts = Counter(node.status for node in self.tree.walk() if node.op)
        return dict(sorted(counts.items()))

    @property
    def graphs(self) -> int:
        """Number of modules that have a graph."""
        return sum(1 for node in self.tree.walk() if any(c.op == "output" for c in node.children))

    def render(self, width: int = 80, *, glyphs: Glyphs | None = None) -> str:
        """Plain text, no line wider than `width` columns (at least 40)."""
        lines = draw(self, max(width, 40), glyphs or suited(None))
        return "\n".join(line.plain.rstrip() for line in lines)

    def __str__(self) -> str:
        return self.render(terminal_width())

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield from draw(self, max(options.max_width, 40), suited(console))

    def to_dict(self) -> dict[str, Any]:
        """Everything in plain values, for JSON.

        Returns:
            ``model``, ``parameters`` (number), ``function``, ``config`` (fields that are not the
            defaults), ``unmatched`` (globs of it that match no weight layer, in words), ``counts``
            of layers by action, of nodes by status and of graphs,
            ``weights_in_graphs``, ``verified``; ``layers``, ``synapses``, ``opaque`` and ``partly``
            as in `Transformation`; and ``tree`` (see `DiffNode.to_dict`).
        """
        record = self.record
        return {
            "model": self.tree.old,
            "parameters": self.tree.parameters,
            "function": self.function,
            "config": record.config.to_dict(),
            "unmatched": list(record.unmatched),
            "counts": {
                "layers": actions(record.layers.values()),
                "nodes": self.nodes,
                "graphs": self.graphs,
                "opaque": len(record.opaque),
            },
            "weights_in_graphs": record.weights_in_graphs,
            "verified": self.verified,
            "layers": {name: dataclasses.asdict(layer) for name, layer in record.layers.items()},
            "synapses": {name: _plain(item) for name, item in record.synapses.items()},
            "opaque": dict(record.opaque),
            "partly": dict(record.partly),
            "tree": self.tree.to_dict(),
        }


def actions(layers: Iterable[Layer]) -> dict[str, int]:
    """{action: number of layers}."""
    counts: Mapping[str, int] = Counter(layer.action for layer in layers)
    return {name: counts[name] for name in ("augmented", "split", "skipped") if counts[name]}


def _plain(synapses: Synapses) -> dict[str, Any]:
    plain = {
        spec.name: getattr(synapses, spec.name)
        for spec in dataclasses.fields(synapses)
        if spec.name != "config"
    }
    config: BioConfig = synapses.config
    model_wide = ("overrides", "include", "exclude")
    plain["config"] = {k: v for k, v in config.to_dict().items() if k not in model_wide}
    return plain
