"""Rejuvenation: weak synapses disappear and new ones form (spontaneous spine remodelling)."""

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from typing_extensions import override

from biofx.plasticity import random
from biofx.plasticity.rule import Context, Rule, Stage, pick, require, scalar, within
from biofx.plasticity.shards import Shard, all_sum
from biofx.synapses import Synapses

LAWS = ("uniform", "lognormal")
BINS = 4096
LEVELS = 2  # of 12 bits each: their steps are still exact in float32


def removal_probability(weight: Tensor, max_abs: Tensor, *, d: Tensor) -> Tensor:
    """P(|N(0, σ²)| > |w|) = erfc(|w|/(σ√2)) with σ = max|w|/d; shape of `weight`.

    Source:
        Hofmann et al. 2025, Methods, "Synaptic rejuvenation" (d is d_re).
    """
    return torch.erfc(weight.abs() * (d / (max_abs * math.sqrt(2.0))))


def uniform_synapses(draw: Tensor, max_abs: Tensor) -> Tensor:
    """New weights on [−max|w|, max|w|) from uniforms on [0, 1): the paper's law."""
    return max_abs * (2 * draw - 1)


def lognormal_synapses(noise: Tensor, sign: Tensor, *, mean: Tensor, std: Tensor) -> Tensor:
    """New weights ±exp(mean + std·z): sizes distributed as the layer's own.

    Args:
        noise: z, standard normals.
        sign: uniforms on [0, 1); below ½ the weight is negative.
        mean, std: moments of ln|w| over the layer's weights that are not 0, of shape ().
    """
    return torch.exp(mean + std * noise).copysign(sign - 0.5)


def rejuvenate(
    weight: Tensor, fresh: Tensor, *, score: Tensor, share: Tensor
) -> tuple[Tensor, Tensor]:
    """Replace the synapses whose score lies below `share`.

    Args:
        weight: w.
        fresh: what replaces a synapse.
        score: a uniform draw on [0, 1) over the synapse's `removal_probability`.
        share: 1, or less to replace fewer; of shape ().

    Returns:
        The new weights, and a mask of those that were replaced.
    """
    mask = score < share
    return torch.where(mask, fresh, weight), mask


@dataclass(frozen=True, kw_only=True)
class Rejuvenate(Rule):
    """After the update, synapses are replaced by new ones, weak ones most likely.

    A new synapse starts with zeroed optimizer state (every tensor of the parameter's shape;
    statistics per row or column, as Adafactor's, stay) and full plasticity. LBFGS starts afresh.
    A parameter whose weights are all 0 is left alone.

    Applied often, the paper's law destroys what Adam has learned: use a long interval, or
    `max_share`. Of the synapses chosen, those whose draw lies lowest relative to their probability
    are replaced, as many as `max_share` of the parameter allows: never more, and at most one in
    16 million fewer.

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
        key, index = context.key("rejuvenate"), context.index
        weight = context.weight.float()
        device = weight.device
        max_abs = context.statistics["max_abs"]
        # All weights 0: the probability, and with it the score, is NaN, and nothing is replaced.
        probability = removal_probability(weight, max_abs, d=scalar(d, device))
        score = random.uniform(key, index) / probability
        if law == "uniform":
            fresh = uniform_synapses(random.uniform(key, index, draw=1), max_abs)
        else:
            fresh = lognormal_synapses(
                random.normal(key, index),
                random.uniform(key, index, draw=1),
                mean=context.statistics["log_mean"],
                std=context.statistics["log_std"],
            )
        share = scalar(1.0, device)
        if max_share < 1:
            share = _capped(score, context.shard, int(max_share * context.shard.numel))
        weight, mask = rejuvenate(weight, fresh, score=score, share=share)
        context.weight.copy_(weight)
        context.events["turnover"] = mask.float().mean()
        return mask

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
