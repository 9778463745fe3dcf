"""Bio-augmented layers: the user's layer, with synapses."""

from typing import Any

import torch
from torch import Tensor, nn

from biofx.config import Distribution
from biofx.synapses.classes import Derived, become, has_any, mixins_of
from biofx.synapses.record import Synapses

# |output| above which a unit counts as active
ACTIVE = 0.01
# Name of the buffer of a layer that counts how often its units were.
COUNTS = "_biofx_activity"


class BioLayer(Derived):
    """A layer whose parameters carry synapses: same parameters, same keys, same result."""

    _biofx_prefix = "Bio"

    def extra_repr(self) -> str:
        """The layer's own text and the settings of its synapses."""
        own = super().extra_repr()
        notes = [
            f"{s.config.fuzzy_lr_distribution} ν={s.config.fuzzy_learning_rate_factor_nu:g}"
            + (f" Γ={s.gamma}" if s.gamma > 1 else "")
            for s in synapses_at(self)[:1]
        ]
        return ", ".join(part for part in (own, *notes) if part)


class OpenBioLayer(BioLayer):
    """One whose class and attributes leave the name `synapses` to biofx."""

    @property
    def synapses(self) -> tuple[Synapses, ...]:
        """What is known about this layer's synapses, one entry per parameter."""
        return synapses_at(self)


def synapses_at(layer: nn.Module) -> tuple[Synapses, ...]:
    """What is known about a layer's synapses, one entry per parameter."""
    held: tuple[Synapses, ...] = layer.__dict__.get("_biofx_synapses", ())
    return held


def augment(module: nn.Module, synapses: tuple[Synapses, ...]) -> None:
    """Turn a layer into a bio-augmented one, in place."""
    others = [mixin for mixin in mixins_of(module) if not issubclass(mixin, BioLayer)]
    become(module, *others, BioLayer if has_any(module, ("synapses",)) else OpenBioLayer)
    module.__dict__["_biofx_synapses"] = synapses


def count_activity(module: nn.Module, args: Any, output: Any) -> None:
    """Forward hook: how often each output unit was active in training.

    Adds to the layer's buffer `COUNTS` of shape (output units,). A layer that has another
    number of units by now is left alone, as its synapses are.
    """
    if not module.training:
        return
    with torch.no_grad():
        axis: int = module.__dict__["_biofx_unit_axis"]
        active = (output.detach().abs() > ACTIVE).movedim(axis, 0).flatten(1).sum(1)
        counts = module.get_buffer(COUNTS)
        if counts.shape == active.shape:
            counts.add_(active)


def track_activity(module: nn.Module, units: int, axis: int) -> None:
    """Let a layer count how often its output units are active (see `Distribution.ACTIVITY`).

    The buffer is not saved with the model; the scheduler's state holds what it needs.
    """
    device = next(module.parameters()).device
    counts: Tensor = torch.zeros(units, dtype=torch.int64, device=device)
    module.register_buffer(COUNTS, counts, persistent=False)
    module.__dict__["_biofx_unit_axis"] = axis
    module.register_forward_hook(count_activity)


def wants_activity(synapses: Synapses) -> bool:
    return synapses.config.fuzzy_lr_distribution is Distribution.ACTIVITY


def stop_tracking(module: nn.Module) -> None:
    """Take from a layer what `track_activity` has given it."""
    if module._buffers.pop(COUNTS, None) is not None:
        module._non_persistent_buffers_set.discard(COUNTS)
    for key, hook in list(module._forward_hooks.items()):
        if hook is count_activity:
            del module._forward_hooks[key]
