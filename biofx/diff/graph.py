"""`diff` and `GraphDiff`: what `biofx.transform` changed, as data and as pictures."""

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from rich.console import Console, ConsoleOptions, RenderResult
from torch import nn

from biofx.config import BioConfig
from biofx.diff.build import arguments, build
from biofx.diff.node import DiffNode
from biofx.diff.picture import draw, suited, terminal_width
from biofx.diff.text import Glyphs, clean
from biofx.synapses import Record, Synapses, original_class, record_of, unwrap

Function = Literal["identical", "rounding", "changed"]


def diff(model: nn.Module) -> "GraphDiff":
    """What `biofx.transform` changed in a model, as a tree of graph nodes.

    Args:
        model: the result of `biofx.transform`, wrapped or not.

    Returns:
        A snapshot, which does not change when the model does. `print` it, `rich.print` it for
        colours, or take it apart with `.tree` and `.to_dict()`.

    Raises:
        ModelError: the model was not made by `biofx.transform`.
    """
    ask = f"example_inputs={_example(original_class(unwrap(model)))} to biofx.transform"
    return GraphDiff(build(model), record_of(model), arguments(model), ask=ask)


def _example(kind: type[nn.Module]) -> str:
    """What to give for an example, in code; models of Transformers bring one if they read text."""
    main = getattr(kind, "main_input_name", None)
    if hasattr(kind, "dummy_inputs") and main in (None, "input_ids"):
        return "model.dummy_inputs"
    return f'{{"{main}": a batch}}' if isinstance(main, str) else "(a batch,)"


@dataclass(frozen=True, repr=False)
class GraphDiff:
    """The difference between a model and what `biofx.transform` made of it.

    ``str()`` gives plain text as wide as the terminal (at least 80 columns); rich prints it in
    colour as wide as its console. Both fold what repeats; `unfolded()` shows every node.
    `to_html` gives a page, `to_dot` a graph for Graphviz, `to_dict` everything as data.

    Attributes:
        tree: the model; inside it, its modules and the nodes of its graph in their order.
        record: what the passes noted down: layers, synapses, wiring, assumptions and reasons.
        sources: {graph node: input of the model}, with shapes where example inputs were given.
        full: show every node of the graph.
        verified: what `biofx.verify` found, if it was asked.
        ask: what to pass, and where, so that the wiring becomes known.
    """

    tree: DiffNode
    record: Record
    sources: Mapping[str, str] = field(default_factory=dict)
    full: bool = False
    verified: str | None = None
    ask: str = ""

    def unfolded(self) -> "GraphDiff":
        """The same, showing every node of the graph."""
        return dataclasses.replace(self, full=True)

    @property
    def function(self) -> Function:
        """What became of the function that the model computes.

        "identical" bit for bit, equal up to "rounding" (a layer was expanded), or "changed" (a
        layer was split in groups). This follows from what was done; `biofx.verify` measures it.
        """
        modes = {synapses.split for synapses in self.record.synapses.values()}
        return "changed" if "group" in modes else "rounding" if "expand" in modes else "identical"

    @property
    def synapses(self) -> int:
        """Number of synapses of the model."""
        return sum(math.prod(item.shape) for item in self.record.synapses.values())

    @property
    def layers(self) -> dict[str, int]:
        """{action: number of weight layers}."""
        counts = Counter(layer.action for layer in self.record.layers.values())
        return {name: counts[name] for name in ("augmented", "split", "skipped") if counts[name]}

    @property
    def nodes(self) -> dict[str, int]:
        """{status: number of graph nodes}, without inputs, attributes and the output."""
        counts = Counter(node.status for node in self.tree.walk() if node.op)
        return dict(sorted(counts.items()))

    def render(self, width: int = 80, *, glyphs: Glyphs | None = None) -> str:
        """Plain text, no line wider than `width` columns (at least 40)."""
        lines = draw(self, max(width, 40), glyphs or suited(None))
        return "\n".join(line.plain.rstrip() for line in lines)

    def __str__(self) -> str:
        return self.render(terminal_width())

    def __repr__(self) -> str:
        layers = ", ".join(f"{count:,} {action}" for action, count in self.layers.items())
        return f"<GraphDiff of {clean(self.tree.old)}: {layers}; print it to see it>"

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield from draw(self, max(options.max_width, 40), suited(console))

    def to_dot(self) -> str:
        """The graph for Graphviz: `dot -Tsvg` draws it."""
        from biofx.diff.dot import to_dot

        return to_dot(self)

    def to_html(self) -> str:
        """One page that needs nothing else: modules to open and close, reasons, a search."""
        from biofx.diff.html import page

        return page(self)

    def _repr_html_(self) -> str:
        from biofx.diff.html import fragment

        return fragment(self)

    def to_dict(self) -> dict[str, Any]:
        """Everything in plain values, for JSON.

        Returns:
            ``model``, ``parameters`` and ``synapse_count`` (numbers), ``function``, ``verified``,
            ``whole`` and ``training`` (how the graph was captured), ``config`` (fields that are not
            the defaults), ``unmatched`` (globs of it that match no weight layer, in words),
            ``counts`` of layers by action and of nodes by status; ``layers``, ``synapses``,
            ``opaque``, ``assumptions`` and ``wiring`` as in `Transformation`; and ``tree`` (see
            `DiffNode.to_dict`).
        """
        record = self.record
        # Populations come when somebody asks.
        wiring = dataclasses.replace(record.wiring, units=tuple(record.wiring.units))
        return {
            "model": self.tree.old,
            "parameters": self.tree.parameters,
            "synapse_count": self.synapses,
            "function": self.function,
            "verified": self.verified,
            "whole": record.whole,
            "training": record.training,
            "arguments": list(self.sources.values()),
            "config": record.config.to_dict(),
            "unmatched": list(record.unmatched),
            "counts": {"layers": self.layers, "nodes": self.nodes, "opaque": len(record.opaque)},
            "layers": {name: dataclasses.asdict(layer) for name, layer in record.layers.items()},
            "synapses": {name: _plain(item) for name, item in record.synapses.items()},
            "opaque": dict(record.opaque),
            "assumptions": [dataclasses.asdict(item) for item in record.assumptions],
            "wiring": {**dataclasses.asdict(wiring), "known": wiring.known},
            "tree": self.tree.to_dict(),
        }


def _plain(synapses: Synapses) -> dict[str, Any]:
    plain = {
        spec.name: getattr(synapses, spec.name)
        for spec in dataclasses.fields(synapses)
        if spec.name != "config"
    }
    config: BioConfig = synapses.config
    model_wide = ("overrides", "include", "exclude", "outputs")
    plain["config"] = {k: v for k, v in config.to_dict().items() if k not in model_wide}
    return plain
