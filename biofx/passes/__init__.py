"""Passes: over the flat graph of a model, one file each, each a `torch.fx` `PassBase`."""

from biofx.passes.augment import Augment
from biofx.passes.context import Provenance, TransformContext, function_name, join, module_names
from biofx.passes.dale import Dale
from biofx.passes.split import Split
from biofx.passes.topology import Topology
from biofx.passes.units import Units

PASSES = (Topology, Units, Augment, Split, Dale)

__all__ = [
    "PASSES",
    "Augment",
    "Dale",
    "Provenance",
    "Split",
    "Topology",
    "TransformContext",
    "Units",
    "function_name",
    "join",
    "module_names",
]
