"""Passes: FX graph to FX graph, one file each, each a `torch.fx` `PassBase`."""

from biofx.passes.augment import Augment
from biofx.passes.dale import Dale
from biofx.passes.draft import Draft, Provenance, function_name, islands, join
from biofx.passes.expansion import group_repeat, group_sum
from biofx.passes.split import Split
from biofx.passes.topology import Topology

PASSES = (Topology, Augment, Split, Dale)

__all__ = [
    "PASSES",
    "Augment",
    "Dale",
    "Draft",
    "Provenance",
    "Split",
    "Topology",
    "function_name",
    "group_repeat",
    "group_sum",
    "islands",
    "join",
]
