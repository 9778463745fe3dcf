"""Volume-dependent rates: large synapses are stable, small ones move."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from biofx.plasticity.numerics import random
from biofx.plasticity.numerics.polynomials import exp_near_zero
from biofx.plasticity.rules.rule import Context, Expression, Rule, Stage, pick, scalar
from biofx.plasticity.rules.validation import within
from biofx.synapses import Synapses


def _exp(x: Tensor, rate: Tensor) -> Tensor:
    return torch.exp(x.mul_(rate))


def volume_factors(
    weight: Tensor,
    noise: Tensor,
    *,
    base: Tensor,
    stability: Tensor,
    variability: Tensor,
    exp: Callable[[Tensor, Tensor], Tensor] = _exp,
) -> Tensor:
    """f = |N(μ, (variability·μ)²)| with μ = base·exp(−stability·v), volume v = |w|/(1 + |w|).

    Args:
        weight: w, before the update.
        noise: standard normals of the weight's shape.
        base: factor of a synapse of weight 0, before the noise.
        stability: how fast the factor falls with the volume.
        variability: standard deviation of the factor relative to its mean.
        exp: gives eˣʳ of x, which it may overwrite, and r; x·r lies between −stability and 0.

    Returns:
        Factors of the weight's shape, ≥ 0.

    Source:
        Hofmann et al. 2025, Methods, "Volume-dependent learning rates".
    """
    size = weight.abs()
    falling = exp(size / (1 + size), -stability)
    # In place, because fresh memory costs more than the arithmetic.
    return (variability * base * noise).add_(base).mul_(falling).abs_()


def _volume(
    weight: Tensor,
    index: Tensor,
    *,
    key: Tensor,
    base: Tensor,
    stability: Tensor,
    variability: Tensor,
    exp: Callable[[Tensor, Tensor], Tensor] = _exp,
) -> Tensor:
    noise = random.normal(key, index)
    return volume_factors(
        weight, noise, base=base, stability=stability, variability=variability, exp=exp
    )


# For compiled kernels, and a stability that keeps the exponent within what this one is made for.
_near_zero = functools.partial(_volume, exp=exp_near_zero)
STEEPEST = 16


@dataclass(frozen=True, kw_only=True)
class VolumeDependentRates(Rule):
    """Multiplies each update by `volume_factors`, drawn anew at each step.

    With the default `base` of 0.1 the effective learning rate is about a tenth of the optimizer's:
    raise the one or the other.

    Args:
        base: as `base_lr` of `BioConfig`. None takes the layer's configured value, here and below.
        stability: as `stability_factor`.
        variability: as `lr_variability`.
    """

    base: float | None = None
    stability: float | None = None
    variability: float | None = None

    remembers: ClassVar = {}

    @override
    def interval(self, synapses: Synapses) -> int:
        return synapses.config.volume_dependent_every

    @override
    def settings(self, synapses: Synapses) -> dict[str, Any]:
        values = self._values(synapses)
        within("(0, 1]", self.name, base=values["base"])
        within("[0, inf)", self.name, stability=values["stability"])
        within("[0, inf)", self.name, variability=values["variability"])
        return {**super().settings(synapses), **values}

    @override
    def needs(self, context: Context, stage: Stage) -> tuple[str, ...]:
        # Only to refuse non-finite weights before anything is written.
        return ("finite",) if stage == "factor" else ()

    @override
    def elementwise(self, synapses: Synapses) -> bool:
        return True

    @override
    def expression(self, context: Context) -> Expression:
        inputs: dict[str, Tensor] | None = context.memo.get("inputs")
        if inputs is None:
            values = self._values(context.synapses)
            device = context.weight.device
            inputs = {name: scalar(value, device) for name, value in values.items()}
            context.memo["inputs"] = inputs
            context.memo["steep"] = values["stability"] > STEEPEST
        near_zero = context.kernels.compiled and not context.memo["steep"]
        function = _near_zero if near_zero else _volume
        return Expression(function, {"key": context.key("noise"), **inputs}, rounded=True)

    def _values(self, synapses: Synapses) -> dict[str, float]:
        config = synapses.config
        return {
            "base": pick(self.base, config.base_lr),
            "stability": pick(self.stability, config.stability_factor),
            "variability": pick(self.variability, config.lr_variability),
        }
