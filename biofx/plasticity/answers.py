"""What the functions of rules return, looked at: anybody may write a rule."""

from typing import Any

import torch
from torch import Tensor

from biofx.errors import PlasticityError
from biofx.plasticity.binding import Site
from biofx.plasticity.rule import Rule


def checked_factor(factor: Any, rule: Rule, site: Site) -> Tensor:
    """A factor as floating-point numbers; a mask is a factor of 0 and 1.

    Raises:
        PlasticityError: it is no tensor, does not broadcast to the weight, or is not finite.
    """
    where = f"{rule.name}.factor gave"
    if not _fits(factor, site.weight):
        raise PlasticityError(
            f"{where} {_described(factor)} for {site.binding.name}; give a tensor that broadcasts "
            f"to {tuple(site.weight.shape)}, or None"
        )
    numbers: Tensor = factor if factor.is_floating_point() else factor.float()
    bad = int((~torch.isfinite(numbers)).sum())
    if bad:
        raise PlasticityError(
            f"{where} {bad} of {numbers.numel()} factors that are not finite for "
            f"{site.binding.name}; the rules have written nothing"
        )
    return numbers


def checked_mask(mask: Any, rule: Rule, site: Site) -> Tensor:
    """A mask of replaced synapses, of the weight's shape.

    Raises:
        PlasticityError: it is no boolean tensor, or does not broadcast to the weight.
    """
    known = isinstance(mask, Tensor) and mask.dtype == torch.bool
    if known and mask.shape == site.weight.shape:  # as that of the rules that come with biofx
        own: Tensor = mask
        return own
    if not (known and _fits(mask, site.weight)):
        raise PlasticityError(
            f"{rule.name}.after_step gave {_described(mask)} for {site.binding.name}; give a "
            f"boolean tensor that broadcasts to {tuple(site.weight.shape)}, or None"
        )
    wide: Tensor = mask.expand(site.weight.shape)
    return wide


def note_place(error: Exception, rule: Rule, site: Site) -> None:
    """Let an error of a rule's own code say which rule it was, and at which parameter."""
    if not isinstance(error, PlasticityError):
        error.add_note(f"(in the rule {rule.name}, at the parameter {site.binding.name})")


def _fits(value: Any, weight: Tensor) -> bool:
    """Whether a value is a tensor that broadcasts to a weight's shape."""
    if not isinstance(value, Tensor) or value.dim() > weight.dim():
        return False
    sizes = zip(reversed(value.shape), reversed(weight.shape), strict=False)
    return all(own in (1, whole) for own, whole in sizes)


def _described(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)} and type {value.dtype}"
    return f"{value!r}"
