"""What a scheduler is warned of when it is made: settings that do something else than they say."""

import warnings
from collections.abc import Iterator

from biofx.config import Distribution
from biofx.plasticity.rules.dale import DalesPrinciple
from biofx.plasticity.rules.fuzzy import FuzzyLearningRates, mean_factor
from biofx.plasticity.scheduler.engine import Engine

# How far the clamp may move the mean factor from 1.
TOLERATED = 0.1


def advise(engine: Engine) -> None:
    """Warn of what is known to go wrong without a word.

    Warns:
        UserWarning: fuzzy learning rates are given and turned off; the clamp moves the mean of
            their factors away from 1; Dale's principle silences units, or starts as |w|·sign where
            it was to start mirrored.
    """
    for message in (*_idle(engine), *_clamped(engine), *_dale(engine)):
        warnings.warn(message, UserWarning, stacklevel=3)  # whoever makes the scheduler


def _idle(engine: Engine) -> Iterator[str]:
    for rule in engine.rules:
        if isinstance(rule, FuzzyLearningRates) and not rule.configured:
            served = [entry for entry in engine.synapses.values() if rule.serves(entry)]
            if all(rule.settings(s)["distribution"] == Distribution.BASELINE for s in served):
                yield (
                    "FuzzyLearningRates changes nothing: the configuration's fuzzy_lr_distribution "
                    'is "baseline", every factor 1. Give the rule a distribution="uniform", say'
                )


def _clamped(engine: Engine) -> Iterator[str]:
    told = set()
    for rule in engine.rules:
        if not isinstance(rule, FuzzyLearningRates):
            continue
        for synapses in engine.synapses.values():
            if not rule.serves(synapses):
                continue
            plan = rule.settings(synapses)
            known = tuple(plan[name] for name in ("distribution", "nu", "low", "high"))
            if known in told or known[0] == Distribution.BASELINE:
                continue
            told.add(known)
            mean = mean_factor(*known)
            if abs(mean - 1) > TOLERATED:
                yield (
                    f"fuzzy_learning_rate_factor_nu={plan['nu']:g} with the clamp "
                    f"[{plan['low']:g}, {plan['high']:g}] gives factors of mean {mean:.2f}, not 1: "
                    f"the learning rate of {synapses.parameter} is another than the optimizer's. "
                    "Choose a smaller ν, or a wider clamp"
                )


def _dale(engine: Engine) -> Iterator[str]:
    plans = [
        (rule.plan(context), context.synapses, rule)
        for binding in engine.bindings.values()
        for rule, context in binding.pairs
        if isinstance(rule, DalesPrinciple)
    ]
    if any(rule.settings(synapses)["axis"] == "post" for _, synapses, rule in plans):
        yield (
            'dale_axis="post" gives every unit incoming weights of one sign: behind a ReLU, the '
            'negative half of the units is silent for inputs ≥ 0. dale_axis="pre" is Dale\'s '
            "principle"
        )
    unmirrored = [(plan, s) for plan, s, _ in plans if plan.way == "signs" and plan.reason]
    if unmirrored and not any(plan.way == "mirrored" for plan, _, _ in plans):
        plan, synapses = unmirrored[0]
        yield (
            "Dale's principle starts as |w|·sign, from which deep networks do not learn: mirrored "
            f"pairs are not possible in any layer ({synapses.parameter}: {plan.reason}). To start "
            'so anyway, set dale_initialisation="signs"'
        )
