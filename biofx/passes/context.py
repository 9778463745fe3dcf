"""What the passes hand on to each other while a transformation is being made."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import fx, nn

from biofx.capture import Assumption, Captured
from biofx.config import BioConfig
from biofx.synapses import Axes, Layer, Synapses, Wiring

if TYPE_CHECKING:
    from biofx.passes.units.blocks import Blocks


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

    Attributes:
        name, module, axes: the module and the meaning of its weights' axes.
        registered: they come from the registry of layer types; else the graph tells them.
        nodes: graph nodes that apply it.
        depth, rank, output: as in `Synapses`.
        reached: data was seen to flow in.
        fed: units of weight layers, or its own, were seen to flow in.
        returned: what it gives is a result of the model as it stands.
        unknown: why it is not known what it feeds or what feeds it, or None.
    """

    name: str
    module: nn.Module
    axes: list[Axes]
    registered: bool = True
    nodes: list[fx.Node] = field(default_factory=list)
    depth: int = 0
    rank: int = 0
    output: bool = False
    reached: bool = False
    fed: bool = False
    returned: bool = False
    unknown: str | None = None


@dataclass
class TransformContext:
    """A transformation in the making.

    Attributes:
        config: the configuration given.
        captured: the model's graph; split rewrites it.
        names: {module: its first qualified name}.
        weights: {module name: WeightLayer}; in topological order once topology has run.
        ignored: {module name: reason} of modules that hold matrices no pass understands.
        layers, synapses: what becomes the record.
        read_directly: names of layers whose weight the graph reads without calling the layer.
        assumptions: what the passes take for granted.
        wiring: which layer feeds which.
        blocks: which units the graph tells apart, once they have been followed.
    """

    config: BioConfig
    captured: Captured
    names: Mapping[nn.Module, str]
    weights: dict[str, WeightLayer] = field(default_factory=dict)
    ignored: dict[str, str] = field(default_factory=dict)
    layers: dict[str, Layer] = field(default_factory=dict)
    synapses: dict[str, Synapses] = field(default_factory=dict)
    read_directly: set[str] = field(default_factory=set)
    assumptions: list[Assumption] = field(default_factory=list)
    wiring: Wiring = field(default_factory=Wiring)
    blocks: "Blocks | None" = None

    @property
    def graph(self) -> fx.Graph:
        """The graph of the whole model."""
        return self.captured.graph


def module_names(model: nn.Module) -> dict[nn.Module, str]:
    """{module: its first qualified name} of every module whose tensors Python can see."""
    return {
        module: name
        for name, module in model.named_modules()
        if not isinstance(module, torch.jit.ScriptModule)
    }


def join(prefix: str, name: Any) -> str:
    """Qualified name of `name` inside the module `prefix`."""
    return f"{prefix}.{name}" if prefix and name else prefix or str(name)


def function_name(target: Any) -> str:
    """How a call_function target is called in tables."""
    return str(getattr(target, "__name__", target))
