"""The arguments of `GradScheduler`, checked, and which schedulers act already."""

import difflib
import gc
import warnings
from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Any
from weakref import WeakSet

import torch
from torch import nn
from torch.optim import Optimizer

from biofx.errors import PlasticityError
from biofx.fields import number_of
from biofx.plasticity.rules.rule import Rule
from biofx.plasticity.scheduler.binding import overrides
from biofx.plasticity.scheduler.gradient_hooks import GradientHooks
from biofx.plasticity.scheduler.optimizer_hooks import OptimizerHooks
from biofx.plasticity.scheduler.optimizer_state import innermost
from biofx.synapses import Synapses, record_of, unwrap

# Optimizers that divide the gradient by its own size, or look at its sign alone.
SCALE_BLIND = (
    "adam",
    "adagrad",
    "adadelta",
    "rmsprop",
    "rprop",
    "adafactor",
    "lion",
    "lamb",
    "muon",
)

# What hooks optimizers and gradients now. Whoever lets go of a scheduler does not unhook it.
ACTING: WeakSet[OptimizerHooks | GradientHooks] = WeakSet()


def rules_of(rules: Any) -> list[Rule]:
    """The rules as a list.

    Raises:
        PlasticityError: it is no list of rules, or one misspells all that it is to do.
    """
    if isinstance(rules, Rule | str) or not isinstance(rules, Iterable):
        hint = f"; give [{rules.name}()]" if isinstance(rules, Rule) else ""
        raise PlasticityError(f"rules={rules!r} must be a list of rules{hint}")
    found = list(rules)
    for rule in found:
        if not isinstance(rule, Rule):
            hint = " (an instance is needed, not the class)" if isinstance(rule, type) else ""
            raise PlasticityError(f"rules: {rule!r} is not a biofx.plasticity.Rule{hint}")
        if not overrides(rule, *_ACTING):
            _refuse_misspelt(rule)
    return found


# What a rule may do; the other functions of `Rule` say where and when.
_ACTING = (
    "observe",
    "expression",
    "factor",
    "total",
    "before_update",
    "after_step",
    "replaced",
    "prepare",
    "initialise",
    "begin",
    "report",
)


def _refuse_misspelt(rule: Rule) -> None:
    for name in dir(rule):
        close = difflib.get_close_matches(name, _ACTING, n=1)
        if close and not hasattr(Rule, name):
            raise PlasticityError(
                f"{rule.name} does nothing: a scheduler calls no {name}; is it to be {close[0]}?"
            )


def check_arguments(seed: Any, apply: Any, compile: Any) -> None:
    """Refuse values that are none of those allowed.

    Raises:
        PlasticityError: one is not.
    """
    if not isinstance(number_of(seed), int):
        raise PlasticityError(f"seed={seed!r} must be a whole number")
    if apply not in ("update", "gradient"):
        raise PlasticityError(f"apply={apply!r} must be 'update' or 'gradient'")
    if compile not in (True, False, "auto"):
        raise PlasticityError(f"compile={compile!r} must be True, False or 'auto'")


def optimizers_of(optimizer: Any) -> list[tuple[Optimizer, tuple[Any, ...]]]:
    """The optimizers that move weights, each with those around it, of one, several or None.

    Raises:
        PlasticityError: one is none, or the list is empty.
    """
    if optimizer is None:
        return []
    if not isinstance(optimizer, Sequence):
        return [_hookable(optimizer)]
    if not optimizer:
        raise PlasticityError("the list of optimizers is empty; pass None to have no optimizer")
    return [_hookable(one) for one in optimizer]


def _hookable(optimizer: Any) -> tuple[Optimizer, tuple[Any, ...]]:
    inner, around = innermost(optimizer)
    if not isinstance(inner, Optimizer) or not hasattr(inner, "_optimizer_step_post_hooks"):
        raise PlasticityError(
            f"{type(optimizer).__name__} is not a torch.optim.Optimizer and cannot be hooked; pass "
            "the optimizer inside it, or none and call GradScheduler.step()"
        )
    return inner, around


def refuse_second(
    bio: nn.Module, synapses: Mapping[str, Synapses], optimizers: Sequence[Optimizer]
) -> None:
    """Refuse a scheduler whose factors would come on top of those of another one.

    Several may share an optimizer if they act on different weights, or weights if each acts in an
    optimizer of its own. Without an optimizer, gradients are scaled for every one.

    Raises:
        PlasticityError: one acts on the same weights already.
    """
    model = unwrap(bio)
    weights = {id(model.get_parameter(name)): name for name in synapses}
    if _rivals(weights, optimizers):
        gc.collect()  # an optimizer that nobody has any more takes no steps
    for rival in _rivals(weights, optimizers):
        name = weights[min(_weights(rival) & set(weights), key=list(weights).index)]
        where = "this model"
        if isinstance(rival, OptimizerHooks):
            where = f"this {type(rival.optimizer).__name__}" if optimizers else "an optimizer"
        raise PlasticityError(
            f"{where} has a GradScheduler already that acts on {name}, and factors would be "
            "applied twice; detach() the first one"
        )


def _rivals(
    weights: Mapping[int, str], optimizers: Sequence[Optimizer]
) -> list[OptimizerHooks | GradientHooks]:
    return [
        acting
        for acting in ACTING
        if not (optimizers and isinstance(acting, OptimizerHooks))
        or any(acting.optimizer is one for one in optimizers)
        if _weights(acting) & set(weights)
    ]


def _weights(acting: OptimizerHooks | GradientHooks) -> set[int]:
    """Of which parameters it scales the updates or the gradients."""
    if isinstance(acting, OptimizerHooks):
        held = (p for group in acting.optimizer.param_groups for p in group["params"])
        return {id(parameter) for parameter in held} & _synapses(acting)
    return _synapses(acting)


def _synapses(acting: OptimizerHooks | GradientHooks) -> set[int]:
    model = unwrap(acting.engine.model)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    return {id(parameters[name]) for name in acting.engine.synapses if name in parameters}


def refuse_strangers(attachments: Sequence[OptimizerHooks]) -> None:
    """Refuse optimizers without synapses, unless they are there beside others.

    Muon takes the matrices of a model, AdamW the rest, which may have no synapse.

    Raises:
        PlasticityError: none of them has any, two have the same, or one has a weight as it was
            before it was split.
    """
    seen: dict[str, int] = {}
    for place, attachment in enumerate(attachments):
        for name, _, _ in attachment.named():
            if seen.setdefault(name, place) != place:
                raise PlasticityError(
                    f"{name} is in two of the optimizers; its steps could not be counted"
                )
    if attachments and not seen:
        names = ", ".join(type(one.optimizer).__name__ for one in attachments)
        raise PlasticityError(
            f"the optimizer ({names}) shares no weight with the model: make it from the parameters "
            "of the model that was transformed, after fully_shard"
        )
    _refuse_outdated(attachments, seen)


def _refuse_outdated(attachments: Sequence[OptimizerHooks], known: Container[str]) -> None:
    """Refuse optimizers made before weights were expanded: those that compute would not learn."""
    for attachment in attachments:
        model = unwrap(attachment.engine.model)
        own = {id(parameter) for parameter in model.parameters()}
        foreign = {
            parameter.numel()
            for group in attachment.optimizer.param_groups
            for parameter in group["params"]
            if id(parameter) not in own
        }
        for name, synapses in attachment.engine.synapses.items():
            wide = model.get_parameter(name)
            outdated = synapses.split == "expand" and wide.numel() // synapses.gamma in foreign
            if outdated and wide.requires_grad and name not in known:
                raise PlasticityError(
                    f"the optimizer ({type(attachment.optimizer).__name__}) was made before {name} "
                    f"was split into {synapses.gamma} synapses per connection, and would not train "
                    "it: make it after biofx.transform, from the parameters of its result"
                )


def warn_if_blind(optimizer: Optimizer) -> None:
    """Warn where factors on gradients would have next to no effect."""
    name = type(optimizer).__name__
    if any(blind in name.lower() for blind in SCALE_BLIND):
        warnings.warn(
            f"{name} all but ignores the scale of gradients, so that factors on gradients have "
            'next to no effect; use GradScheduler(..., apply="update")',
            UserWarning,
            stacklevel=3,
        )


def extent(bio: nn.Module, synapses: Mapping[str, Synapses]) -> tuple[int, torch.device]:
    """How many synapses the model has, and where they are.

    Raises:
        PlasticityError: it has none.
    """
    if not synapses:
        reasons = [f"{layer.name}: {layer.reason}" for layer in record_of(bio).layers.values()]
        raise PlasticityError(
            f"no layer of {type(unwrap(bio)).__name__} carries synapses ({'; '.join(reasons[:3])}"
            + (f" and {len(reasons) - 3} more)" if len(reasons) > 3 else ")")
            + "; transform the model with another include or exclude"
        )
    model = unwrap(bio)
    parameters = [model.get_parameter(name) for name in synapses]
    return sum(p.numel() for p in parameters), parameters[0].device
