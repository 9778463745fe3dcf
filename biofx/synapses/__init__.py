"""Synapses: the record, the registry from layer types to axes, bio-augmented layers."""

from biofx.synapses.classes import Derived, become, mixins_of, original_class, rebuild, revert
from biofx.synapses.layers import (
    COUNTS,
    BioLayer,
    augment,
    synapses_at,
    track_activity,
    wants_activity,
)
from biofx.synapses.neighbours import Belonging, Followed, Neighbours
from biofx.synapses.population import Entries, Population, Reader
from biofx.synapses.record import (
    Layer,
    Record,
    Synapses,
    parameter_of,
    record_of,
    synapses_of,
    unwrap,
)
from biofx.synapses.registry import Axes, axes_of, register
from biofx.synapses.wiring import Wiring

__all__ = [
    "COUNTS",
    "Axes",
    "Belonging",
    "BioLayer",
    "Derived",
    "Entries",
    "Followed",
    "Layer",
    "Neighbours",
    "Population",
    "Reader",
    "Record",
    "Synapses",
    "Wiring",
    "augment",
    "axes_of",
    "become",
    "mixins_of",
    "original_class",
    "parameter_of",
    "rebuild",
    "record_of",
    "register",
    "revert",
    "synapses_at",
    "synapses_of",
    "track_activity",
    "unwrap",
    "wants_activity",
]
