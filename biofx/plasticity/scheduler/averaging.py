"""Schedule-free optimizers: the weights are a mean of places, and a factor acts on those exactly.

Defazio et al. 2024, The road less scheduled, keep z, the place of the plain optimizer, beside y,
the weights at which gradients are taken; x is the mean of all z:

    z ← z − lr·g,   x ← (1 − c)·x + c·z,   y = (1 − β)·z + β·x.

A factor f is a learning rate if it multiplies the move of z; then x and y follow:

    z′ = z_before + f·(z − z_before),   y′ = y + (1 − β + β·c)·(z′ − z).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

PLACE = "z"  # its entry in the state
SUM = "weight_sum"  # of a group: what the mean has been divided by; c is the last part of it


@dataclass(frozen=True)
class Mean:
    """What one group has for its next step.

    Attributes:
        beta: β.
        total: the sum of all weights of the mean so far.
    """

    beta: float
    total: float

    def share(self, group: Mapping[str, Any]) -> float:
        """c of the step that the group has taken since."""
        total = float(group[SUM])
        return 1 - self.total / total if total else 0.0


def mean_of(group: Mapping[str, Any]) -> Mean | None:
    """What a schedule-free group has before a step; None if it is none."""
    beta = group["betas"][0] if "betas" in group else group.get("momentum")
    if SUM not in group or not isinstance(beta, float | int):
        return None
    return Mean(float(beta), float(group[SUM]))


def predicted(
    before: Tensor, place_before: Tensor, place: Tensor, *, beta: float, share: float
) -> Tensor:
    """y after a step that has taken z from `place_before` to `place`."""
    pull = share * (place_before - before)
    return before + pull + (1 - beta + beta * share) * (place - place_before)


def rescale(
    weight: Tensor,
    place: Tensor,
    place_before: Tensor,
    factors: Tensor,
    *,
    beta: float,
    share: float,
) -> None:
    """Multiply the move of z by factors, in place, and let the weights follow.

    Args:
        weight, place: y and z after the optimizer's step.
        place_before: z before it.
        factors: broadcastable to the weight; where they are 1, nothing changes.
        beta, share: β and c.
    """
    moved = torch.lerp(place_before, place, factors.expand_as(place).to(place.dtype))
    weight.add_((moved - place).to(weight.dtype), alpha=1 - beta + beta * share)
    place.copy_(moved)
