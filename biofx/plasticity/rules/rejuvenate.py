"""Rejuvenation: weak synapses disappear and new ones form (spontaneous spine remodelling)."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from typing_extensions import override

from biofx.plasticity.kernels.base import Tensors, wide
from biofx.plasticity.numerics import random
from biofx.plasticity.numerics.shards import Shard, all_sum
from biofx.plasticity.rules.rule import Context, Rule, Stage, pick, scalar
from biofx.plasticity.rules.validation import require, within
from biofx.synapses import Synapses

LAWS = ("uniform", "lognormal")
# Under a cap, scores of synapses below this are ranked by chance: zeros would all have the same.
AS_GOOD_AS_ZERO = 2.0**-12
BINS = 4096
LEVELS = 2  # of 12 bits each: their steps are still exact in float32


def resilience(
    weight: Tensor,
    noise: Tensor,
    *,
    max_abs: Tensor,
    d: Tensor,
    least: Tensor | None = None,
) -> Tensor:
    """|w|/|σz| with σ = max|w|/d: below 1, the synapse is lost.

    That has probability P(|N(0, σ²)| > |w|) = erfc(|w|/(σ√2)).

    Args:
        weight: w.
        noise: z, standard normals of the weight's shape.
        max_abs: max|w| of the whole parameter, of shape ().
        d: d_re, of shape (); with a larger one fewer synapses are lost.
        least: |w|/σ of smaller synapses is taken for this, of shape (); None is 0.

    Returns:
        Of the weight's shape; NaN if all weights are 0.

    Source:
        Hofmann et al. 2025, Methods, "Synaptic rejuvenation".
    """
    size = weight.abs() * d
    if least is not None:
        size = size.maximum(least * max_abs)
    return size / (max_abs * noise.abs())


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
    weight: Tensor, fresh: Tensor, *, score: Tensor, limit: Tensor
) -> tuple[Tensor, Tensor]:
    """Replace the synapses whose `resilience` lies below a limit.

    Args:
        weight: w.
        fresh: what replaces a synapse.
        score: of `resilience`.
        limit: 1, or less to replace fewer (as if d were larger); of shape ().

    Returns:
        The new weights, and a mask of those that were replaced.
    """
    mask = score < limit
    return torch.where(mask, fresh, weight), mask


def _score(index: Tensor, weight: Tensor, inputs: Tensors) -> Tensor:
    noise = random.normal(inputs["key"], index)
    return resilience(
        weight, noise, max_abs=inputs["max_abs"], d=inputs["d"], least=inputs.get("least")
    )


def _renewed_uniform(index: Tensor, tensors: Tensors, inputs: Tensors) -> tuple[Tensor, ...]:
    weight = wide(tensors["weight"])
    fresh = uniform_synapses(random.symmetric(inputs["key"], index), inputs["max_abs"])
    score = _score(index, weight, inputs)
    return rejuvenate(weight, fresh, score=score, limit=inputs["limit"])


def _renewed_lognormal(index: Tensor, tensors: Tensors, inputs: Tensors) -> tuple[Tensor, ...]:
    weight = wide(tensors["weight"])
    fresh = lognormal_synapses(
        random.normal(inputs["key"], index, draw=1),
        random.symmetric(inputs["key"], index),
        mean=inputs["log_mean"],
        std=inputs["log_std"],
    )
    score = _score(index, weight, inputs)
    return rejuvenate(weight, fresh, score=score, limit=inputs["limit"])


@dataclass(frozen=True, kw_only=True)
class Rejuvenate(Rule):
    """After the update, synapses are replaced by new ones, weak ones most likely.

    A new synapse starts with zeroed optimizer state (every tensor of the parameter's shape;
    statistics per row or column, as Adafactor's, stay) and full plasticity. LBFGS starts afresh.
    A parameter whose weights are all 0 is left alone.

    Applied often, the paper's law destroys what Adam has learned: use a long interval, or
    `max_share`, which allows the least resilient only to be replaced, as if `d` were just large
    enough: never more than that share of the parameter. Chance decides among weights of 0.

    Args:
        d, law, max_share: as `rejuvenation_parameter_dre`, `rejuvenate_law` and
            `rejuvenate_max_share` of `BioConfig`; None takes the layer's configured value.
    """

    d: float | None = None
    law: Literal["uniform", "lognormal"] | None = None
    max_share: float | None = None

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
    def after_step(self, context: Context) -> Tensor | None:
        d, law, max_share = self._values(context.synapses)
        weight, shard = context.weight, context.shard
        inputs = {
            "key": context.key("synapses"),
            "d": scalar(d, weight.device),
            "limit": scalar(1.0, weight.device),
            **context.statistics,
        }
        if max_share < 1:
            inputs["least"] = scalar(AS_GOOD_AS_ZERO, weight.device)
            scores = _score(context.index, wide(weight), inputs)
            inputs["limit"] = _capped(scores, shard, int(max_share * shard.numel))
        mask = torch.empty(weight.shape, dtype=torch.bool, device=weight.device)
        # All weights 0: scores are NaN, and nothing is replaced.
        context.map(
            _renewed_uniform if law == "uniform" else _renewed_lognormal,
            {"weight": weight, "mask": mask},
            writes=("weight", "mask"),
            inputs=inputs,
        )
        # Divided when somebody asks: not at each step.
        context.memo["replaced"] = context.kernels.count(mask)
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


def _capped(score: Tensor, shard: Shard, most: int) -> Tensor:
    """The largest t, in steps of 2⁻²⁴, such that at most `most` scores of all shards lie below it.

    Only counts cross process borders (twice 4096 integers), so that shards agree exactly.
    """
    chosen = score[score < 1].double()
    low, width, below = 0.0, 1.0, 0
    for _ in range(LEVELS):
        width /= BINS
        place = ((chosen - low) / width).floor()
        place = place[(place >= 0) & (place < BINS)].long()
        running = all_sum(torch.bincount(place, minlength=BINS), shard).cumsum(0) + below
        full = int((running <= most).sum())
        if full:
            below = int(running[full - 1])
        low += full * width
        if full == BINS:
            break
    return scalar(low, score.device)
