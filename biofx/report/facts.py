"""What a history says of a model once and for all."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from biofx.plasticity.scheduler.scheduler import GradScheduler
from biofx.synapses import Synapses, record_of


def containers(model: nn.Module, synapses: Mapping[str, Synapses]) -> dict[str, str]:
    """{name: class} of the modules that hold the layers, and of the layers that hold several."""
    layers = [layer for entry in synapses.values() for layer in entry.layers[:1]]
    layers += [layer.name for layer in record_of(model).layers.values()]
    names: dict[str, None] = {"": None}
    for layer in layers:
        parts = layer.split(".")
        names |= {".".join(parts[:end]): None for end in range(1, len(parts))}
    return {name: type(model.get_submodule(name)).__name__ for name in names}


def differences(theirs: Mapping[str, Any], ours: Mapping[str, Any], most: int = 4) -> str:
    """Shapes of parameters in a history and here, where they are not the same."""
    other = [name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name)]
    said = [
        f"{name} is {theirs.get(name, 'not there')} in it and {ours.get(name, 'not there')} here"
        for name in other[:most]
    ]
    return "; ".join(said) + (f"; and {len(other) - most} more" if len(other) > most else "")


def facts_of(
    synapses: Synapses, types: Mapping[str, str], scheduler: GradScheduler
) -> dict[str, Any]:
    serving = [rule.name for rule in scheduler.rules if rule.serves(synapses)]
    return {
        "name": synapses.parameter,
        "layer": synapses.layers[0],
        "shared": list(synapses.layers[1:]),
        "type": types.get(synapses.layers[0], synapses.kind),
        "shape": list(synapses.shape),
        "post": synapses.post_axis,
        "pre": synapses.pre_axis,
        "rank": synapses.rank,
        "output": synapses.output,
        "gamma": synapses.gamma,
        "rules": serving,
        "distribution": str(synapses.config.fuzzy_lr_distribution),
        "replaces": "Rejuvenate" in serving,
    }
