"""What the functions of rules return, looked at: anybody may write a rule."""

from typing import Any

import torch
from torch import Tensor

from biofx.errors import PlasticityError
from biofx.plasticity.rules.rule import Rule
from biofx.plasticity.scheduler.binding import ParameterStep


def checked_factor(factor: Any, rule: Rule, site: ParameterStep) -> Tensor:
    """A factor as floating-point numbers; a mask is a factor of 0 and 1.

    Raises:
        PlasticityError: it is no tensor, does not broadcast to the weight, or is not finite.
    """
    where = f"{rule.name}.factor gave"
    if not (isinstance(factor, Tensor) and _fits(factor, site.weight)):
        raise PlasticityError(
            f"{where} {_described(factor)} for {site.binding.name}; give a tensor that broadcasts "
            f"to {tuple(site.weight.shape)}, or None"
        )
    numbers = factor if factor.is_floating_point() else factor.float()
    if not torch.isfinite(numbers).all():
        # By parameters: what a factor is in an arena's padding is nobody's.
        for name, part in site.binding.parts(numbers.expand(site.weight.shape)):
            bad = int((~torch.isfinite(part)).sum())
            if bad:
                raise PlasticityError(
                    f"{where} {bad} of {part.numel()} factors that are not finite for {name}; "
                    "the rules have written nothing"
                )
    return numbers


def checked_mask(mask: Any, rule: Rule, site: ParameterStep, stage: str) -> Tensor:
    """A mask of replaced synapses, of the weight's shape.

    Raises:
        PlasticityError: it is no boolean tensor, or does not broadcast to the weight.
    """
    if isinstance(mask, Tensor) and mask.dtype == torch.bool and _fits(mask, site.weight):
        # The mask itself, if it can be: what has been left to be done may have yet to write it.
        return mask if mask.shape == site.weight.shape else mask.expand(site.weight.shape)
    raise PlasticityError(
        f"{rule.name}.{stage} gave {_described(mask)} for {site.binding.name}; give a boolean "
        f"tensor that broadcasts to {tuple(site.weight.shape)}, or None"
    )


def note_place(error: Exception, rule: Rule, site: ParameterStep) -> None:
    """Let an error of a rule's own code say which rule it was, and at which parameter."""
    if not isinstance(error, PlasticityError):
        error.add_note(f"(in the rule {rule.name}, at the parameter {site.binding.name})")


def _fits(value: Tensor, weight: Tensor) -> bool:
    """Whether a tensor broadcasts to a weight's shape."""
    try:
        return value.shape == weight.shape or (
            torch.broadcast_shapes(value.shape, weight.shape) == weight.shape
        )
    except RuntimeError:
        return False


def _described(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)} and type {value.dtype}"
    return f"{value!r}"
