"""Each rule agrees with its formula, elementwise, given the same random numbers."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import biofx
from biofx.config import Distribution
from biofx.plasticity import (
    Context,
    Crystallize,
    FuzzyLearningRates,
    GradScheduler,
    Rejuvenate,
    Rule,
    Schedule,
    VolumeDependentRates,
    crystallize,
    fuzzy_factors,
    project_dale,
    rejuvenate,
    volume_factors,
)
from biofx.plasticity.kernels.compiled import can_compile
from biofx.plasticity.numerics import random
from biofx.plasticity.rules.fuzzy import (
    activity_nu,
    layer_adaptive_nu,
    temporal_step,
    weight_adaptive_nu,
)
from biofx.plasticity.rules.rejuvenate import (
    lognormal_synapses,
    loss_probability,
    uniform_synapses,
)

from . import reference
from .table import make

CLOSE = {"rtol": 2e-6, "atol": 1e-7}
needs_compiler = pytest.mark.skipif(not can_compile(torch.device("cpu")), reason="no compiler")
seeds = st.integers(0, 2**32 - 1)


def draws(seed: int, *shape: int) -> tuple[np.random.Generator, Tensor]:
    generator = np.random.default_rng(seed)
    return generator, torch.from_numpy(generator.normal(size=shape).astype(np.float32))


def scalars(*values: float) -> list[Tensor]:
    return [torch.tensor(value) for value in values]


def double(tensor: Tensor) -> np.ndarray:
    return tensor.double().numpy()


@given(seeds, st.floats(0.001, 2.0), st.sampled_from(["uniform", "normal", "lognormal", "beta"]))
def test_fuzzy(seed: int, nu: float, distribution: str) -> None:
    generator, z = draws(seed, 50)
    u = torch.from_numpy(generator.random(50, dtype=np.float32))
    draw = {"uniform": 2 * u - 1, "beta": u}.get(distribution, z)
    t, low, high = scalars(nu, 0.5, 2.0)
    ours = fuzzy_factors(draw, t, low=low, high=high, distribution=Distribution(distribution))
    theirs = reference.fuzzy(distribution, double(draw), float(t), 0.5, 2.0)
    np.testing.assert_allclose(ours, theirs, **CLOSE)


@pytest.mark.parametrize("nu", [0.05, 0.16, 0.5, 0.9])
@pytest.mark.parametrize("distribution", ["uniform", "normal", "lognormal", "gamma", "beta"])
def test_mean_is_one_and_spread_is_nu(distribution: str, nu: float) -> None:
    """Before the clamp; the seed's GAMMA has a mean of 1.84 after it."""
    model = make({"fuzzy_lr_distribution": distribution, "fuzzy_learning_rate_factor_nu": nu})
    rule = FuzzyLearningRates(low=0.0, high=1e9)
    factors = factors_of(rule, model, shape=(400, 500))
    spread = {
        "uniform": nu / 3**0.5,
        "lognormal": np.sqrt(np.expm1(nu**2)),
        "beta": nu / np.sqrt(2 / nu + 1),
    }.get(distribution, nu)
    if distribution == "normal" and nu > 0.3:
        return  # the clamp at 0 cuts
    assert factors.mean() == pytest.approx(1, abs=6 * spread / 200_000**0.5)
    assert factors.std() == pytest.approx(spread, rel=0.02)


@pytest.mark.parametrize(("nu", "mean"), [(1e-30, 1.0), (1e-20, 1.0), (1e20, 0.5), (1e30, 0.5)])
def test_gamma_factors_of_any_spread_are_numbers(nu: float, mean: float) -> None:
    model = make({"fuzzy_lr_distribution": "gamma", "fuzzy_learning_rate_factor_nu": nu})
    factors = factors_of(FuzzyLearningRates(), model, shape=(40, 50))
    assert factors.mean() == pytest.approx(mean)


def factors_of(rule: Rule, model: torch.nn.Module, *, shape: tuple[int, ...]) -> np.ndarray:
    """The factors of a rule for the first parameter of a model, made larger."""
    from dataclasses import replace

    from biofx.plasticity import Context
    from biofx.plasticity.numerics.shards import Shard

    synapses = replace(next(iter(biofx.info(model).synapses.values())), shape=shape)
    weight = torch.zeros(shape)
    context = Context(
        synapses=synapses,
        rule=rule.name,
        shard=Shard(shape, shape, (0,) * len(shape)),
        weight=weight,
        step=1,
    )
    rule.prepare(context)
    factor = rule.factor(context)
    assert factor is not None
    return double(factor)


@given(seeds, st.floats(0.01, 1), st.floats(0, 5), st.floats(0, 3))
def test_volume(seed: int, base: float, stability: float, variability: float) -> None:
    generator, w = draws(seed, 5, 6)
    z = torch.from_numpy(generator.normal(size=(5, 6)).astype(np.float32))
    b, s, v = scalars(base, stability, variability)
    ours = volume_factors(w, z, base=b, stability=s, variability=v)
    theirs = reference.volume(double(w), double(z), float(b), float(s), float(v))
    np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=1e-7)


@given(seeds, st.floats(0.1, 0.99), st.sampled_from([0.0, 0.01, 0.3]))
def test_crystallize(seed: int, dampening: float, floor: float) -> None:
    generator, w = draws(seed, 6, 7)
    damp, thresh, least = scalars(dampening, 0.3, floor)
    theirs = np.ones((6, 7))
    ours = torch.ones(6, 7)
    for _ in range(12):
        g = torch.from_numpy(generator.normal(scale=0.5, size=(6, 7)).astype(np.float32))
        mean = w.abs().double().mean().float()
        ours = crystallize(
            ours, w, grad=g, mean_abs=mean, threshold=thresh, dampening=damp, floor=least
        )
        theirs = reference.crystallize(
            theirs, double(w), double(g), float(thresh), float(damp), float(least)
        )
    np.testing.assert_allclose(ours, theirs, rtol=3e-6, atol=1e-30)


@given(seeds, st.floats(0.5, 50))
def test_rejuvenate(seed: int, d: float) -> None:
    generator, w = draws(seed, 8, 9)
    u, draw = torch.from_numpy(generator.random((2, 8, 9), dtype=np.float32))
    u, draw, largest = 2 * u - 1, 1 - draw, w.abs().max()
    p = loss_probability(w, max_abs=largest, d=torch.tensor(d))
    new, mask = rejuvenate(w, uniform_synapses(u, largest), draw=draw, probability=p)
    chance = reference.removal(double(w), float(torch.tensor(d)))
    np.testing.assert_allclose(p, chance, rtol=0, atol=3e-6)
    sure = np.abs(chance - double(draw)) > 3e-6
    assert np.array_equal(mask.numpy()[sure], (double(draw) <= chance)[sure])
    expected = np.where(mask, double(u) * float(largest), double(w))
    np.testing.assert_allclose(new, expected, rtol=1e-6, atol=3e-7)


@pytest.mark.parametrize("d", [2.0, 8.0, 20.0])
def test_rejuvenation_has_the_probability_of_the_paper(d: float) -> None:
    """erfc(|w|/(σ√2)), in bins of |w|: a chi-square test with one number per bin."""
    model, weight = linear((1000, 200))
    before = double(weight.detach())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    GradScheduler(model, optimizer, rules=[Rejuvenate(d=d)], seed=3)
    weight.grad = torch.zeros_like(weight)
    optimizer.step()
    lost = (double(weight.detach()) != before).ravel()
    chance = reference.removal(before, d).ravel()
    order = np.argsort(np.abs(before).ravel())
    for part in np.array_split(order, 20):
        expected, spread = chance[part].sum(), np.sqrt((chance[part] * (1 - chance[part])).sum())
        assert abs(lost[part].sum() - expected) <= 4.5 * spread + 1


@given(seeds)
def test_lognormal_synapses(seed: int) -> None:
    generator, z = draws(seed, 40)
    sign = torch.from_numpy(2 * generator.random(40, dtype=np.float32) - 1)
    mean, std = scalars(-1.5, 0.8)
    ours = lognormal_synapses(z, sign, mean=mean, std=std)
    theirs = np.exp(-1.5 + float(std) * double(z)) * np.where(double(sign) < 0, -1, 1)
    np.testing.assert_allclose(ours, theirs, rtol=3e-6)


@given(seeds)
def test_dale(seed: int) -> None:
    generator, w = draws(seed, 5, 4)
    signs = torch.from_numpy(np.sign(generator.random(4) - 0.5).astype(np.float32))
    ours, wrong = project_dale(w, signs)
    theirs = reference.dale(double(w), double(signs))
    np.testing.assert_array_equal(ours, theirs)
    assert int(wrong.sum()) == int((theirs != double(w)).sum())


@given(seeds)
def test_adaptive_spreads(seed: int) -> None:
    generator, w = draws(seed, 5, 4)
    (nu,) = scalars(0.3)
    ours = weight_adaptive_nu(w, nu, mean_abs=w.abs().mean())
    np.testing.assert_allclose(ours, reference.weight_adaptive_nu(double(w), float(nu)), **CLOSE)
    counts = torch.from_numpy(generator.integers(0, 50, 9).astype(np.float32)) + 1
    theirs = reference.activity_nu(double(counts), float(nu))
    np.testing.assert_allclose(activity_nu(counts, nu), theirs, **CLOSE)


def test_adaptive_spreads_of_nothing() -> None:
    """All weights 0, or no unit ever active: no division by 0."""
    nu = torch.tensor(0.2)
    assert (weight_adaptive_nu(torch.zeros(3), nu, mean_abs=torch.tensor(0.0)) == 1.5 * nu).all()
    assert (activity_nu(torch.zeros(3), nu) == nu).all()


@pytest.mark.parametrize(("rank", "ranks", "nu"), [(0, 5, 1), (4, 5, 0.5), (2, 5, 0.75), (0, 1, 1)])
def test_layer_adaptive(rank: int, ranks: int, nu: float) -> None:
    assert layer_adaptive_nu(1.0, rank, ranks) == nu


@given(seeds)
def test_temporal(seed: int) -> None:
    generator, _ = draws(seed, 1)
    f = generator.uniform(0.5, 2, 20)
    noise = generator.uniform(-0.02, 0.02, 20)
    decay, low, high = scalars(0.9995, 0.5, 2.0)
    ours = temporal_step(
        torch.from_numpy(f).float(),
        decay,
        low=low,
        high=high,
        noise=torch.from_numpy(noise).float(),
    )
    theirs = reference.temporal(f, float(decay), noise, 0.5, 2.0)
    np.testing.assert_allclose(ours, theirs, **CLOSE)


def linear(shape: tuple[int, int] = (40, 30), **config: object) -> tuple[torch.nn.Module, Tensor]:
    model = biofx.transform(
        torch.nn.Sequential(torch.nn.Linear(*shape[::-1], bias=False)),
        biofx.BioConfig(**{"fuzzy_lr_distribution": "baseline", **config}),  # type: ignore[arg-type]
    )
    weight = model.get_parameter("0.weight")
    with torch.no_grad():
        weight.copy_(torch.from_numpy(np.random.default_rng(0).normal(size=shape)))
    return model, weight


def key(step: int, stream: str, seed: int = 5) -> Tensor:
    """The key of a rule's stream: "Rule.stream"."""
    return random.key_tensor(random.stream_key(seed, step, "0.weight", stream))


def index(weight: Tensor) -> Tensor:
    return random.counters(tuple(weight.shape))


def test_a_whole_run() -> None:
    """Fuzzy, volume and crystallize together over several SGD steps, against the formulas."""
    model, weight = linear()
    rules = [
        FuzzyLearningRates(distribution="lognormal", nu=0.3),
        VolumeDependentRates(base=0.7),
        Crystallize(threshold=0.4, schedule=Schedule(every=2)),
    ]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    GradScheduler(model, optimizer, rules=rules, seed=5)
    generator = np.random.default_rng(1)
    w, crystal = double(weight.detach()), np.ones((40, 30))
    z = double(random.normal(key(0, "FuzzyLearningRates.factors"), index(weight)))
    f = reference.fuzzy("lognormal", z, 0.3, 0.5, 2.0)
    for step in range(1, 6):
        g = generator.normal(scale=0.6, size=w.shape).astype(np.float32)
        weight.grad = torch.from_numpy(g)
        optimizer.step()
        if step % 2 == 0:
            crystal = reference.crystallize(crystal, w, g.astype(float), 0.4, 0.6, 0.0)
        z = double(random.normal(key(step, "VolumeDependentRates.noise"), index(weight)))
        w = w - 0.3 * f * reference.volume(w, z, 0.7, 2.0, 0.2) * crystal * g
        np.testing.assert_allclose(weight.detach(), w, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("share", [1.0, 0.04, 0.001, 1e-6])
@pytest.mark.parametrize("law", ["uniform", "lognormal"])
def test_rejuvenation_of_a_layer(law: str, share: float) -> None:
    model, weight = linear((100, 70))
    rule = Rejuvenate(d=6, law=law, max_share=share)  # type: ignore[arg-type]
    optimizer = torch.optim.Adam(model.parameters(), lr=0.0)
    GradScheduler(model, optimizer, rules=[rule], seed=5)
    weight.grad = torch.ones_like(weight)
    before = double(weight.detach()).astype(float)
    before_float = weight.detach().clone()
    optimizer.step()
    p = reference.removal(before, 6)
    p *= min(1.0, share * weight.numel() / p.sum())
    draw = double(random.positive(key(1, "Rejuvenate.synapses"), index(weight), draw=1))
    chosen = draw <= p
    changed = (weight.detach() != before_float).numpy()
    assert np.array_equal(changed, chosen)
    v = double(random.uniform(key(1, "Rejuvenate.synapses"), index(weight)))
    if law == "uniform":
        fresh = np.abs(before).max() * (2 * v - 1)
    else:
        mean, std = reference.log_moments(before)
        z = double(random.normal(key(1, "Rejuvenate.synapses"), index(weight), draw=1))
        fresh = np.exp(mean + std * z) * np.where(v < 0.5, -1, 1)
    np.testing.assert_allclose(weight.detach()[changed], fresh[changed], rtol=1e-5, atol=1e-6)
    state = optimizer.state[weight]
    assert not state["exp_avg"][changed].any()
    assert not state["exp_avg_sq"][changed].any()
    assert state["exp_avg"][~changed].all()


@pytest.mark.filterwarnings("ignore:most units of these layers got no gradient")
@pytest.mark.parametrize("share", [0.9, 0.5, 0.03, 0.001])
@pytest.mark.parametrize("compile", [False, pytest.param(True, marks=needs_compiler)])
def test_the_cap_holds_in_expectation(share: float, compile: bool) -> None:
    """And multiplies every probability by the same number."""
    model, weight = linear((100, 30))
    before = weight.detach().clone()
    size = before.abs().double()
    p = torch.erfc(size / (size.max() / 2 * math.sqrt(2)))
    p *= min(1.0, share * 3000 / float(p.sum()))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    GradScheduler(model, optimizer, rules=[Rejuvenate(d=2, max_share=share)], compile=compile)
    times, rounds = torch.zeros(100, 30), 300
    for _ in range(rounds):
        weight.grad = torch.zeros_like(weight)
        optimizer.step()
        times += weight != before
        with torch.no_grad():
            weight.copy_(before)
    weak = p > p.median()
    for part in (weak, ~weak):
        expected, variance = p[part].sum() * rounds, (p * (1 - p))[part].sum() * rounds
        assert abs(times[part].sum() - expected) < 4.5 * variance.sqrt()


def test_weights_of_zero_are_left_alone() -> None:
    for law in ("uniform", "lognormal"):
        model, weight = linear((5, 4))
        with torch.no_grad():
            weight.zero_()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        GradScheduler(model, optimizer, rules=[Rejuvenate(law=law)])  # type: ignore[arg-type]
        weight.grad = torch.zeros_like(weight)
        optimizer.step()
        assert not weight.any()


@pytest.mark.parametrize("zeros", [0.02, 0.5, 0.99])
def test_the_cap_chooses_among_zeros(zeros: float) -> None:
    model, weight = linear((200, 100))
    pruned = torch.rand(weight.shape, generator=torch.Generator().manual_seed(0)) < zeros
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    scheduler = GradScheduler(model, optimizer, rules=[Rejuvenate(max_share=0.01)])
    for _ in range(3):
        with torch.no_grad():
            weight[pruned] = 0
        before = weight.detach().clone()
        weight.grad = torch.zeros_like(weight)
        optimizer.step()
        turnover = scheduler.metrics()["0.weight"]["turnover"]
        assert abs(turnover - 0.01) < 5 * math.sqrt(0.01 / 20_000)
        # A zero is lost with probability 1; of the others, 0.3 on average here.
        zero = (before[weight.detach() != before] == 0).float().mean()
        p = torch.erfc(before.abs().double() * 8 / (before.abs().max() * math.sqrt(2)))
        assert abs(zero - pruned.sum() / p.sum()) < 0.15


def test_rules_draw_independently() -> None:
    """Whatever they call their streams, and if they are of one class."""

    class First(Rule):
        def factor(self, context: Context) -> Tensor:
            return context.symmetric()

    class Second(First):
        pass

    for rules in ([First(), Second()], [First(), First()]):
        model, weight = linear((200, 100))
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        GradScheduler(model, optimizer, rules=rules, apply="gradient")
        weight.grad = torch.ones_like(weight)
        optimizer.step()
        # E(xy) = 0, with standard deviation ⅓ of a product; equal draws have ⅓ as their mean
        assert weight.grad.mean().abs() < 0.01
