"""Crystallization: synapses that have settled, or are being torn, lose their plasticity."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from biofx.plasticity.kernels.base import Tensors
from biofx.plasticity.rules.rule import Context, Expression, Rule, Stage, pick, scalar
from biofx.plasticity.rules.validation import within
from biofx.synapses import Synapses


def crystallize(
    factors: Tensor,
    weight: Tensor,
    *,
    grad: Tensor,
    mean_abs: Tensor,
    threshold: Tensor,
    dampening: Tensor,
    floor: Tensor | None = None,
) -> Tensor:
    """f ← max(dampening·f, floor) where |g| < threshold·|w| or |g| > mean|w|.

    Args:
        factors: f, 1 for a synapse that never crystallized.
        weight, grad: w and its unscaled gradient g, of the shape of `factors`.
        mean_abs: mean |w| of the whole parameter, of shape ().
        threshold: a gradient below this multiple of the weight counts as settled, of shape ().
        dampening, floor: of shape (); None is a floor of 0.

    Returns:
        The new factors, without a unit.

    Source:
        Hofmann et al. 2025, Methods, "Synaptic stabilization (crystallization)".
    """
    size = grad.abs()
    settled = (size < threshold * weight.abs()) | (size > mean_abs)
    dampened = factors * dampening
    if floor is not None:
        # A floor above f (a checkpoint with another one is refused) would raise it: never.
        dampened = torch.minimum(factors, dampened.maximum(floor))
    return torch.where(settled, dampened, factors)


def _judged(index: Tensor, tensors: Tensors, inputs: Tensors) -> tuple[Tensor]:
    values = {**inputs}
    grad, unscale = tensors["grad"].float(), values.pop("unscale", None)
    if unscale is not None:
        grad = grad * unscale
    return (crystallize(tensors["factors"], tensors["weight"].float(), grad=grad, **values),)


def _kept(weight: Tensor, index: Tensor, *, factors: Tensor) -> Tensor:
    return factors


@dataclass(frozen=True, kw_only=True)
class Crystallize(Rule):
    """Each time a synapse meets the condition of `crystallize`, its factor is dampened for good.

    The schedule says when synapses are judged; their factors, 4 bytes per synapse, hold at every
    step. A synapse that `Rejuvenate` replaces starts afresh, with a factor of 1.

    Args:
        threshold: as `crystal_thresh` of `BioConfig`. None takes the layer's configured value, here
            and below.
        dampening: as `dampening_factor`.
        floor: as `crystal_floor`.
    """

    threshold: float | None = None
    dampening: float | None = None
    floor: float | None = None

    judges_gradients: ClassVar[bool] = True
    maps_only: ClassVar[bool] = True
    remembers: ClassVar = {"factors": (0.0, 1.0)}
    observes_with_factors: ClassVar[bool] = True

    @override
    def interval(self, synapses: Synapses) -> int:
        return synapses.config.crystallize_every

    @override
    def settings(self, synapses: Synapses) -> dict[str, Any]:
        values = self._values(synapses)
        within("[0, inf)", self.name, threshold=values["threshold"])
        within("(0, 1]", self.name, dampening=values["dampening"])
        within("[0, 1]", self.name, floor=values["floor"])
        return {**super().settings(synapses), **values}

    @override
    def active(self, context: Context, stage: Stage) -> bool:
        return stage == "factor" or super().active(context, stage)

    @override
    def needs(self, context: Context, stage: Stage) -> tuple[str, ...]:
        return ("mean_abs",) if stage == "observe" else ()

    @override
    def prepare(self, context: Context) -> None:
        context.state["factors"] = torch.ones(
            context.weight.shape, dtype=torch.float32, device=context.weight.device
        )

    @override
    def elementwise(self, synapses: Synapses) -> bool:
        return True

    @override
    def observe(self, context: Context) -> None:
        if context.grad is None:
            return
        grad = context.grad.to_dense() if context.grad.is_sparse else context.grad
        inputs: dict[str, Tensor] | None = context.memo.get("inputs")
        if inputs is None:
            values = self._values(context.synapses)
            if values["floor"] == 0:
                del values["floor"]  # a maximum and a minimum that would change nothing
            inputs = {name: scalar(value, grad.device) for name, value in values.items()}
            context.memo["inputs"] = inputs
        if context.unscale is not None:
            inputs = {**inputs, "unscale": context.unscale}
        factors = context.state["factors"]
        context.map(
            _judged,
            {"factors": factors, "weight": context.weight, "grad": grad},
            writes=("factors",),
            with_factors=True,
            inputs={
                "mean_abs": context.statistics["mean_abs"],
                **inputs,
            },
        )

    @override
    def expression(self, context: Context) -> Expression:
        return Expression(_kept, {"factors": context.state["factors"]})

    @override
    def replaced(self, context: Context, mask: Tensor) -> None:
        context.fill({"factors": context.state["factors"]}, mask, 1.0)

    @override
    def report(self, context: Context) -> dict[str, float]:
        factors = context.state["factors"]
        return {"crystallized": float((factors < 1).float().mean()) if factors.numel() else 0.0}

    def _values(self, synapses: Synapses) -> dict[str, float]:
        config = synapses.config
        return {
            "threshold": pick(self.threshold, config.crystal_thresh),
            "dampening": pick(self.dampening, config.dampening_factor),
            "floor": pick(self.floor, config.crystal_floor),
        }
