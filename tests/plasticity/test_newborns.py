"""A synapse that is replaced learns as a weight does whose training begins then."""

import functools
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, Adamax, AdamW, NAdam, RAdam

import biofx
from biofx.plasticity import (
    Context,
    FuzzyLearningRates,
    GradScheduler,
    Rejuvenate,
    Rule,
    Schedule,
)
from biofx.plasticity.numerics.shards import shard_of
from biofx.plasticity.scheduler import newborns
from biofx.plasticity.scheduler.copies import Copies

BIRTH, AFTER = 40, 30


@dataclass(frozen=True, kw_only=True)
class Replace(Rule):
    """Puts new synapses into the first three rows at one step."""

    early: bool = False
    replaces = True

    def active(self, context: Context, stage: Any) -> bool:
        step = BIRTH + 1 if self.early else BIRTH
        return context.step == step and stage == ("before_update" if self.early else "after_step")

    def _renew(self, context: Context) -> Tensor:
        mask = context.index < 3 * context.weight.shape[1]
        context.weight.copy_(torch.where(mask, 0.1 * context.normal("new"), context.weight))
        return mask

    def before_update(self, context: Context) -> Tensor:
        return self._renew(context)

    def after_step(self, context: Context) -> Tensor:
        return self._renew(context)


def gradient(step: int, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(step)
    return (0.3 + torch.randn(6, 5, generator=generator)).to(dtype)


def step(optimizer: Any, parameter: nn.Parameter, number: int) -> None:
    parameter.grad = gradient(number, parameter.dtype)
    optimizer.step()


OPTIMIZERS = {
    "adam": Adam,
    "adam-foreach": functools.partial(Adam, foreach=True),
    "adam-fused": functools.partial(Adam, fused=True),
    "adam-large-eps": functools.partial(Adam, eps=0.1),
    "adam-decay": functools.partial(Adam, weight_decay=0.1),
    "adam-maximize": functools.partial(Adam, maximize=True, betas=(0.8, 0.95)),
    "amsgrad": functools.partial(Adam, amsgrad=True),
    "adamw": functools.partial(AdamW, weight_decay=0.1),
    "adamw-fused": functools.partial(AdamW, weight_decay=0.1, fused=True),
    "nadam": NAdam,
    "nadam-decay": functools.partial(NAdam, weight_decay=0.1),
    "nadam-decoupled": functools.partial(
        NAdam, weight_decay=0.1, decoupled_weight_decay=True, maximize=True
    ),
    "radam": RAdam,
    "radam-short": functools.partial(RAdam, betas=(0.9, 0.99)),
    "adamax": Adamax,
    "sgd": SGD,
    "momentum": functools.partial(SGD, momentum=0.9),
}


@pytest.mark.parametrize(
    ("optimizer", "compiled"),
    [
        *[(name, False) for name in OPTIMIZERS],
        *[(name, True) for name in ("adamw", "radam", "adamax", "nadam")],
    ],
)
@pytest.mark.parametrize("early", [False, True])
def test_new_synapses_learn_as_at_step_1(optimizer: str, early: bool, compiled: bool) -> None:
    make = functools.partial(OPTIMIZERS[optimizer], lr=0.01)
    bio = biofx.transform(nn.Sequential(nn.Linear(5, 6, bias=False)))
    weight = bio.get_parameter("0.weight")
    made = make([weight])
    GradScheduler(bio, made, rules=[Replace(early=early)], compile=compiled)
    for number in range(1, BIRTH + 1):
        step(made, weight, number)
    if early:  # replaced within the next step, before the weights move
        expected = nn.Parameter(torch.zeros_like(weight))
        copy = weight.detach().clone()
        context = Context(
            synapses=biofx.info(bio).synapses["0.weight"],
            rule="Replace",
            shard=shard_of(weight, "0.weight"),
            weight=copy,
            step=BIRTH + 1,
        )
        Replace()._renew(context)
        expected.data.copy_(copy)
    else:
        expected = nn.Parameter(weight.detach().clone())
    fresh = make([expected])
    for number in range(BIRTH + 1, BIRTH + AFTER + 1):
        step(made, weight, number)
        step(fresh, expected, number)
        torch.testing.assert_close(weight[:3], expected[:3], rtol=1e-4, atol=2e-6)
    assert not torch.allclose(weight[3:], expected[3:], atol=1e-4) or optimizer == "sgd"


def test_weights_are_copied_only_while_synapses_are_young(monkeypatch: pytest.MonkeyPatch) -> None:
    copied = []
    plain = Copies.__call__

    def copy(self: Copies, name: str, tensor: Tensor) -> Tensor:
        copied.append(number)
        return plain(self, name, tensor)

    monkeypatch.setattr(Copies, "__call__", copy)
    bio = biofx.transform(nn.Sequential(nn.Linear(5, 6, bias=False)))
    weight = bio.get_parameter("0.weight")
    optimizer = Adam([weight], lr=0.01, betas=(0.5, 0.6))
    GradScheduler(bio, optimizer, rules=[Replace()])
    for number in range(1, BIRTH + 60):
        step(optimizer, weight, number)
    youth = 32  # steps until 0.6ᵗ is below 10⁻⁷
    assert copied == list(range(BIRTH + 1, BIRTH + youth + 1))


def test_a_parameter_that_rests_stays_young() -> None:
    """Ages count the parameter's own steps, not the scheduler's."""
    bio = biofx.transform(nn.Sequential(nn.Linear(5, 6, bias=False), nn.Linear(6, 2, bias=False)))
    weight, other = bio.parameters()
    make = functools.partial(Adam, lr=0.01, betas=(0.9, 0.97))
    made = make([weight, other])
    GradScheduler(bio, made, rules=[Replace()])
    for number in range(1, BIRTH + 1):
        step(made, weight, number)
    expected = nn.Parameter(weight.detach().clone())
    fresh = make([expected])
    weight.grad = None
    for _ in range(600):
        other.grad = torch.ones_like(other)
        made.step()
    other.grad = None
    for number in range(BIRTH + 1, BIRTH + AFTER + 1):
        step(made, weight, number)
        step(fresh, expected, number)
        torch.testing.assert_close(weight[:3], expected[:3], rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("layers", [1, 2])  # two share an arena
@pytest.mark.parametrize("optimizer", ["adam", "adamw-fused", "amsgrad", "nadam", "radam"])
def test_where_the_optimizer_begins_anew_all_synapses_do(optimizer: str, layers: int) -> None:
    """People reset its state between tasks; what was born before has no age of its own then."""
    make = functools.partial(OPTIMIZERS[optimizer], lr=0.01)
    rule = Rejuvenate(
        law="initial", choose="random", max_share=0.3, schedule=Schedule(every=20, stop=BIRTH)
    )
    bio = biofx.transform(
        nn.Sequential(*[nn.Linear(5, 6 - 5 * place, bias=False) for place in range(layers)])
    )
    weights = list(bio.parameters())
    made = make(weights)
    GradScheduler(bio, made, rules=[rule])

    def forth(optimizer: Any, weights: list[nn.Parameter], numbers: range) -> None:
        for number in numbers:
            for weight in weights:
                weight.grad = gradient(number, weight.dtype)[: len(weight)].clone()
            optimizer.step()

    forth(made, weights, range(BIRTH + 5))
    made.state.clear()
    expected = [nn.Parameter(weight.detach().clone()) for weight in weights]
    fresh = make(expected)
    for start in range(0, 4 * BIRTH, 10):
        for one, own in ((made, weights), (fresh, expected)):
            forth(one, own, range(start, start + 10))
        for weight, other in zip(weights, expected, strict=True):
            assert torch.equal(weight, other), start


@pytest.mark.parametrize("optimizer", [Adam, NAdam, RAdam, Adamax])
def test_old_synapses_are_left_as_they_are(optimizer: Any) -> None:
    ends = []
    for rules in ([Replace()], []):
        torch.manual_seed(0)
        bio = biofx.transform(nn.Sequential(nn.Linear(5, 6, bias=False)))
        weight = bio.get_parameter("0.weight")
        made = optimizer([weight], lr=0.01)
        GradScheduler(bio, made, rules=rules)
        for number in range(1, BIRTH + AFTER):
            step(made, weight, number)
        ends.append(weight.detach()[3:].clone())
    assert torch.equal(*ends)


def test_factors_multiply_the_update_due_at_its_age() -> None:
    moves = []
    for rules in ([Replace()], [Replace(), FuzzyLearningRates(nu=0.4)]):
        torch.manual_seed(0)
        bio = biofx.transform(nn.Sequential(nn.Linear(5, 6, bias=False)))
        weight = bio.get_parameter("0.weight")
        made = Adam([weight], lr=0.01)
        scheduler = GradScheduler(bio, made, rules=rules)
        for number in range(1, BIRTH + 1):
            step(made, weight, number)
        before = weight.detach().clone()
        step(made, weight, BIRTH + 1)
        moves.append((weight.detach() - before)[:3])
        factors = scheduler.metrics()["0.weight"]
    first, second = moves
    torch.testing.assert_close(first.abs(), torch.full_like(first, 0.01), rtol=1e-4, atol=0)
    assert factors["factor_q05"] < 0.8
    ratio = second / first
    assert 0.59 < float(ratio.min()) < 0.8 < 1.2 < float(ratio.max()) < 1.41


def test_a_subclass_with_steps_of_its_own_is_left_alone() -> None:
    class Quiet(AdamW):
        pass

    class Own(AdamW):
        def step(self, closure: Any = None) -> None:
            super().step(closure)

    weights = [nn.Parameter(torch.ones(2))]
    assert newborns.law_of(Quiet(weights)) is newborns.LAWS[Adam]
    assert newborns.law_of(Own(weights)) is None
    assert newborns.law_of(SGD(weights, lr=0.1)) is None
