"""What the passes hand on to each other while a transformation is being made."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import fx, nn

from biofx.capture import Captured, Session
from biofx.config import BioConfig
from biofx.synapses import Axes, Layer, Synapses


@dataclass(frozen=True)
class Provenance:
    """What a pass did to a node; kept in ``node.meta["biofx"]``.

    Attributes:
        status: "replaced" (a bio-augmented layer stands there), "inserted" or "skipped".
        by: name of the pass.
        old, new: class or function names before and after ("" for an inserted node).
        reason: why a layer was skipped, or what an inserted node is for.
        layer: name of the weight layer that it belongs to.
    """

    status: Literal["replaced", "inserted", "skipped"]
    by: str
    old: str = ""
    new: str = ""
    reason: str | None = None
    layer: str = ""


@dataclass
class WeightLayer:
    """A module that holds weights, as the topology pass finds it.

    `nodes` are the graph nodes that apply it; `in_graph` holds for the inside of a layer too, such
    as the output projection of an attention layer; `reached` says that data was seen to flow in.
    """

    name: str
    module: nn.Module
    axes: list[Axes]
    nodes: list[fx.Node] = field(default_factory=list)
    depth: int = 0
    rank: int = 0
    output: bool = False
    reached: bool = False
    in_graph: bool = False


@dataclass
class Draft:
    """A transformation in the making.

    Attributes:
        weights: {module name: WeightLayer}; in topological order once topology has run.
        ignored: {module name: reason} of modules that hold matrices no pass understands.
        layers, synapses: what becomes the record.
        read_directly: names of layers whose weight some graph reads without calling the layer.
    """

    config: BioConfig
    session: Session
    opaque: dict[str, str]
    weights: dict[str, WeightLayer] = field(default_factory=dict)
    ignored: dict[str, str] = field(default_factory=dict)
    layers: dict[str, Layer] = field(default_factory=dict)
    synapses: dict[str, Synapses] = field(default_factory=dict)
    read_directly: set[str] = field(default_factory=set)
    problems: list[str] = field(default_factory=list)


def islands(root: nn.Module) -> Iterator[tuple[str, Captured]]:
    """Every module with a graph, by name, outermost first."""
    for name, module in root.named_modules():
        if isinstance(module, Captured):
            yield name, module


def join(prefix: str, name: Any) -> str:
    """Qualified name of `name` inside the module `prefix`."""
    return f"{prefix}.{name}" if prefix and name else prefix or str(name)


def function_name(target: Any) -> str:
    """How a call_function target is called in tables."""
    return str(getattr(target, "__name__", target))
