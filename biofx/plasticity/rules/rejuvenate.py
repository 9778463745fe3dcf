"""Rejuvenation: weak synapses disappear and new ones form (spontaneous spine remodelling)."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from typing_extensions import override

from biofx.plasticity.kernels.base import Tensors, wide
from biofx.plasticity.numerics import random
from biofx.plasticity.rules.rule import Context, Rule, Stage, pick, scalar
from biofx.plasticity.rules.validation import require, within
from biofx.synapses import Synapses

LAWS = ("uniform", "lognormal")
SPARING = 1  # the draw of uniforms that a cap goes by


def resilience(
    weight: Tensor,
    noise: Tensor,
    *,
    max_abs: Tensor,
    d: Tensor,
) -> Tensor:
    """|w|/|σz| with σ = max|w|/d: below 1, the synapse is lost.

    That has probability P(|N(0, σ²)| > |w|) = erfc(|w|/(σ√2)).

    Args:
        weight: w.
        noise: z, standard normals of the weight's shape.
        max_abs: max|w| of the whole parameter, of shape ().
        d: d_re, of shape (); with a larger one fewer synapses are lost.

    Returns:
        Of the weight's shape; NaN if all weights are 0.

    Source:
        Hofmann et al. 2025, Methods, "Synaptic rejuvenation".
    """
    return weight.abs() * d / (max_abs * noise.abs())


def loss_probability(weight: Tensor, *, max_abs: Tensor, d: Tensor) -> Tensor:
    """P(`resilience` < 1) = erfc(|w|/(σ√2)) with σ = max|w|/d; NaN if all weights are 0."""
    return torch.erfc(weight.abs() * (d * math.sqrt(0.5) / max_abs))


def uniform_synapses(draw: Tensor, max_abs: Tensor) -> Tensor:
    """New weights on [−max|w|, max|w|) from uniforms on [−1, 1): the paper's law."""
    return max_abs * draw


def lognormal_synapses(noise: Tensor, sign: Tensor, *, mean: Tensor, std: Tensor) -> Tensor:
    """New weights ±exp(mean + std·z): sizes distributed as the layer's own.

    Args:
        noise: z, standard normals.
        sign: numbers as likely positive as negative, whose signs the weights get.
        mean, std: moments of ln|w| over the layer's weights that are not 0, of shape ().
    """
    return torch.exp(mean + std * noise).copysign(sign)


def rejuvenate(
    weight: Tensor, fresh: Tensor, *, score: Tensor, spared: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Replace the synapses whose `resilience` lies below 1, but for those that are spared.

    Args:
        weight: w.
        fresh: what replaces a synapse.
        score: of `resilience`.
        spared: mask of those that a cap lets live; None is none.

    Returns:
        The new weights, and a mask of those that were replaced.
    """
    mask = score < 1
    if spared is not None:
        mask = mask & ~spared
    return torch.where(mask, fresh, weight), mask


def _score(index: Tensor, weight: Tensor, inputs: Tensors) -> Tensor:
    noise = random.normal(inputs["key"], index)
    return resilience(weight, noise, max_abs=inputs["max_abs"], d=inputs["d"])


def _spared(index: Tensor, inputs: Tensors) -> Tensor | None:
    if "chance" not in inputs:
        return None
    # Bits that the new weight is not drawn from: otherwise the cap would choose among its values.
    return random.uniform(inputs["key"], index, draw=SPARING) >= inputs["chance"]


def _probability(weight: Tensor, inputs: Tensors) -> Tensor:
    return loss_probability(wide(weight), max_abs=inputs["max_abs"], d=inputs["d"])


def _renewed_uniform(index: Tensor, tensors: Tensors, inputs: Tensors) -> tuple[Tensor, ...]:
    weight = wide(tensors["weight"])
    fresh = uniform_synapses(random.symmetric(inputs["key"], index), inputs["max_abs"])
    score = _score(index, weight, inputs)
    return rejuvenate(weight, fresh, score=score, spared=_spared(index, inputs))


def _renewed_lognormal(index: Tensor, tensors: Tensors, inputs: Tensors) -> tuple[Tensor, ...]:
    weight = wide(tensors["weight"])
    fresh = lognormal_synapses(
        random.normal(inputs["key"], index, draw=1),
        random.symmetric(inputs["key"], index),
        mean=inputs["log_mean"],
        std=inputs["log_std"],
    )
    score = _score(index, weight, inputs)
    return rejuvenate(weight, fresh, score=score, spared=_spared(index, inputs))


@dataclass(frozen=True, kw_only=True)
class Rejuvenate(Rule):
    """After the update, synapses are replaced by new ones, weak ones most likely.

    A new synapse starts with zeroed optimizer state (every tensor of the parameter's shape;
    statistics per row or column, as Adafactor's, stay) and full plasticity. LBFGS starts afresh.
    A parameter whose weights are all 0 is left alone.

    Applied often, the paper's law destroys what Adam has learned: use a long interval, or
    `max_share`, the largest share of a parameter that a call replaces in expectation: every
    synapse's probability p is multiplied by min(1, max_share·n/Σp), so that weak ones stay as much
    more likely than strong ones as they are.

    Args:
        d, law, max_share: as `rejuvenation_parameter_dre`, `rejuvenate_law` and
            `rejuvenate_max_share` of `BioConfig`; None takes the layer's configured value.
    """

    d: float | None = None
    law: Literal["uniform", "lognormal"] | None = None
    max_share: float | None = None

    maps_only: ClassVar[bool] = True
    remembers: ClassVar = {}

    @override
    def interval(self, synapses: Synapses) -> int:
        return synapses.config.rejuvenate_every

    @override
    def settings(self, synapses: Synapses) -> dict[str, Any]:
        d, law, max_share = self._values(synapses)
        within("(0, inf)", self.name, d=d)
        require(law in LAWS, self.name, f"law={law!r} is not one of {LAWS}")
        within("(0, 1]", self.name, max_share=max_share)
        return {**super().settings(synapses), "d": d, "law": law, "max_share": max_share}

    @override
    def needs(self, context: Context, stage: Stage) -> tuple[str, ...]:
        if stage != "after_step":
            return ()
        law = self._values(context.synapses)[1]
        return ("max_abs", "log_mean", "log_std") if law == "lognormal" else ("max_abs",)

    @override
    def elementwise(self, synapses: Synapses) -> bool:
        return True

    @override
    def total(self, context: Context) -> Tensor | None:
        """Σp, how many synapses would be lost without a cap."""
        d, _, max_share = self._values(context.synapses)
        if max_share == 1:
            return None
        weight = context.weight
        inputs = {"d": scalar(d, weight.device), "max_abs": context.statistics["max_abs"]}
        return context.sum(_probability, inputs)

    @override
    def after_step(self, context: Context) -> Tensor | None:
        d, law, max_share = self._values(context.synapses)
        weight = context.weight
        inputs = {
            "key": context.key("synapses"),
            "d": scalar(d, weight.device),
            **context.statistics,
        }
        if context.total is not None:
            inputs["chance"] = (max_share * context.shard.numel / context.total).float()
        mask = torch.empty(weight.shape, dtype=torch.bool, device=weight.device)
        # All weights 0: scores are NaN, and nothing is replaced.
        context.map(
            _renewed_uniform if law == "uniform" else _renewed_lognormal,
            {"weight": weight, "mask": mask},
            writes=("weight", "mask"),
            inputs=inputs,
            with_factors=True,
        )
        # Divided when somebody asks: not at each step.
        context.memo["replaced"] = context.count(mask)
        return mask

    @override
    def report(self, context: Context) -> dict[str, float]:
        replaced = context.memo.get("replaced")
        if replaced is None:
            return {}
        return {"turnover": float(replaced) / max(context.weight.numel(), 1)}

    def _values(self, synapses: Synapses) -> tuple[float, str, float]:
        config = synapses.config
        return (
            pick(self.d, config.rejuvenation_parameter_dre),
            pick(self.law, config.rejuvenate_law),
            pick(self.max_share, config.rejuvenate_max_share),
        )
