"""Optimizers whose state holds places of weights: found by trial, treated exactly, or refused."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn, optim
from torch.optim import Optimizer

import biofx
from biofx.plasticity import Context, DalesPrinciple, GradScheduler, Rejuvenate, Rule, Schedule
from biofx.plasticity.scheduler.trial import KNOWN, UNKNOWN, traits_of, tried

from .optimizers import (
    Dual,
    Leader,
    Master,
    Measuring,
    Needing,
    Remembering,
    Rotating,
    ScheduleFree,
    Sharpness,
    Slow,
    Starting,
    Wrapper,
)

FACTORS = torch.tensor([0.0, 0.3, 1.0, 1.7])


class Fixed(Rule):
    """Factors 0, 0.3, 1, 1.7 over and over."""

    def factor(self, context: Context) -> Tensor:
        return FACTORS[context.index.long() % 4]


@dataclass(frozen=True, kw_only=True)
class Nudge(Rule):
    """Moves all weights after a step."""

    way: float = 0.5

    def after_step(self, context: Context) -> None:
        context.weight.add_(self.way)


class Witness(Rule):
    """Remembers which synapses were replaced."""

    def prepare(self, context: Context) -> None:
        context.state["new"] = torch.zeros(context.weight.shape, dtype=torch.bool)

    def replaced(self, context: Context, mask: Tensor) -> None:
        context.state["new"] |= mask


def linear(dtype: torch.dtype = torch.float32, size: int = 16) -> tuple[nn.Module, nn.Parameter]:
    torch.manual_seed(0)
    bio = biofx.transform(nn.Sequential(nn.Linear(size, size, bias=False)).to(dtype))
    return bio, bio.get_parameter("0.weight")


def gradients(weight: Tensor, steps: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(weight.shape, generator=generator).to(weight.dtype) for _ in range(steps)]


def way(make: Callable[[Any], Any], *, rules: list[Rule], dtype: Any, steps: int) -> Tensor:
    """How far weights get in some steps whose gradients do not depend on them."""
    bio, weight = linear(dtype)
    start = weight.detach().clone()
    optimizer = make(bio.parameters())
    if isinstance(optimizer, ScheduleFree):
        optimizer.train()
    if rules:
        GradScheduler(bio, optimizer, rules=rules)
    for gradient in gradients(weight, steps):
        weight.grad = gradient
        optimizer.step()
    if isinstance(optimizer, ScheduleFree):
        optimizer.eval()
    return weight.detach().float() - start.float()


EXACT: dict[str, tuple[Callable[[Any], Any], torch.dtype]] = {
    "sgd": (lambda p: optim.SGD(p, lr=0.01), torch.float32),
    "schedule-free": (lambda p: ScheduleFree(p), torch.float32),
    "schedule-free-beta": (lambda p: ScheduleFree(p, momentum=0.5), torch.float32),
    "masters": (lambda p: Master(p), torch.bfloat16),
    "masters-half": (lambda p: Master(p), torch.float16),
    "measuring": (lambda p: Measuring(p), torch.float32),
    "lookahead": (lambda p: Wrapper(optim.SGD(p, lr=0.01)), torch.float32),
    "lookahead-momentum": (lambda p: Wrapper(optim.SGD(p, lr=0.01, momentum=0.9)), torch.float32),
    "lookahead-twice": (lambda p: Wrapper(Wrapper(optim.Adam(p, lr=0.01))), torch.float32),
    "adam": (lambda p: optim.Adam(p, lr=0.01), torch.float32),
}


@pytest.mark.parametrize(("make_optimizer", "dtype"), EXACT.values(), ids=EXACT)
def test_the_way_of_many_steps(make_optimizer: Callable[[Any], Any], dtype: torch.dtype) -> None:
    """It is the factor times the plain one, however often slow weights or means were taken."""
    plain = way(make_optimizer, rules=[], dtype=dtype, steps=103)
    found = way(make_optimizer, rules=[Fixed()], dtype=dtype, steps=103)
    factor = FACTORS.repeat(plain.numel() // 4).view_as(plain)
    rounding = 0.02 if dtype != torch.float32 else 2e-6
    torch.testing.assert_close(found, factor * plain, rtol=1e-5, atol=rounding)
    assert (found[factor == 1] == plain[factor == 1]).all()
    assert plain.abs().mean() > 0.01


PULLING = {"slow": Slow, "dual": Dual, "leader": Leader}


@pytest.mark.parametrize("cls", PULLING.values(), ids=PULLING)
def test_optimizers_that_would_undo_factors_are_refused(cls: type[Optimizer]) -> None:
    bio, weight = linear()
    optimizer = cls(bio.parameters())  # type: ignore[call-arg]
    before = weight.detach().clone()
    with pytest.raises(biofx.PlasticityError, match=r'moves weights .*apply="gradient"') as caught:
        GradScheduler(bio, optimizer)
    assert ("slow_buffer" in str(caught.value)) == (cls is Slow)
    assert not optimizer.state  # it was not tried on the model's own weights
    assert torch.equal(weight, before)
    # What it can do: gradients that are scaled, and rules that have no factor; the latter if it
    # is known where its places are.
    scheduler = GradScheduler(bio, optimizer, apply="gradient")
    scheduler.detach()
    if cls is Leader:
        for apply in ("update", "gradient"):
            with pytest.raises(biofx.PlasticityError, match=r"nothing in its state says where"):
                GradScheduler(bio, optimizer, rules=[Rejuvenate()], apply=apply)  # type: ignore[arg-type]
        return
    scheduler = GradScheduler(bio, optimizer, rules=[Rejuvenate()])
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    assert scheduler.steps == [1]


def test_an_optimizer_that_cannot_be_tried_is_looked_at_after_its_first_step() -> None:
    bio, weight = linear()
    optimizer = Needing(bio.parameters(), Slow(bio.parameters()).move)
    optimizer.param_groups[0]["period"] = 5
    scheduler = GradScheduler(bio, optimizer)
    weight.grad = torch.ones_like(weight)
    with pytest.raises(biofx.PlasticityError, match="slow_buffer"):
        optimizer.step()
    assert scheduler.steps == [0]
    # One that keeps no places is taken.
    bio, weight = linear()
    optimizer = Needing(bio.parameters(), lambda w, g, state, group: w.sub_(g, alpha=0.1))
    GradScheduler(bio, optimizer)
    weight.grad = torch.ones_like(weight)
    optimizer.step()


KEEPING: dict[str, Callable[[Any], Any]] = {
    "schedule-free": lambda p: ScheduleFree(p),
    "slow": lambda p: Slow(p),
    "dual": lambda p: Dual(p),
    "measuring": lambda p: Measuring(p),
    "lookahead": lambda p: Wrapper(optim.SGD(p, lr=1e-3, momentum=0.9)),
    "asgd": lambda p: optim.ASGD(p, lr=0.01, lambd=0.0),
    "needing": lambda p: Needing(p, Slow(p).move),
    "remembering": lambda p: Remembering(p),
}


@pytest.mark.parametrize("make_optimizer", KEEPING.values(), ids=KEEPING)
def test_new_synapses_stay_where_they_were_drawn(make_optimizer: Callable[[Any], Any]) -> None:
    """While gradients are 0, nothing pulls them to where the old ones were."""
    bio, weight = linear(size=32)
    optimizer = make_optimizer(list(bio.parameters()))
    if isinstance(optimizer, Needing):
        optimizer.param_groups[0]["period"] = 5
    if isinstance(optimizer, ScheduleFree):
        optimizer.train()
    rule = Rejuvenate(schedule=Schedule(every=7, stop=7), d=8.0)
    scheduler = GradScheduler(bio, optimizer, rules=[rule, Witness()])
    for gradient in gradients(weight, 6):
        weight.grad = gradient
        optimizer.step()
    weight.grad = torch.zeros_like(weight)
    optimizer.step()
    drawn = weight.detach().clone()
    new = scheduler.state_dict()["state"]["Witness"]["0.weight"]["new"]
    assert 0 < int(new.sum()) < weight.numel()
    for _ in range(20):
        weight.grad = torch.zeros_like(weight)
        optimizer.step()
    if isinstance(optimizer, ScheduleFree):
        optimizer.eval()
    torch.testing.assert_close(weight.detach()[new], drawn[new], rtol=0, atol=1e-6)


def test_new_synapses_get_the_state_that_the_first_ones_had() -> None:
    cases: list[tuple[Callable[[Any], Any], dict[str, float]]] = [
        (lambda p: optim.Rprop(p, lr=0.02), {"step_size": 0.02}),
        (lambda p: optim.Adagrad(p, initial_accumulator_value=0.1), {"sum": 0.1}),
        (lambda p: optim.Adagrad(p), {"sum": 0.0}),
        (lambda p: Starting(p), {"sum": 0.25, "rate": 3.0, "moment": 0.0}),
        (lambda p: optim.AdamW(p), {"exp_avg": 0.0, "exp_avg_sq": 0.0}),
    ]
    for make_optimizer, starts in cases:
        bio, weight = linear(size=32)
        optimizer = make_optimizer(bio.parameters())
        rule = Rejuvenate(schedule=Schedule(every=5, stop=5), max_share=0.1)
        scheduler = GradScheduler(bio, optimizer, rules=[rule])
        before = weight.detach().clone()
        for gradient in gradients(weight, 5):
            before.copy_(weight.detach())
            weight.grad = gradient
            optimizer.step()
        share = scheduler.metrics()["0.weight"]["turnover"]
        assert share == pytest.approx(0.1, abs=0.05)
        for name, start in starts.items():
            reset = optimizer.state[weight][name] == torch.tensor(start)
            assert float(reset.float().mean()) == pytest.approx(share, abs=0.01), name


def test_moments_of_rotated_gradients_are_no_synapses_own() -> None:
    """Set to 0, they would be divided by."""
    bio, weight = linear()
    optimizer = Rotating(bio.parameters(), lr=1e-3)
    assert tried(optimizer, optimizer.param_groups[0], weight).mixed == {"rotated"}
    rule = Rejuvenate(schedule=Schedule(every=5, stop=5), max_share=0.2)
    scheduler = GradScheduler(bio, optimizer, rules=[rule])
    for gradient in gradients(weight, 5):
        weight.grad = gradient
        optimizer.step()
    share = scheduler.metrics()["0.weight"]["turnover"]
    assert share > 0.05
    cleared = {
        name: float((optimizer.state[weight][name] == 0).float().mean())
        for name in ("exp_avg", "rotated")
    }
    assert cleared == {"exp_avg": pytest.approx(share), "rotated": 0}
    before = weight.detach().clone()
    weight.grad = torch.zeros_like(weight)
    optimizer.step()
    assert (weight - before).abs().max() < 0.1
    for cls in (optim.Adafactor, optim.Muon, optim.AdamW):
        known = cls([nn.Parameter(torch.ones(4, 4))])
        assert not tried(known, known.param_groups[0], weight).mixed


@pytest.mark.filterwarnings("ignore:Dale's principle starts as")
def test_rules_that_move_weights_take_places_along() -> None:
    """The mean of a schedule-free optimizer is moved as the weights are; masters are, too."""
    bio, weight = linear()
    optimizer = ScheduleFree(bio.parameters())
    optimizer.train()
    start = weight.detach().clone()
    GradScheduler(bio, optimizer, rules=[Nudge(way=0.25)])
    for _ in range(8):
        weight.grad = torch.zeros_like(weight)
        optimizer.step()
    optimizer.eval()
    torch.testing.assert_close(weight.detach(), start + 8 * 0.25)
    for rules in ([Nudge(way=0.25)], [DalesPrinciple()]):
        bio, weight = linear(torch.bfloat16)
        master = Master(bio.parameters(), lr=0.5)
        GradScheduler(bio, master, rules=rules)
        for gradient in gradients(weight, 4):
            weight.grad = gradient
            master.step()
            assert torch.equal(master.state[weight]["master"].bfloat16(), weight)
    bio, weight = linear()
    mean = optim.ASGD(bio.parameters(), lr=0.1)
    GradScheduler(bio, mean, rules=[Fixed(), Nudge()])
    for gradient in gradients(weight, 4):
        weight.grad = gradient
        mean.step()
        torch.testing.assert_close(mean.state[weight]["ax"], weight.detach())


def test_the_mean_of_asgd_is_that_of_the_scaled_weights() -> None:
    bio, weight = linear()
    optimizer = optim.ASGD(bio.parameters(), lr=0.1, t0=2)
    GradScheduler(bio, optimizer, rules=[Fixed()])
    seen = []
    for gradient in gradients(weight, 8):
        weight.grad = gradient
        optimizer.step()
        seen.append(weight.detach().clone())
    torch.testing.assert_close(
        optimizer.state[weight]["ax"], torch.stack(seen[3:]).mean(0), rtol=1e-5, atol=1e-6
    )


UNTRIED = (optim.LBFGS, optim.SparseAdam)


@pytest.mark.parametrize("cls", [c for c in KNOWN if c not in UNTRIED], ids=lambda c: c.__name__)
def test_what_is_said_of_torchs_optimizers_is_what_a_trial_finds(cls: Any) -> None:
    weight = nn.Parameter(torch.randn(4, 4))
    optimizer = cls([weight], lr=0.02)
    group = optimizer.param_groups[0]
    said, found = traits_of(optimizer, group, weight), tried(optimizer, group, weight)
    assert (said.pulls, said.positions, said.averages) == (
        found.pulls,
        found.positions,
        found.averages,
    )
    assert said.starts.keys() == found.starts.keys()
    assert list(said.starts.values()) == pytest.approx(list(found.starts.values()))


def test_a_trial_leaves_no_trace(capsys: pytest.CaptureFixture[str]) -> None:
    class Loud(optim.SGD):
        def step(self, closure: Any = None) -> Any:
            sys.stdout.write(f"step {torch.rand(())}\n")
            return super().step(closure)

    weight = nn.Parameter(torch.randn(4, 4))
    optimizer = Loud([weight], lr=0.1, momentum=0.9)
    state, before = torch.get_rng_state(), weight.detach().clone()
    assert tried(optimizer, optimizer.param_groups[0], weight).tried
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(weight, before)
    assert weight.grad is None
    assert not optimizer.state
    assert capsys.readouterr().out == ""
    needing = Needing([weight], None)
    assert tried(needing, needing.param_groups[0], weight) == UNKNOWN


def test_sharpness_aware_minimisation() -> None:
    """Its first and second step are seen: factors scale the move of the optimizer inside."""
    ends = []
    for rules in ([], [Fixed()]):
        bio, weight = linear()
        optimizer = Sharpness(bio.parameters(), optim.SGD, lr=0.1, momentum=0.9)
        scheduler = GradScheduler(bio, optimizer, rules=rules)
        for gradient in gradients(weight, 6):
            weight.grad = gradient
            optimizer.first_step()
            weight.grad = 2 * gradient
            optimizer.second_step()
        assert scheduler.steps == [6]
        ends.append(weight.detach().clone())
    _, start = linear()
    factor = FACTORS.repeat(start.numel() // 4).view_as(start)
    expected = start + factor * (ends[0] - start)
    torch.testing.assert_close(ends[1], expected.detach(), rtol=1e-5, atol=1e-6)
