"""Goal 1: what plasticity adds to a training step."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import biofx
from benchmarks.models import TINY, Case, seed_available, seed_convert
from benchmarks.report import Goal, Report, Table, milliseconds, times
from benchmarks.timing import Effort, interleaved, kernels_compiled
from biofx.plasticity import Crystallize, FuzzyLearningRates, Rejuvenate, Rule, VolumeDependentRates

RULES: dict[str, Callable[[], list[Rule]]] = {
    "fuzzy": lambda: [FuzzyLearningRates()],
    "volume": lambda: [VolumeDependentRates()],
    "crystallize": lambda: [Crystallize()],
    "rejuvenate": lambda: [Rejuvenate()],
    "rejuvenate, capped": lambda: [Rejuvenate(max_share=0.01)],
    "fuzzy + volume + crystallize": lambda: [
        FuzzyLearningRates(), VolumeDependentRates(), Crystallize(),
    ],
}  # fmt: skip
ALL = "fuzzy + volume + crystallize"
SEED_CALLS = {
    "fuzzy": ("fuzzy_learning_rates",),
    "volume": ("volume_dependent_lr",),
    "crystallize": ("crystallize",),
    "rejuvenate": ("rejuvenate_weights",),
    ALL: ("fuzzy_learning_rates", "volume_dependent_lr", "crystallize"),
}
WAYS = [(mode, compiled) for mode in ("gradient", "update") for compiled in (False, True)]


def measure(case: Case, effort: Effort) -> Report:
    torch.manual_seed(0)
    case = TINY if effort.quick else case
    model = case.make()
    bio = biofx.transform(model)
    inputs, labels = case.batch()

    seed = seed_convert(model) if seed_available() else None
    kept = {name: p.detach().clone() for name, p in bio.named_parameters()}

    def forward_backward(own: nn.Module = bio) -> None:
        F.cross_entropy(own(inputs), labels).backward()

    def prepare(name: str) -> None:
        """What comes before an optimizer's step in training, on weights that stay the same."""
        own = seed if name.startswith("seed") else bio
        with torch.no_grad():
            for key, value in kept.items():
                parameter = own.get_parameter(key)
                parameter.copy_(value)
                parameter.grad = None
        if name != "forward + backward":
            forward_backward(own)

    parameters = list(bio.parameters())
    weights = [bio.get_parameter(name) for name in biofx.info(bio).synapses]
    factors = [torch.rand_like(weight) + 0.5 for weight in weights]
    bare = [weight.data for weight in weights]

    def grads() -> list[Tensor]:
        return [weight.grad for weight in weights]

    calls: dict[str, Callable[[], object]] = {
        "forward + backward": forward_backward,
        "floor": lambda: torch._foreach_mul_(grads(), factors),
        "bytes of fuzzy": lambda: torch._foreach_mul_(grads(), 0.999),
        "bytes of crystallize": lambda: (
            torch._foreach_add_(grads(), bare, alpha=1e-30),
            torch._foreach_mul_(factors, 1.0),
        ),
    }
    for name, optimizer in optimizers(bio, parameters).items():
        calls[name] = optimizer.step
    if seed is not None:
        for rule, methods in SEED_CALLS.items():
            calls[f"seed, {rule}"] = lambda methods=methods: [getattr(seed, m)() for m in methods]
    # Each call is timed after a forward and a backward pass of its own, which take time too.
    effort = replace(effort, seconds=4 * effort.seconds)
    found = interleaved(calls, effort, prepare=prepare, streak=3)
    return summarise(case, found, compiled=kernels_compiled() > 0)


def optimizers(bio: nn.Module, parameters: list[nn.Parameter]) -> dict[str, torch.optim.Optimizer]:
    made: dict[str, torch.optim.Optimizer] = {
        "SGD": torch.optim.SGD(parameters, lr=1e-3),
        "AdamW": torch.optim.AdamW(parameters, lr=1e-3),
    }
    for rule, make in RULES.items():
        for mode, compiled in WAYS:
            optimizer: torch.optim.Optimizer = torch.optim.SGD(parameters, lr=1e-3)
            biofx.GradScheduler(bio, optimizer, rules=make(), apply=mode, compile=compiled)
            made[f"{rule}, {mode}, {compiled}"] = optimizer
    for rule in ("fuzzy", ALL):
        for compiled in (False, True):
            optimizer = torch.optim.AdamW(parameters, lr=1e-3)
            biofx.GradScheduler(bio, optimizer, rules=RULES[rule](), compile=compiled)
            made[f"AdamW, {rule}, {compiled}"] = optimizer
    return made


def summarise(case: Case, found: dict[str, float], *, compiled: bool) -> Report:
    base = found["forward + backward"]
    ways = [way for way in WAYS if compiled or not way[1]]
    names = [f"{mode}, {'compiled' if kernel else 'eager'}" for mode, kernel in ways]
    columns = [case.name, *names, "best / fwd+bwd", "package", "ahead of it", "same bytes"]
    table = Table(f"A training step: {case.name} (milliseconds)", columns)

    def cost(rule: str, mode: str, kernel: bool) -> float:
        # a difference of two medians can come out negative where there is next to no cost
        return max(found[f"{rule}, {mode}, {kernel}"] - found["SGD"], 1e-7)

    floors = {"fuzzy": "bytes of fuzzy", "crystallize": "bytes of crystallize"}
    for rule in RULES:
        costs = [cost(rule, *way) for way in ways]
        theirs = found.get(f"seed, {rule}")
        floor = found[floors[rule]] if rule in floors else None
        row = [rule, *map(milliseconds, costs), times(min(costs) / base), milliseconds(theirs)]
        table.rows.append(
            [*row, times(theirs / min(costs)) if theirs else "–", milliseconds(floor)]
        )
    table.note = (
        f"Forward and backward: {milliseconds(base)} ms; SGD's own step "
        f"{milliseconds(found['SGD'])} ms, AdamW's {milliseconds(found['AdamW'])} ms; "
        f"`torch._foreach_mul_(grads, factors)`: {milliseconds(found['floor'])} ms. "
        "Each cost is that of `optimizer.step()` with a GradScheduler less that of plain SGD; "
        "“same bytes” is a plain elementwise kernel that reads and writes what the rule does, in "
        "gradient mode. Each is timed right after a forward and a backward pass, in the second and "
        "third of three steps in a row: what it works on is where training leaves it."
    )
    if not compiled:
        table.note += " No kernel was compiled: the columns are eager."
    report = Report([table])
    report.goals = goals(case, found, cost, compiled)
    return report


def goals(case: Case, found: dict[str, float], cost: Any, compiled: bool) -> list[Goal]:
    base, name = found["forward + backward"], case.name
    how = "compiled" if compiled else "eager"
    made = [
        Goal(1, f"{name}: {rule} per step, {mode}, {how} / forward+backward",
             cost(rule, mode, compiled) / base, bound)
        for rule, bound in ((ALL, case.bound_all), ("rejuvenate", case.bound_rejuvenate))
        for mode in ("gradient", "update")
    ]  # fmt: skip
    made += [
        Goal(1, f"{name}: {rule}, gradient, {how} / plain kernel over the same bytes",
             cost(rule, "gradient", compiled) / found[f"bytes of {rule}"], 1.5)
        for rule in ("fuzzy", "crystallize")
    ]  # fmt: skip
    made += [
        Goal(1, f"{name}: rejuvenate capped at 1 %, {mode}, {how} / uncapped",
             cost("rejuvenate, capped", mode, compiled) / cost("rejuvenate", mode, compiled), 1.3)
        for mode in ("gradient", "update")
    ]  # fmt: skip
    for rule, bound in (("volume", 15.0), ("rejuvenate", 30.0)):
        theirs = found.get(f"seed, {rule}")
        ahead = theirs / cost(rule, "gradient", compiled) if theirs else None
        made.append(Goal(1, f"{name}: {rule}, {how}, ahead of the package", ahead, bound,
                         at_least=True))  # fmt: skip
    for rule in ("fuzzy", ALL):
        extra = found[f"AdamW, {rule}, {compiled}"] - found["AdamW"]
        made.append(Goal(1, f"{name}: {rule}, update, {how} / AdamW's own step",
                         max(extra, 0.0) / found["AdamW"], 0.5))  # fmt: skip
    return made
