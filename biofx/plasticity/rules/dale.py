"""Dale's principle: all outgoing synapses of a unit have one sign."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from typing_extensions import override

from biofx.plasticity.kernels.base import Tensors, wide
from biofx.plasticity.numerics import random
from biofx.plasticity.rules.rule import STATIC, Context, Rule, pick
from biofx.plasticity.rules.validation import require
from biofx.synapses import Synapses


def dale_signs(draw: Tensor) -> Tensor:
    """+1 or −1 per unit, each with probability ½, from uniforms on [0, 1); shape of `draw`."""
    return torch.where(draw < 0.5, -1.0, 1.0)


def project_dale(weight: Tensor, signs: Tensor) -> tuple[Tensor, Tensor]:
    """Set synapses whose sign is not their unit's to 0: w ← sign·max(sign·w, 0).

    Args:
        weight: w.
        signs: ±1, broadcastable to the weight.

    Returns:
        The new weights, and a mask of those that were changed.

    Source:
        Hofmann et al. 2025, Methods, "Dale's principle".
    """
    wrong = weight * signs < 0
    return torch.where(wrong, 0.0, weight), wrong


def _projected(index: Tensor, tensors: Tensors, inputs: Tensors) -> tuple[Tensor, ...]:
    weight, signs = wide(tensors["weight"]), inputs["signs"]
    if "fresh" in inputs:
        weight = torch.where(inputs["fresh"], weight.abs() * signs, weight)
    return project_dale(weight, signs)


@dataclass(frozen=True, kw_only=True)
class DalesPrinciple(Rule):
    """Gives each unit a sign, and after each update sets synapses of the other sign to 0.

    When the scheduler is made, weights become |w|·sign, with signs that are a function of the
    scheduler's seed and the parameter's name alone. Synapses that `Rejuvenate` has just replaced
    get the unit's sign instead of becoming 0.

    Args:
        axis: whose sign it is. "pre": all outgoing weights of a unit agree (columns of a linear
            layer); "post": all incoming ones. None takes the configured `dale_axis`.
    """

    axis: Literal["pre", "post"] | None = None

    maps_only: ClassVar[bool] = True
    remembers: ClassVar = {}

    @override
    def interval(self, synapses: Synapses) -> int:
        return int(synapses.config.apply_dales_principle)

    @override
    def settings(self, synapses: Synapses) -> dict[str, Any]:
        axis = self._axis(synapses)
        require(axis in ("pre", "post"), self.name, f"axis={axis!r} must be 'pre' or 'post'")
        require(
            len(synapses.shape) > 1 and synapses.pre_axis != synapses.post_axis,
            self.name,
            f"{synapses.parameter} ({synapses.kind}) of shape {synapses.shape} does not connect "
            "units to units; leave it out with only=… or the configuration's overrides",
        )
        return {**super().settings(synapses), "axis": axis}

    @override
    def initialise(self, context: Context) -> None:
        context.weight.abs_().mul_(self.signs(context).to(context.weight.dtype))

    @override
    def elementwise(self, synapses: Synapses) -> bool:
        return True

    @override
    def after_step(self, context: Context) -> None:
        weight = context.weight
        wrong = torch.empty(weight.shape, dtype=torch.bool, device=weight.device)
        inputs = {"signs": context.constant("signs", self.signs)}
        if context.fresh is not None:
            inputs["fresh"] = context.fresh
        context.map(
            _projected,
            {"weight": weight, "wrong": wrong},
            writes=("weight", "wrong"),
            inputs=inputs,
            with_factors=True,
        )
        context.events["dale_projected"] = context.count(wrong)

    def signs(self, context: Context) -> Tensor:
        """±1 per unit, broadcastable to the weight."""
        synapses = context.synapses
        axis = synapses.pre_axis if self._axis(synapses) == "pre" else synapses.post_axis
        unit = random.counters(context.units(axis), context.weight.device)
        draw = random.uniform(context.key("signs", step=STATIC), unit)
        return context.per_unit(dale_signs(draw), axis)

    def _axis(self, synapses: Synapses) -> str:
        axis: str = pick(self.axis, synapses.config.dale_axis)
        return axis
