"""Synapses: the record, the registry from layer types to axes, bio-augmented layers."""

from biofx.synapses.classes import Cell, Derived, Watched, become, original_class, rebuild, watch
from biofx.synapses.layers import BioLayer, augment, track_activity, wants_activity
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

__all__ = [
    "Axes",
    "BioLayer",
    "Cell",
    "Derived",
    "Layer",
    "Record",
    "Synapses",
    "Watched",
    "augment",
    "axes_of",
    "become",
    "original_class",
    "parameter_of",
    "rebuild",
    "record_of",
    "register",
    "synapses_of",
    "track_activity",
    "unwrap",
    "wants_activity",
    "watch",
]
