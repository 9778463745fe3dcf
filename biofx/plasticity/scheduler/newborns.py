"""New synapses under optimizers that correct bias: each starts as a weight does at step 1.

Adam and its like keep averages that start at 0 and divide them by 1 − βᵗ, t being the number of
steps of the whole parameter. A synapse that is replaced at step t has averages of 0 and a t that is
not its own: its first updates would be 3 to 7 times too large. So the step of its birth is kept (an
int32 per synapse), and its update is worked out with its own age in the place of t, from the
averages that the optimizer holds:

    Δ = −lr · m/(1 − β₁ᵃ) / (√(v/(1 − β₂ᵃ)) + ε)        a: the synapse's age, 1 at its first update

Source: Kingma and Ba, Adam: a method for stochastic optimization, ICLR 2015, section 3.
"""

import functools
import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import NAdam, Optimizer, RAdam

from biofx.plasticity.kernels.base import KernelCall, Tensors, wide
from biofx.plasticity.scheduler.binding import Binding, ParameterStep, number

BORN, NEWEST = "born", "newest"
# What is kept beside a rule's own state, as `Rule.remembers` says it.
REMEMBERS = {BORN: (0, 2**31 - 1), NEWEST: (0, 2**62)}
# A synapse is no longer young once its correction differs from its parameter's by less than this.
NEGLIGIBLE = 1e-7
PRODUCTS = 1024  # ages for which NAdam's products of momenta are kept; from there on they are 0


def adam_update(m: Tensor, v: Tensor, age: Tensor, given: Tensors) -> Tensor:
    """m̂/(√v̂ + ε) at an age, which Adam and AdamW multiply by −lr."""
    first, second = _correction("log1", age, given), _correction("log2", age, given)
    return m / first / ((v / second).sqrt() + given["eps"])


def radam_update(m: Tensor, v: Tensor, age: Tensor, given: Tensors) -> Tensor:
    """The same for RAdam: m̂ alone as long as the variance of v̂ is not known."""
    first, second = _correction("log1", age, given), _correction("log2", age, given)
    longest = given["longest"]
    length = longest - 2 * age * (1 - second) / second
    ratio = (length - 4) * (length - 2) * longest
    ratio = ratio / ((longest - 4) * (longest - 2) * length)
    adaptive = ratio.clamp(min=0).sqrt() * second.sqrt() / (v.sqrt() + given["eps"])
    return m / first * torch.where(length > 5, adaptive, 1.0)


def adamax_update(m: Tensor, largest: Tensor, age: Tensor, given: Tensors) -> Tensor:
    """The same for Adamax: m̂/u, u being the running maximum of the gradient's size."""
    return m / _correction("log1", age, given) / largest


def nadam_update(m: Tensor, v: Tensor, age: Tensor, given: Tensors) -> Tensor:
    """The same for NAdam, which looks ahead: it needs the gradient too."""
    beta1, decay = given["beta1"], given["momentum_decay"]
    mu = beta1 * (1 - 0.5 * 0.96 ** (age * decay))
    following = beta1 * (1 - 0.5 * 0.96 ** ((age + 1) * decay))
    products = given["products"]  # of the momenta up to this age
    ahead = given["grad"] * (1 - mu) / (1 - products) + m * following / (1 - products * following)
    return ahead / ((v / _correction("log2", age, given)).sqrt() + given["eps"])


def _correction(log: str, age: Tensor, given: Tensors) -> Tensor:
    """1 − βᵃ. Powers of numbers near 1 would lose digits, and take ten times as long."""
    return -torch.expm1(age * given[log])


@dataclass(frozen=True)
class Law:
    """How one class of optimizers makes its update of what it keeps."""

    update: Callable[[Tensor, Tensor, Tensor, Tensors], Tensor]
    first: str = "exp_avg"
    second: str = "exp_avg_sq"


LAWS: dict[type[Optimizer], Law] = {
    torch.optim.Adam: Law(adam_update),
    torch.optim.AdamW: Law(adam_update),
    NAdam: Law(nadam_update),
    RAdam: Law(radam_update),
    torch.optim.Adamax: Law(adamax_update, second="exp_inf"),
}


def law_of(optimizer: Optimizer) -> Law | None:
    """How an optimizer corrects bias; None if it does not, or in a way that is not known here.

    A subclass counts if it takes its class's own steps.
    """
    steps = inspect.unwrap(type(optimizer).step)
    for cls, law in LAWS.items():
        if isinstance(optimizer, cls) and inspect.unwrap(cls.step) is steps:
            return law
    return None


def prepare(binding: Binding) -> None:
    """Make room for the steps at which synapses are born, where a rule may replace some."""
    for rule, context in binding.pairs:
        if rule.replaces and rule.serves(context.first):
            make_room(context.state, binding)
            return


def note(site: ParameterStep, fresh: Tensor) -> None:
    """Remember that some synapses (a mask of the weight's local shape) are born now."""
    binding = site.binding
    if not binding.corrected:
        return
    context = next((c for _, c in binding.pairs if BORN in c.state), None)
    if context is None:  # a rule that had not said that it replaces any
        context = next((c for rule, c in binding.pairs if rule.serves(c.first)), None)
    if context is None:  # the units around it are turned over, and no rule serves it itself
        return
    state = context.state
    make_room(state, binding, site.weight)
    known = _numbers(site.date(state[BORN], fresh))
    state[NEWEST] = max([1, *known]) if known is not None else max(context.step, 1)


def make_room(state: dict[str, Any], binding: Binding, weight: Tensor | None = None) -> None:
    """Let a rule's state of a parameter hold births: there were none so far."""
    if BORN not in state:
        weight = binding.pairs[0][1].weight if weight is None else weight
        state[BORN] = torch.zeros(weight.shape, dtype=torch.int32, device=weight.device)
        state[NEWEST] = 0


def young(site: ParameterStep) -> bool:
    """Whether synapses of a parameter were born so recently that it may show."""
    return _births(site) is not None


def _births(site: ParameterStep) -> dict[str, Any] | None:
    """The state that holds the parameter's births, if there were any."""
    if site.binding.corrected:
        for _, context in site.binding.pairs:
            if context.state.get(NEWEST):
                return context.state
    return None


def _numbers(counts: Sequence[Any]) -> list[int] | None:
    """Counts of steps as numbers; None if that would mean to wait for a device."""
    if any(isinstance(count, Tensor) and count.device.type != "cpu" for count in counts):
        return None
    return [int(count) for count in counts]


def _log(beta: float) -> float:
    return math.log(beta) if beta > 0 else -math.inf


@functools.cache
def _horizon(beta: float) -> int:
    return math.ceil(math.log(NEGLIGIBLE) / math.log(beta)) if 0 < beta < 1 else 1


def corrections(
    sites: Iterable[ParameterStep],
    optimizer: Optimizer,
    law: Law,
    before: Mapping[str, Tensor],
) -> dict[str, KernelCall]:
    """What gives young synapses the update that is due at their age, by names of bindings.

    Args:
        sites: parameters at this step.
        optimizer: it has just moved them.
        law: how it does that.
        before: the local weights before the step.
    """
    found = {}
    for site in sites:
        name = site.binding.name
        births = _births(site) if name in before else None
        if births is None:
            continue
        states = [optimizer.state.get(one, {}) for one in site.parameters]
        work = _due(site, optimizer, law, states, births=births, before=before[name])
        if work is not None:
            found[name] = work
    return found


def _due(
    site: ParameterStep,
    optimizer: Optimizer,
    law: Law,
    states: Sequence[Mapping[str, Any]],
    *,
    births: dict[str, Any],
    before: Tensor,
) -> KernelCall | None:
    """The work of correcting a parameter, or several, whose weights have just been moved.

    Args:
        site, optimizer, law: as for `corrections`.
        states: what the optimizer has of each parameter.
        births: the state that holds them.
        before: the local weights before the step.
    """
    if not all(law.first in state for state in states):
        return None
    group = site.group
    counts: Sequence[Any] = [state["step"] for state in states]
    known = _numbers(counts)  # of the parameters' own steps, for they may have rested
    if known and min(known) - births[NEWEST] >= _horizon(float(max(group["betas"]))):
        births[NEWEST] = 0
        return None
    count = site.each(counts if known is None else known)
    if known is None or min(known) <= births[NEWEST]:
        _forget_lost_past(births, count, known)
        if not births[NEWEST]:
            return None
    site.load()
    second = "max_exp_avg_sq" if group.get("amsgrad") else law.second
    device = site.weight.device
    wd, (beta1, _) = group.get("weight_decay", 0.0), group["betas"]
    decoupled = isinstance(optimizer, torch.optim.AdamW) or group.get("decoupled_weight_decay")
    settings = (group["lr"], wd if decoupled else 0.0, *group["betas"], group["eps"])
    fixed = not any(isinstance(value, Tensor) for value in settings)
    tensors = {
        "weight": site.weight,
        "before": before,
        "m": site.joined([state[law.first] for state in states]),
        "v": site.joined([state[second] for state in states]),
        "born": births[BORN],
    }
    inputs = {**(_known_settings if fixed else _settings)(device, *settings)}
    inputs["count"] = count
    if law.update is nadam_update:
        site.see(gradient=True)
        grad = site.grad
        if grad is None or grad.is_sparse:
            return None
        decay = float(group["momentum_decay"])
        inputs["momentum_decay"] = number(decay, device)
        ages = (inputs["count"] - births[BORN]).clamp(1, PRODUCTS - 1).long()
        tensors["products"] = _products(float(beta1), decay, device)[ages]
        grad = -grad if group["maximize"] else grad
        tensors["grad"] = grad if decoupled or not wd else grad + wd * before
    return KernelCall.of(_aged(law.update), tensors, ("weight",), inputs)


def _forget_lost_past(births: dict[str, Any], count: Tensor, known: Sequence[int] | None) -> None:
    """Births at a step that is not over yet: the optimizer's state was made anew since.

    People reset it between tasks. All synapses of a parameter are then of its own age.
    """
    births[BORN].masked_fill_(births[BORN] >= count, 0)
    if known is not None:
        births[NEWEST] = min(births[NEWEST], max(known) - 1)


def _settings(
    device: torch.device, lr: Any, decay: Any, beta1: Any, beta2: Any, eps: Any
) -> dict[str, Tensor]:
    """What `Law.update` is given of an optimizer's settings, as tensors of shape ()."""
    numbers = {
        "lr": lr,
        "beta1": beta1,
        "log1": _log(float(beta1)),
        "log2": _log(float(beta2)),
        "youth": _horizon(max(float(beta1), float(beta2))),
        "longest": 2 / (1 - float(beta2)) - 1,
        "eps": eps,
        "kept": 1 - lr * decay,
    }
    return {name: number(value, device) for name, value in numbers.items()}


_known_settings = functools.lru_cache(maxsize=64)(_settings)


@functools.cache
def _aged(update: Callable[[Tensor, Tensor, Tensor, Tensors], Tensor]) -> Any:
    def aged(index: Tensor, tensors: Tensors, inputs: Tensors) -> tuple[Tensor]:
        weight, before = wide(tensors["weight"]), wide(tensors["before"])
        born, count = tensors["born"].float(), inputs["count"]
        age = count - born
        # By each synapse's own age, or a younger one of another parameter, that shares its arena,
        # would keep it young.
        young = (born > 0) & (age > 0) & (age < inputs["youth"])
        age = age.clamp(min=1)
        given = {**inputs, **{k: wide(tensors[k]) for k in ("grad", "products") if k in tensors}}
        change = update(wide(tensors["m"]), wide(tensors["v"]), age, given)
        moved = before * inputs["kept"] - inputs["lr"] * change
        return (torch.where(young, moved, weight),)

    return aged


@functools.lru_cache(maxsize=64)
def _products(beta1: float, decay: float, device: torch.device) -> Tensor:
    """Products of NAdam's momenta from step 1 on, by the number of the step; 1 at 0."""
    ages = torch.arange(1, PRODUCTS, dtype=torch.float64, device=device)
    momenta = beta1 * (1 - 0.5 * 0.96 ** (ages * decay))
    return torch.cat([momenta.new_ones(1), momenta.cumprod(0)]).float()
