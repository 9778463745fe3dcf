"""Rejuvenation: weak synapses disappear and new ones form (spontaneous spine remodelling)."""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor
from typing_extensions import override

from biofx.plasticity.kernels.base import Function, Tensors, wide
from biofx.plasticity.numerics import random
from biofx.plasticity.numerics.polynomials import erfc
from biofx.plasticity.numerics.quantiles import LEAST, limit_below
from biofx.plasticity.rules.initial import (
    draw_initial,
    law_inputs,
    lognormal_synapses,
    remember_law,
    remembered_law,
    uniform_synapses,
)
from biofx.plasticity.rules.rule import Context, Rule, Stage, pick, scalar
from biofx.plasticity.rules.validation import require, within
from biofx.synapses import Synapses

LAWS = ("uniform", "lognormal", "initial")
CHOICES = ("paper", "random", "weak")
CHOICE = 1  # the draw of uniforms that choose synapses; new weights are drawn from others


def loss_probability(weight: Tensor, *, max_abs: Tensor, d: Tensor) -> Tensor:
    """erfc(|w|/(σ√2)) with σ = max|w|/d: that of |N(0, σ²)| > |w|, at which a synapse is lost.

    Args:
        weight: w.
        max_abs: max|w| of the whole parameter, of shape ().
        d: d_re, of shape (); with a larger one fewer synapses are lost.

    Returns:
        Of the weight's shape, as exact as `erfc`; NaN if all weights are 0.

    Source:
        Hofmann et al. 2025, Methods, "Synaptic rejuvenation".
    """
    return erfc(weight.abs() * (d * math.sqrt(0.5) / max_abs))


def rejuvenate(
    weight: Tensor, fresh: Tensor, *, draw: Tensor, probability: Tensor
) -> tuple[Tensor, Tensor]:
    """Replace each synapse with its probability.

    Args:
        weight: w.
        fresh: what replaces a synapse.
        draw: uniforms on (0, 1] of the weight's shape.
        probability: of `loss_probability`, or less; none is replaced where it is NaN.

    Returns:
        The new weights, and a mask of those that were replaced.
    """
    mask = draw <= probability
    return torch.where(mask, fresh, weight), mask


def _probability(weight: Tensor, inputs: Tensors) -> Tensor:
    return loss_probability(wide(weight), max_abs=inputs["max_abs"], d=inputs["d"])


def weakness(weight: Tensor, draw: Tensor) -> Tensor:
    """Whole numbers in the order of |w|: its bits; negative, by chance, for synapses of weight 0.

    Args:
        weight: w.
        draw: uniforms on [0, 1) of the weight's shape, in steps of 2⁻²⁴.

    Returns:
        int32 of the weight's shape, at least `LEAST`.
    """
    size = weight.float().abs()
    chance = (draw * -LEAST).to(torch.int32) + LEAST
    return torch.where(size == 0, chance, size.view(torch.int32))


def _weakness(index: Tensor, weight: Tensor, inputs: Tensors) -> Tensor:
    return weakness(weight, random.uniform(inputs["key"], index, draw=CHOICE))


# A new weight and the choice are drawn with different words: symmetric (draw 0) or normal (draw 1)
# for the weight, uniform or positive (draw `CHOICE`) for the choice.


def _uniform(index: Tensor, inputs: Tensors) -> Tensor:
    return uniform_synapses(random.symmetric(inputs["key"], index), inputs["max_abs"])


def _lognormal(index: Tensor, inputs: Tensors) -> Tensor:
    return lognormal_synapses(
        random.normal(inputs["key"], index, draw=1),
        random.symmetric(inputs["key"], index),
        mean=inputs["log_mean"],
        std=inputs["log_std"],
    )


def _initial_uniform(index: Tensor, inputs: Tensors) -> Tensor:
    return draw_initial(inputs["key"], index, inputs, normal=False)


def _initial_normal(index: Tensor, inputs: Tensors) -> Tensor:
    return draw_initial(inputs["key"], index, inputs, normal=True)


@functools.cache
def _renewal(fresh: Callable[[Tensor, Tensors], Tensor], choose: str) -> Function:
    """Replaces the chosen synapses by new ones, in one pass."""

    def renew(index: Tensor, tensors: Tensors, inputs: Tensors) -> tuple[Tensor, ...]:
        weight, key = wide(tensors["weight"]), inputs["key"]
        new = fresh(index, inputs)
        if choose == "paper":
            probability = _probability(weight, inputs)
            if "share" in inputs:
                probability = probability * inputs["share"]
            draw = random.positive(key, index, draw=CHOICE)
            return rejuvenate(weight, new, draw=draw, probability=probability)
        if choose == "weak":
            mask = _weakness(index, weight, inputs) < inputs["limit"]
        else:
            mask = random.uniform(key, index, draw=CHOICE) < inputs["limit"]
        return torch.where(mask, new, weight), mask

    return renew


@dataclass(frozen=True, kw_only=True)
class Rejuvenate(Rule):
    """Some synapses are replaced by new ones, weak ones most likely.

    A new synapse starts with zeroed optimizer state (every tensor of the parameter's shape;
    statistics per row or column, as Adafactor's, stay) and full plasticity, and under Adam, AdamW,
    NAdam, RAdam and Adamax its updates are those of a weight whose training begins then. LBFGS
    starts afresh. A parameter whose weights are all 0 is left alone by laws that go by its weights.

    Applied often, the paper's law destroys what Adam has learned: use ``law="initial"``, a long
    interval, or `max_share`, the largest share of a parameter that a call replaces in expectation:
    every synapse's probability p is multiplied by min(1, max_share·n/Σp), so that weak ones stay as
    much more likely than strong ones as they are.

    Args:
        d: as `rejuvenation_parameter_dre` of `BioConfig`. None takes the layer's configured value,
            here and below.
        law: as `rejuvenate_law`.
        max_share: as `rejuvenate_max_share`.
        choose: as `rejuvenate_choose`. "paper": each synapse with probability
            erfc(|w|d/(max|w|√2)); "random": each with probability `max_share`; "weak": the share
            `max_share` of smallest |w|, chance deciding among zeros.
        before_step: as `rejuvenate_before_step`: synapses are replaced when the gradient is known
            and the optimizer has not moved them yet (the paper's order); else after the step.

    Source:
        Hofmann et al. 2025, Methods, "Synaptic rejuvenation" ("paper", "uniform"); cf.
        Hernandez-Garcia et al. 2025, Reinitializing weights vs units for maintaining plasticity in
        neural networks ("weak", "initial").
    """

    d: float | None = None
    law: Literal["uniform", "lognormal", "initial"] | None = None
    max_share: float | None = None
    choose: Literal["paper", "random", "weak"] | None = None
    before_step: bool | None = None

    replaces: ClassVar[bool] = True
    maps_only: ClassVar[bool] = True
    remembers: ClassVar = remembered_law()

    @override
    def interval(self, synapses: Synapses) -> int:
        return synapses.config.rejuvenate_every

    @override
    def settings(self, synapses: Synapses) -> dict[str, Any]:
        plan = self._plan(synapses)
        within("(0, inf)", self.name, d=plan.d)
        require(plan.law in LAWS, self.name, f"law={plan.law!r} is not one of {LAWS}")
        require(
            plan.choose in CHOICES, self.name, f"choose={plan.choose!r} is not one of {CHOICES}"
        )
        within("(0, 1]", self.name, max_share=plan.max_share)
        require(
            plan.choose == "paper" or plan.max_share < 1,
            self.name,
            f"choose={plan.choose!r} replaces the share max_share, which is 1 for "
            f"{synapses.parameter}: say how many, e.g. max_share=0.01",
        )
        wrong = f"before_step={plan.before_step!r} must be True or False"
        require(isinstance(plan.before_step, bool), self.name, wrong)
        return {**super().settings(synapses), **plan._asdict()}

    @override
    def acts_in(self, synapses: Synapses, stage: Stage) -> bool:
        return stage == ("before_update" if self._plan(synapses).before_step else "after_step")

    @override
    def prepare(self, context: Context) -> None:
        if self._known(context).law == "initial":
            remember_law(context)

    @override
    def needs(self, context: Context, stage: Stage) -> tuple[str, ...]:
        if stage not in ("before_update", "after_step"):
            return ()
        plan = self._known(context)
        if plan.law == "lognormal":
            return ("max_abs", "log_mean", "log_std")
        # New weights would hide that training has failed, where none is read.
        return ("finite" if plan.law == "initial" and plan.choose == "random" else "max_abs",)

    @override
    def elementwise(self, synapses: Synapses) -> bool:
        plan = self._plan(synapses)
        return plan.choose != "weak" and plan.law != "initial" and not plan.before_step

    @override
    def total(self, context: Context) -> Tensor | None:
        """Σp, how many synapses would be lost without a cap."""
        plan = self._known(context)
        if plan.max_share == 1 or plan.choose != "paper":
            return None
        weight = context.weight
        inputs = {"d": scalar(plan.d, weight.device), "max_abs": context.statistics["max_abs"]}
        total = context.sum(_probability, inputs)
        if context.padding is not None:
            total = total - _probability(weight[context.padding], inputs).double().sum()
        return total

    @override
    def before_update(self, context: Context) -> Tensor:
        return self._renew(context)

    @override
    def after_step(self, context: Context) -> Tensor:
        return self._renew(context)

    def _renew(self, context: Context) -> Tensor:
        plan = self._known(context)
        weight, shard = context.weight, context.shard
        inputs = {
            "key": context.key("synapses"),
            "d": scalar(plan.d, weight.device),
            **context.statistics,
        }
        fresh = _lognormal if plan.law == "lognormal" else _uniform
        if plan.law == "initial":
            normal, law = law_inputs(context)
            fresh, inputs = _initial_normal if normal else _initial_uniform, inputs | law
        if plan.choose == "random":
            inputs["limit"] = scalar(plan.max_share, weight.device)
        elif plan.choose == "weak":
            context.finish()
            ranks = _weakness(context.index, weight, inputs)
            if context.padding is not None:  # its zeros would be the weakest for ever
                ranks[context.padding] = torch.iinfo(torch.int32).max
            # Rounded by chance, the same on all shards: 1 % of 60 synapses is not none for ever.
            chance = random.uniform(context.key("share"), random.counters(1, weight.device))
            most = int(plan.max_share * shard.numel + float(chance))
            inputs["limit"] = limit_below(ranks, shard, most)
        elif context.total is not None:
            share = plan.max_share * shard.numel / context.total
            inputs["share"] = share.float().clamp(max=1.0)
        mask = torch.empty(weight.shape, dtype=torch.bool, device=weight.device)
        # All weights 0: scores are NaN, and nothing is replaced.
        context.map(
            _renewal(fresh, plan.choose),
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

    def _known(self, context: Context) -> "_Plan":
        plan: _Plan | None = context.memo.get("plan")
        if plan is None:
            plan = context.memo["plan"] = self._plan(context.synapses)
        return plan

    def _plan(self, synapses: Synapses) -> "_Plan":
        config = synapses.config
        return _Plan(
            pick(self.d, config.rejuvenation_parameter_dre),
            pick(self.law, config.rejuvenate_law),
            pick(self.max_share, config.rejuvenate_max_share),
            pick(self.choose, config.rejuvenate_choose),
            pick(self.before_step, config.rejuvenate_before_step),
        )


class _Plan(NamedTuple):
    d: float
    law: str
    max_share: float
    choose: str
    before_step: bool
