"""Restoring: synapses are pulled back towards the weights that they began with."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from biofx.plasticity.kernels.base import Tensors, wide
from biofx.plasticity.rules.rule import Context, Rule, pick, scalar
from biofx.plasticity.rules.validation import within
from biofx.synapses import Synapses


def restore(weight: Tensor, start: Tensor, strength: Tensor) -> Tensor:
    """w ← w + k(w₀ − w).

    Args:
        weight, start: w and w₀, of one shape.
        strength: k, of shape ().

    Source:
        Kumar et al. 2023, Maintaining plasticity in continual learning via regenerative
        regularization; there as a penalty in the loss (L2 init), here decoupled from the gradient.
    """
    return weight + strength * (start - weight)


def _restored(index: Tensor, tensors: Tensors, inputs: Tensors) -> tuple[Tensor]:
    return (restore(wide(tensors["weight"]), wide(tensors["start"]), inputs["strength"]),)


@dataclass(frozen=True, kw_only=True)
class Restore(Rule):
    """After each update, w ← w + k(w₀ − w), with the weights w₀ at the scheduler's making.

    Weights that are no longer pulled by a gradient return to where learning began, where a network
    is known to learn well. It keeps a copy of the weights. With pre-trained weights it holds the
    model near them. About a third of the learning rate is a good k under Adam.

    Args:
        strength: k, as `restore_strength` of `BioConfig`; None takes the layer's configured value.
    """

    strength: float | None = None

    maps_only: ClassVar[bool] = True
    remembers: ClassVar = {"start": (-math.inf, math.inf)}

    @override
    def elementwise(self, synapses: Synapses) -> bool:
        return True

    @override
    def interval(self, synapses: Synapses) -> int:
        return int(synapses.config.restore_strength > 0)

    @override
    def settings(self, synapses: Synapses) -> dict[str, Any]:
        strength = self._strength(synapses)
        within("(0, 1]", self.name, strength=strength)
        return {**super().settings(synapses), "strength": strength}

    @override
    def prepare(self, context: Context) -> None:
        context.state["start"] = context.weight.clone()

    @override
    def begin(self, context: Context) -> None:
        context.state["start"].copy_(context.weight)

    @override
    def after_step(self, context: Context) -> None:
        context.map(
            _restored,
            {"weight": context.weight, "start": context.state["start"]},
            writes=("weight",),
            with_factors=True,
            inputs={"strength": scalar(self._strength(context.synapses), context.weight.device)},
        )

    @override
    def report(self, context: Context) -> dict[str, float]:
        if not context.weight.numel():
            return {"distance": 0.0}
        away = torch.linalg.vector_norm(context.weight.float() - context.state["start"].float())
        return {"distance": float(away) / context.weight.numel() ** 0.5}

    def _strength(self, synapses: Synapses) -> float:
        strength: float = pick(self.strength, synapses.config.restore_strength)
        return strength
