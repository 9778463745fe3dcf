"""Fuzzy learning rates: every synapse learns at its own pace."""

import functools
import math
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from biofx.config import Distribution
from biofx.errors import PlasticityError
from biofx.plasticity.numerics import random
from biofx.plasticity.rules.rule import STATIC, Context, Expression, Rule, Stage, pick, scalar
from biofx.plasticity.rules.validation import require, within
from biofx.synapses import Synapses


def fuzzy_factors(
    draw: Tensor,
    nu: Tensor,
    *,
    low: Tensor | None = None,
    high: Tensor | None = None,
    distribution: Distribution,
) -> Tensor:
    """Plasticity factors f with mean 1 and spread ν, from standard random numbers.

    UNIFORM f = 1 + νt; NORMAL f = 1 + νz; LOGNORMAL f = exp(νz − ν²/2); GAMMA f = ν²·g with
    g ~ Gamma(1/ν²); BETA f = 1 + ν(2b − 1) with b ~ Beta(1/ν, 1/ν).

    Args:
        draw: t uniform on [−1, 1), z, g or b; of the weight's shape.
        nu: ν, of shape () or broadcastable to `draw`.
        low, high: clamp of the factors, of shape (); None where no factor can lie beyond.
        distribution: one of the five above.

    Returns:
        Factors of `draw`'s shape in [low, high], without a unit.

    Source:
        Hofmann et al. 2025, Methods, "Fuzzy learning rates" (uniform); the others keep its mean
        and, but for BETA, name ν as the standard deviation (LOGNORMAL: of the logarithm).
    """
    if distribution in (Distribution.UNIFORM, Distribution.NORMAL):
        factors = 1 + nu * draw
    elif distribution == Distribution.BETA:
        factors = 1 + nu * (2 * draw - 1)
    elif distribution == Distribution.LOGNORMAL:
        factors = torch.exp(nu * draw - 0.5 * nu * nu)
    elif distribution == Distribution.GAMMA:
        factors = nu * nu * draw
    else:
        raise ValueError(f"{distribution} is not drawn directly")
    return factors if low is None and high is None else factors.clamp(low, high)


def layer_adaptive_nu(nu: float, rank: int, ranks: int) -> float:
    """ν of a layer by its topological rank: ν for the first, ν/2 for the last of `ranks`."""
    return nu * (1 - 0.5 * rank / max(ranks - 1, 1))


def weight_adaptive_nu(weight: Tensor, nu: Tensor, *, mean_abs: Tensor) -> Tensor:
    """ν·clamp(2 − |w|/mean|w|, ½, 1½) per synapse; small synapses vary more. Shape of `weight`."""
    ratio = torch.where(mean_abs > 0, weight.abs() / mean_abs, 0.0)
    return nu * (2 - ratio).clamp(0.5, 1.5)


def activity_nu(counts: Tensor, nu: Tensor) -> Tensor:
    """ν·(2 − clamp(1 + 0.1(c/mean c − 1), 0.8, 1.2)) per unit; active units vary less.

    Args:
        counts: c, how often each output unit was active, of shape (units,).
        nu: ν, of shape ().
    """
    mean = counts.mean()
    ratio = torch.where(mean > 0, counts / mean, 1.0)
    return nu * (2 - (1 + 0.1 * (ratio - 1)).clamp(0.8, 1.2))


def temporal_step(
    factors: Tensor, decay: Tensor, *, low: Tensor, high: Tensor, noise: Tensor | float = 0.0
) -> Tensor:
    """One evolution of TEMPORAL factors: 1 + (f − 1)·decay + noise, clamped. Shape of `factors`."""
    return (1 + (factors - 1) * decay + noise).clamp(low, high)


# Expressions (see rule.Expression): module-level, for their identity is that of the kernel.


def _uniform(
    weight: Tensor,
    index: Tensor,
    *,
    key: Tensor,
    nu: Tensor,
    low: Tensor | None = None,
    high: Tensor | None = None,
) -> Tensor:
    factors = 1 + random.symmetric(key, index, scale=nu)  # as `fuzzy_factors`, a product less
    return factors if low is None and high is None else factors.clamp(low, high)


def _normal(
    weight: Tensor, index: Tensor, *, key: Tensor, nu: Tensor, low: Tensor, high: Tensor
) -> Tensor:
    draw = random.normal(key, index)
    return fuzzy_factors(draw, nu, low=low, high=high, distribution=Distribution.NORMAL)


def _lognormal(
    weight: Tensor, index: Tensor, *, key: Tensor, nu: Tensor, low: Tensor, high: Tensor
) -> Tensor:
    draw = random.normal(key, index)
    return fuzzy_factors(draw, nu, low=low, high=high, distribution=Distribution.LOGNORMAL)


def _gamma(
    weight: Tensor, index: Tensor, *, key: Tensor, nu: Tensor, low: Tensor, high: Tensor
) -> Tensor:
    # Beyond these, float32 has no ν² and no 1/ν². Below, all factors are 1; above, nearly all 0.
    nu = nu.clamp(1e-9, 1e9)
    draw = random.gamma(key, index, 1 / (nu * nu))
    return fuzzy_factors(draw, nu, low=low, high=high, distribution=Distribution.GAMMA)


def _beta(
    weight: Tensor, index: Tensor, *, key: Tensor, nu: Tensor, low: Tensor, high: Tensor
) -> Tensor:
    draw = random.beta(key, index, 1 / nu)
    return fuzzy_factors(draw, nu, low=low, high=high, distribution=Distribution.BETA)


def _stored(weight: Tensor, index: Tensor, *, factors: Tensor) -> Tensor:
    return factors


DRAWN: dict[Distribution, Callable[..., Tensor]] = {
    Distribution.UNIFORM: _uniform,
    Distribution.NORMAL: _normal,
    Distribution.LOGNORMAL: _lognormal,
    Distribution.GAMMA: _gamma,
    Distribution.BETA: _beta,
    Distribution.LAYER_ADAPTIVE: _uniform,
    Distribution.TEMPORAL: _uniform,
    Distribution.ACTIVITY: _uniform,
}


@functools.cache
def mean_factor(distribution: Distribution, nu: float, low: float, high: float) -> float:
    """The mean of clamped factors, by 4,096 draws: 1 unless the clamp moves it."""
    cpu = torch.device("cpu")
    index = random.counters(4096, cpu)
    inputs = {
        name: scalar(value, cpu) for name, value in (("nu", nu), ("low", low), ("high", high))
    }
    inputs["key"] = random.key_tensor(random.stream_key(0, STATIC, "mean", "factor"), cpu)
    draw = DRAWN.get(distribution, _uniform)
    return float(draw(index.float(), index, **inputs).mean()) if nu else 1.0


@dataclass(frozen=True, kw_only=True)
class FuzzyLearningRates(Rule):
    """Each synapse's update is multiplied by its own factor, drawn once (see `fuzzy_factors`).

    Static factors are no state: compiled kernels draw them again, the same, at each step. TEMPORAL
    (if `dynamic`) and WEIGHT_ADAPTIVE factors are state, and GAMMA factors are kept for speed:
    4 bytes per synapse.

    Args:
        nu: as `fuzzy_learning_rate_factor_nu` of `BioConfig`. None takes the layer's configured
            value, here and below.
        distribution: as `fuzzy_lr_distribution`.
        low: as `fuzzy_lr_min`.
        high: as `fuzzy_lr_max`.
        dynamic: as `fuzzy_lr_dynamic`.
        decay: as `fuzzy_lr_decay`.
        update_every: as `fuzzy_lr_update_freq`.

    TEMPORAL evolves, and WEIGHT_ADAPTIVE and ACTIVITY factors are drawn again, after every
    `update_every`-th step if `dynamic`; otherwise they stay as the first step made them.
    """

    changes_weights: ClassVar[bool] = False

    nu: float | None = None
    distribution: Distribution | str | None = None
    low: float | None = None
    high: float | None = None
    dynamic: bool | None = None
    decay: float | None = None
    update_every: int | None = None

    remembers: ClassVar = {
        "factors": (0.0, math.inf),
        "counts": (0.0, math.inf),
        "nu": (0.0, math.inf),
        "drawn": (0, 2**62),
    }

    @override
    def interval(self, synapses: Synapses) -> int:
        return 0 if synapses.config.fuzzy_lr_distribution == Distribution.BASELINE else 1

    @override
    def settings(self, synapses: Synapses) -> dict[str, Any]:
        plan = _resolve(self, synapses)
        if plan.distribution == Distribution.LAYER_ADAPTIVE:
            return {**super().settings(synapses), **vars(plan), "nu": _layer_nu(synapses, plan.nu)}
        return {**super().settings(synapses), **vars(plan)}

    @override
    def acts_in(self, synapses: Synapses, stage: Stage) -> bool:
        plan = _resolve(self, synapses)
        if stage == "observe":
            return plan.distribution in (Distribution.ACTIVITY, Distribution.WEIGHT_ADAPTIVE)
        if stage == "after_step":
            return plan.distribution == Distribution.TEMPORAL and plan.dynamic
        return True

    @override
    def active(self, context: Context, stage: Stage) -> bool:
        if stage == "factor":
            return super().active(context, stage)
        # Factors evolve by the clock, whether or not the rule's schedule lets them act.
        plan = self._plan(context)
        if stage == "after_step":
            return context.step % plan.update_every == 0
        return plan.distribution == Distribution.ACTIVITY or _due(context, plan)

    @override
    def needs(self, context: Context, stage: Stage) -> tuple[str, ...]:
        if stage != "observe":
            return ()
        plan = self._plan(context)
        weights = plan.distribution == Distribution.WEIGHT_ADAPTIVE
        return ("mean_abs",) if weights and _due(context, plan) else ()

    @override
    def elementwise(self, synapses: Synapses) -> bool:
        return not self.needs_activity(synapses)

    @override
    def alike(self, synapses: Synapses) -> dict[str, Any]:
        settings = self.settings(synapses)
        if settings["distribution"] == Distribution.LAYER_ADAPTIVE:
            del settings["nu"]
            settings["configured"] = _resolve(self, synapses).nu
        return settings

    @override
    def needs_activity(self, synapses: Synapses) -> bool:
        return _resolve(self, synapses).distribution == Distribution.ACTIVITY

    @override
    def prepare(self, context: Context) -> None:
        plan = self._plan(context)
        shape = context.weight.shape
        if plan.distribution == Distribution.WEIGHT_ADAPTIVE:
            context.state["factors"] = torch.ones(
                shape, dtype=torch.float32, device=context.weight.device
            )
            context.state["drawn"] = STATIC
        elif plan.distribution == Distribution.ACTIVITY:
            units = context.units(context.synapses.post_axis)
            for name in ("counts", "nu"):
                context.state[name] = torch.zeros(
                    units, dtype=torch.float32, device=context.weight.device
                )
            context.state["drawn"] = STATIC
        elif plan.distribution == Distribution.TEMPORAL and plan.dynamic:
            context.state["factors"] = _uniform(
                context.weight, context.index, **self._inputs(context, plan)
            )

    @override
    def observe(self, context: Context) -> None:
        plan = self._plan(context)
        if plan.distribution == Distribution.ACTIVITY and context.activity is not None:
            context.state["counts"] += context.activity
        if "drawn" not in context.state or not _due(context, plan):
            return
        context.state["drawn"] = context.step
        device = context.weight.device
        nu = scalar(plan.nu, device)
        if plan.distribution == Distribution.ACTIVITY:
            context.state["nu"] = activity_nu(context.state["counts"], nu)
            return
        mean_abs = context.statistics["mean_abs"]
        context.state["factors"].copy_(
            fuzzy_factors(
                context.symmetric("factors"),
                weight_adaptive_nu(context.weight.float(), nu, mean_abs=mean_abs),
                low=scalar(plan.low, device),
                high=scalar(plan.high, device),
                distribution=Distribution.UNIFORM,
            )
        )

    @override
    def expression(self, context: Context) -> Expression | None:
        plan = self._plan(context)
        if "factors" in context.state:
            return Expression(_stored, {"factors": context.state["factors"]})
        if plan.nu == 0 or plan.distribution == Distribution.BASELINE:
            return None
        drawn = context.state.get("drawn", STATIC)
        expression: Expression | None = context.memo.get("expression")
        if expression is None or expression.token != drawn:
            expression = context.memo["expression"] = self._drawn(context, plan, drawn)
        return expression

    def _drawn(self, context: Context, plan: "_Plan", drawn: int) -> Expression:
        """Factors that are drawn again, the same, at each step since they were first drawn."""
        distribution, synapses = plan.distribution, context.synapses
        inputs = self._inputs(context, plan)
        inputs["key"] = context.key("factors", step=drawn)
        if distribution == Distribution.LAYER_ADAPTIVE:
            inputs["nu"] = context.number(lambda layer: _layer_nu(layer, plan.nu))
        elif distribution == Distribution.ACTIVITY:
            inputs["nu"] = context.per_unit(context.state["nu"], synapses.post_axis)
        # Gamma variates take a rejection method: 13 words of random bits each.
        costly = distribution == Distribution.GAMMA
        function = DRAWN[distribution]
        return Expression(function, inputs, drawn, costly, rounded=function is not _uniform)

    @override
    def after_step(self, context: Context) -> None:
        plan = self._plan(context)
        device = context.weight.device
        noise: Tensor | float = 0.0
        if context.step % (10 * plan.update_every) == 0:
            noise = 0.1 * plan.nu * context.symmetric("noise")
        factors = context.state["factors"]
        low, high = scalar(plan.low, device), scalar(plan.high, device)
        decay = scalar(plan.decay, device)
        factors.copy_(temporal_step(factors, decay, low=low, high=high, noise=noise))

    def _plan(self, context: Context) -> "_Plan":
        plan: _Plan | None = context.memo.get("plan")
        if plan is None:
            plan = context.memo["plan"] = _resolve(self, context.synapses)
        return plan

    def _inputs(self, context: Context, plan: "_Plan") -> dict[str, Tensor]:
        device = context.weight.device
        inputs = {"key": context.key("factors", step=STATIC), "nu": scalar(plan.nu, device)}
        # A clamp takes a third of the kernel's operations: none where it would change nothing.
        # (Of an active unit, ν is at most 1.2 times the configured one.)
        reach = 1.2 * plan.nu + 1e-6
        bounded = DRAWN[plan.distribution] is _uniform
        if not bounded or plan.low > 1 - reach or plan.high < 1 + reach:
            inputs |= {"low": scalar(plan.low, device), "high": scalar(plan.high, device)}
        return inputs


@dataclass(frozen=True)
class _Plan:
    nu: float
    distribution: Distribution
    low: float
    high: float
    dynamic: bool
    decay: float
    update_every: int


def _valid(*fields: Any) -> _Plan:
    plan = _Plan(*fields)
    rule = FuzzyLearningRates.__name__
    within("[0, inf)", rule, nu=plan.nu)
    within("[0, 1]", rule, low=plan.low)
    within("[1, inf)", rule, high=plan.high)
    within("(0, 1]", rule, decay=plan.decay)
    within("[1, inf)", rule, update_every=plan.update_every)
    require(
        plan.update_every == int(plan.update_every),
        rule,
        f"update_every={plan.update_every!r} must be a whole number",
    )
    return plan


_plan = functools.lru_cache(maxsize=4096)(_valid)


def _resolve(rule: FuzzyLearningRates, synapses: Synapses) -> _Plan:
    config = synapses.config
    chosen = pick(rule.distribution, config.fuzzy_lr_distribution)
    try:
        distribution = Distribution(chosen)
    except ValueError:
        names = ", ".join(Distribution)
        raise PlasticityError(
            f"FuzzyLearningRates: distribution={chosen!r} is not one of {names}"
        ) from None
    dynamic = pick(rule.dynamic, config.fuzzy_lr_dynamic)
    require(
        isinstance(dynamic, bool),
        "FuzzyLearningRates",
        f"dynamic={dynamic!r} must be True or False",
    )
    fields = (
        pick(rule.nu, config.fuzzy_learning_rate_factor_nu),
        distribution,
        pick(rule.low, config.fuzzy_lr_min),
        pick(rule.high, config.fuzzy_lr_max),
        dynamic,
        pick(rule.decay, config.fuzzy_lr_decay),
        pick(rule.update_every, config.fuzzy_lr_update_freq),
    )
    hashable = all(isinstance(field, Hashable) for field in fields)
    return (_plan if hashable else _valid)(*fields)  # a list, say, is refused there


def _layer_nu(synapses: Synapses, nu: float) -> float:
    config = synapses.config
    rank, ranks = synapses.rank, synapses.ranks
    if config.fuzzy_lr_layer_index >= 0:
        rank = config.fuzzy_lr_layer_index
    if config.fuzzy_lr_total_layers > 0:
        ranks = config.fuzzy_lr_total_layers
    require(
        rank < ranks,
        "FuzzyLearningRates",
        f"{synapses.parameter}: fuzzy_lr_layer_index={rank} must be below the number of layers, "
        f"{ranks} (fuzzy_lr_total_layers)",
    )
    return layer_adaptive_nu(nu, rank, ranks)


def _due(context: Context, plan: _Plan) -> bool:
    """Whether factors that depend on weights or activity are to be drawn at this step."""
    drawn = context.state["drawn"]
    if drawn == STATIC:
        return True
    return plan.dynamic and context.step - drawn >= plan.update_every
