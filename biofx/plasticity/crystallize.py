"""Crystallization: synapses that have settled, or are being torn, lose their plasticity."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from biofx.plasticity.rule import Context, Expression, Rule, Stage, pick, scalar, within
from biofx.synapses import Synapses

# The smallest normal float32: a factor that has come down to it does not fall further.
NEGLIGIBLE = 2.0**-126


def crystallize(
    times: Tensor,
    weight: Tensor,
    *,
    grad: Tensor,
    threshold: Tensor,
    mean_abs: Tensor,
    limit: int,
) -> Tensor:
    """Count once more the synapses with |g| < threshold·|w| or |g| > mean|w|.

    Args:
        times: how often each synapse has been dampened, an integer tensor.
        weight, grad: w and its unscaled gradient g, float32, of the same shape.
        threshold: a gradient below this multiple of the weight counts as settled, shape ().
        mean_abs: mean |w| of the whole parameter, shape ().
        limit: where counting stops.

    Returns:
        The new counts, of the type and shape of `times`.

    Source:
        Hofmann et al. 2025, Methods, "Synaptic stabilization (crystallization)".
    """
    size = grad.abs()
    settled = (size < threshold * weight.abs()) | (size > mean_abs)
    return times + (settled & (times < limit)).to(times.dtype)


def crystal_factors(times: Tensor, dampening: Tensor, *, floor: Tensor) -> Tensor:
    """f = max(dampeningⁿ, floor) of a synapse dampened n times; float32, shape of `times`."""
    return torch.exp2(times.float() * torch.log2(dampening)).maximum(floor)


def _crystal(
    weight: Tensor, index: Tensor, *, times: Tensor, dampening: Tensor, floor: Tensor
) -> Tensor:
    return crystal_factors(times, dampening, floor=floor)


@dataclass(frozen=True, kw_only=True)
class Crystallize(Rule):
    """Each time a synapse meets the condition of `crystallize`, its factor is dampened for good.

    Kept per synapse is how often that has happened: one byte, unless a dampening above 0.71 needs
    two. The schedule says when synapses are judged; their factors hold at every step. A synapse
    that `Rejuvenate` replaces starts afresh.

    Args:
        threshold, dampening, floor: as `crystal_thresh`, `dampening_factor` and `crystal_floor` of
            `BioConfig`; None takes the layer's configured value.
    """

    threshold: float | None = None
    dampening: float | None = None
    floor: float | None = None

    judges_gradients: ClassVar[bool] = True

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
        dtype = torch.uint8 if self._limit(context.synapses) < 256 else torch.int16
        context.state["times"] = torch.zeros(
            context.weight.shape, dtype=dtype, device=context.weight.device
        )

    @override
    def observe(self, context: Context) -> None:
        if context.grad is None:
            return
        grad = (context.grad.to_dense() if context.grad.is_sparse else context.grad).float()
        if context.unscale is not None:
            grad = grad * context.unscale
        times = context.state["times"]
        values = self._values(context.synapses)
        times.copy_(
            crystallize(
                times,
                context.weight.float(),
                grad=grad,
                threshold=scalar(values["threshold"], grad.device),
                mean_abs=context.statistics["mean_abs"],
                limit=self._limit(context.synapses),
            )
        )

    @override
    def expression(self, context: Context) -> Expression:
        values = self._values(context.synapses)
        device = context.weight.device
        inputs = {
            "times": context.state["times"],
            "dampening": scalar(values["dampening"], device),
            "floor": scalar(values["floor"], device),
        }
        return Expression(_crystal, inputs)

    @override
    def replaced(self, context: Context, mask: Tensor) -> None:
        context.state["times"].masked_fill_(mask, 0)

    @override
    def report(self, context: Context) -> dict[str, float]:
        times = context.state["times"]
        return {"crystallized": int(torch.count_nonzero(times)) / max(times.numel(), 1)}

    def _limit(self, synapses: Synapses) -> int:
        """Dampenings after which the factor is at its floor, or negligible."""
        values = self._values(synapses)
        if values["dampening"] == 1:
            return 1
        lowest = math.log(max(values["floor"], NEGLIGIBLE))
        return min(math.ceil(lowest / math.log(values["dampening"])), 2**15 - 1)

    def _values(self, synapses: Synapses) -> dict[str, float]:
        config = synapses.config
        return {
            "threshold": pick(self.threshold, config.crystal_thresh),
            "dampening": pick(self.dampening, config.dampening_factor),
            "floor": pick(self.floor, config.crystal_floor),
        }
