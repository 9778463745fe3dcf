"""Half precision: a factor acts in the mean, and only known random numbers decide."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import biofx
from biofx.plasticity import Context, Crystallize, GradScheduler, Rule
from biofx.plasticity.numerics import random
from biofx.plasticity.numerics.rounding import stochastic

HALVES = [torch.bfloat16, torch.float16]


@dataclass(frozen=True, kw_only=True)
class Scaled(Rule):
    """One factor for all synapses."""

    rate: float

    def factor(self, context: Context) -> Tensor:
        return torch.full_like(context.weight, self.rate, dtype=torch.float32)


def key(step: int = 1) -> Tensor:
    return random.key_tensor(random.stream_key(0, step, "w"))


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_the_mean_is_the_value(dtype: torch.dtype) -> None:
    """Over sizes from subnormal numbers to large ones, of both signs."""
    exponents = torch.arange(-26, 15) if dtype == torch.float16 else torch.arange(-140, 120, 7)
    values = torch.ldexp(1 + torch.rand(len(exponents)), exponents)
    values = torch.cat([values, -values])
    count = 40_000
    index = random.counters((len(values), count))
    stored = stochastic(values[:, None].expand(-1, count).contiguous(), key(), index, dtype)
    assert torch.equal(stored.to(dtype).float(), stored)  # nothing is left to be rounded
    low, high = stored.amin(1), stored.amax(1)
    assert (low <= values).all()
    assert (values <= high).all()
    unit = (high - low).clamp(min=1e-45).double()
    error = (stored.double().mean(1) - values.double()).abs() / unit
    assert float(error.max()) < 5 * 0.5 / count**0.5
    # The two neighbours and no others.
    assert (torch.nextafter(low.to(dtype), high.to(dtype)) >= high.to(dtype)).all()


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_what_can_be_stored_is_kept(dtype: torch.dtype) -> None:
    special = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.nan, 1.0, -(2.0**-9)])
    largest = torch.tensor([torch.finfo(dtype).max, -torch.finfo(dtype).max])
    every = torch.arange(2**15, dtype=torch.int16).view(dtype).float()
    values = torch.cat([special, largest, every, -every])
    stored = stochastic(values, key(), random.counters(values.shape), dtype)
    torch.testing.assert_close(stored, values, rtol=0, atol=0, equal_nan=True)
    assert torch.signbit(stored[1])


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_nothing_overflows_that_rounding_keeps_finite(dtype: torch.dtype) -> None:
    share = torch.linspace(0.99, 1.01, 2001, dtype=torch.float64)
    values = (torch.finfo(dtype).max * torch.cat([share, -share])).float()
    stored = stochastic(values, key(), random.counters(values.shape), dtype).to(dtype)
    assert torch.equal(stored.isinf(), values.to(dtype).isinf())
    assert 100 < int(stored.isinf().sum()) < 3900


def test_other_types_are_refused() -> None:
    with pytest.raises(TypeError, match="float8"):
        stochastic(torch.ones(2), key(), random.counters(2), torch.float8_e4m3fn)


def moved(
    optimizer: str, rate: float, dtype: torch.dtype, *, steps: int = 40, **options: Any
) -> float:
    """The mean way of the weights."""
    torch.manual_seed(0)
    bio = biofx.transform(nn.Sequential(nn.Linear(128, 128, bias=False)).to(dtype))
    weight = bio.get_parameter("0.weight")
    start = weight.detach().double()
    made: Any = {
        "adamw": lambda p: torch.optim.AdamW(p, lr=1e-4, weight_decay=0.0),
        "sgd": lambda p: torch.optim.SGD(p, lr=1e-4),
        "momentum": lambda p: torch.optim.SGD(p, lr=1e-5, momentum=0.9),
    }[optimizer](bio.parameters())
    GradScheduler(bio, made, rules=[Scaled(rate=rate)], **options)
    for _ in range(steps):
        weight.grad = torch.ones_like(weight)
        made.step()
    return float((start - weight.detach().double()).mean())


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "momentum"])
def test_the_mean_move_is_the_factor_times_the_plain_one(
    optimizer: str, dtype: torch.dtype
) -> None:
    plain = moved(optimizer, 1.0, dtype)
    assert plain > 0
    for rate in (0.0, 0.3, 0.8, 1.5):
        # An optimizer's own rounding depends on the way; hence no closer.
        assert moved(optimizer, rate, dtype) / plain == pytest.approx(rate, abs=0.05), rate


def test_compiled_and_plain_code_round_alike() -> None:
    ends = []
    for compiled in (False, True):
        torch.manual_seed(0)
        bio = biofx.transform(nn.Sequential(nn.Linear(96, 64)).bfloat16())
        optimizer = torch.optim.AdamW(bio.parameters(), lr=1e-3)
        rules = [Scaled(rate=0.37), Crystallize(threshold=0.1)]
        GradScheduler(bio, optimizer, rules=rules, compile=compiled)
        for step in range(4):
            bio(torch.ones(2, 96, dtype=torch.bfloat16) * step).square().mean().backward()
            optimizer.step()
        ends.append(bio.get_parameter("0.weight").detach())
    assert torch.equal(*ends)


def test_it_is_reproducible_and_needs_no_generator() -> None:
    assert moved("adamw", 0.3, torch.bfloat16) == moved("adamw", 0.3, torch.bfloat16)
    weight, index = torch.rand(64), random.counters(64)
    state = torch.get_rng_state()
    first = stochastic(weight, key(), index, torch.bfloat16)
    halves = [
        stochastic(weight[part], key(), index[part], torch.bfloat16)
        for part in (slice(40), slice(40, 64))
    ]
    assert torch.equal(torch.cat(halves), first)  # whoever holds which part
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(stochastic(weight, key(2), index, torch.bfloat16), first)
