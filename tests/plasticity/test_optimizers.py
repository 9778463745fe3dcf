"""A factor is a learning rate under every optimizer, however that is implemented."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn, optim
from torch.optim import Optimizer

import biofx
from biofx.plasticity import Context, Crystallize, FuzzyLearningRates, GradScheduler, Rule
from biofx.plasticity.scheduler import arenas

from .optimizers import Own
from .table import batches, make, same, train


class Fixed(Rule):
    """Factors 0, 0.3, 1, 1.7 over and over."""

    def factor(self, context: Context) -> Tensor:
        cycle = torch.tensor([0.0, 0.3, 1.0, 1.7])
        return cycle[context.index.long() % 4].to(context.weight.dtype)


class Lion(Own):
    """Sign of an interpolated momentum, decoupled decay: as users write it."""

    def __init__(self, params: Any, lr: float = 1e-3, weight_decay: float = 0.1) -> None:
        super().__init__(params, lr, weight_decay=weight_decay)

    def move(self, w: Tensor, g: Tensor, state: Any, group: Any) -> None:
        m = state.setdefault("momentum", torch.zeros_like(w))
        w.mul_(1 - group["lr"] * group["weight_decay"])
        w.add_(m.lerp(g, 0.1).sign(), alpha=-group["lr"])
        m.lerp_(g, 0.01)


class Nested(torch.optim.AdamW):
    """A subclass whose step calls its base's: hooks would run twice."""

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.grad.clamp_(-1, 1)
        loss = super().step(closure)
        with torch.no_grad():
            for group in self.param_groups:
                for p in group["params"]:
                    p.mul_(0.999)  # after the base's: factors must cover it
        return loss


MADE: dict[str, Callable[[Any], Optimizer]] = {
    "sgd": lambda p: optim.SGD(p, lr=0.1),
    "sgd-lr-tensor": lambda p: optim.SGD(p, lr=torch.tensor(0.1)),
    "sgd-maximize": lambda p: optim.SGD(p, lr=0.1, maximize=True),
    "sgd-decay": lambda p: optim.SGD(p, lr=0.1, weight_decay=0.3),
    "sgd-momentum": lambda p: optim.SGD(p, lr=0.1, momentum=0.9),
    "sgd-nesterov": lambda p: optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "adam": lambda p: optim.Adam(p, lr=0.01),
    "adam-amsgrad": lambda p: optim.Adam(p, lr=0.01, amsgrad=True, weight_decay=0.1),
    "adamw": lambda p: optim.AdamW(p, lr=0.01, weight_decay=0.3),
    "nadam": lambda p: optim.NAdam(p, lr=0.01),
    "radam": lambda p: optim.RAdam(p, lr=0.01),
    "adamax": lambda p: optim.Adamax(p, lr=0.01),
    "rmsprop": lambda p: optim.RMSprop(p, lr=0.01),
    "rmsprop-centered": lambda p: optim.RMSprop(p, lr=0.01, centered=True, momentum=0.5),
    "adagrad": lambda p: optim.Adagrad(p, lr=0.01),
    "adadelta": lambda p: optim.Adadelta(p, lr=1.0),
    "rprop": lambda p: optim.Rprop(p, lr=0.01),
    "asgd": lambda p: optim.ASGD(p, lr=0.01),
    "adafactor": lambda p: optim.Adafactor(p, lr=0.01),
    "lion": lambda p: Lion(p),
    "nested": lambda p: Nested(p, lr=0.01),
    "lbfgs": lambda p: optim.LBFGS(p, lr=0.1, max_iter=3),
    "lbfgs-wolfe": lambda p: optim.LBFGS(p, max_iter=3, line_search_fn="strong_wolfe"),
}
for cls in (
    optim.SGD,
    optim.Adam,
    optim.AdamW,
    optim.RMSprop,
    optim.Adagrad,
    optim.NAdam,
    optim.RAdam,
    optim.Adadelta,
    optim.Adamax,
):
    for flag in (True, False):
        MADE[f"{cls.__name__.lower()}-foreach-{flag}"] = lambda p, cls=cls, flag=flag: cls(
            p, lr=0.01, foreach=flag
        )
for cls in (optim.SGD, optim.Adam, optim.AdamW, optim.Adagrad):
    MADE[f"{cls.__name__.lower()}-fused"] = lambda p, cls=cls: cls(p, lr=0.01, fused=True)
MADE["sgd-nesterov-foreach"] = lambda p: optim.SGD(
    p, lr=0.1, momentum=0.9, nesterov=True, foreach=True
)

every_optimizer = pytest.mark.parametrize("make_optimizer", MADE.values(), ids=MADE)


def step_once(model: nn.Module, optimizer: Optimizer) -> None:
    ((x, y),) = batches(1)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(x), y)
        loss.backward()
        return loss

    if isinstance(optimizer, optim.LBFGS):
        optimizer.step(closure)
    else:
        closure()
        optimizer.step()


@every_optimizer
def test_first_step(make_optimizer: Callable[[Any], Optimizer]) -> None:
    """The first step of each weight is its factor times the plain step."""
    plain, bio = make(), make()
    start = {name: value.detach().clone() for name, value in plain.named_parameters()}
    step_once(plain, make_optimizer(plain.parameters()))
    optimizer = make_optimizer(bio.parameters())
    scheduler = GradScheduler(bio, optimizer, rules=[Fixed()])
    step_once(bio, optimizer)
    assert scheduler.steps == [1]
    expected = dict(plain.named_parameters())
    for name, parameter in bio.named_parameters():
        if name not in biofx.info(bio).synapses:
            assert torch.equal(parameter, expected[name])
            continue
        w0, w1 = start[name].flatten(), expected[name].detach().flatten()
        ours = parameter.detach().flatten()
        assert not torch.equal(w0, w1)
        factor = torch.tensor([0.0, 0.3, 1.0, 1.7]).repeat(w0.numel() // 4 + 1)[: w0.numel()]
        torch.testing.assert_close(ours, w0 + factor * (w1 - w0), rtol=0, atol=2e-7)
        # to the bit where nothing is to be rounded
        assert torch.equal(ours[2::4], w1[2::4])
        if type(optimizer) is not optim.SGD:
            assert torch.equal(ours[::4], w0[::4])


@every_optimizer
def test_factors_of_one_change_nothing(make_optimizer: Callable[[Any], Optimizer]) -> None:
    plain, bio = make(), make()
    first, second = make_optimizer(plain.parameters()), make_optimizer(bio.parameters())
    one = [FuzzyLearningRates(distribution="uniform", nu=1e-30)]
    GradScheduler(bio, second, rules=one)
    for _ in range(4):
        step_once(plain, first)
        step_once(bio, second)
    assert same(plain, bio)


@every_optimizer
def test_gradients_stay_as_they_are(make_optimizer: Callable[[Any], Optimizer]) -> None:
    """What is read from `.grad` after the step is what a plain step leaves there."""
    plain, bio = make(), make()
    first, second = make_optimizer(plain.parameters()), make_optimizer(bio.parameters())
    GradScheduler(bio, second, rules=[Fixed()])
    if isinstance(first, optim.LBFGS):
        pytest.skip("the last of its gradients is at another point")
    step_once(plain, first)
    step_once(bio, second)
    for ours, theirs in zip(bio.parameters(), plain.parameters(), strict=True):
        assert ours.grad is not None
        assert theirs.grad is not None
        assert torch.equal(ours.grad, theirs.grad)


@every_optimizer
def test_gradients_are_judged_as_backward_left_them(
    make_optimizer: Callable[[Any], Optimizer],
) -> None:
    """Against the weights before the step, whatever the step does to both."""
    plain, bio = make(), make()
    optimizer = make_optimizer(bio.parameters())
    scheduler = GradScheduler(bio, optimizer, rules=[Crystallize(threshold=0.3, dampening=0.5)])
    ((x, y),) = batches(1)
    nn.functional.mse_loss(plain(x), y).backward()
    step_once(bio, optimizer)
    states = scheduler.state_dict()["state"]["Crystallize"]
    for name in biofx.info(bio).synapses:
        weight = plain.get_parameter(name)
        assert weight.grad is not None
        size, strength = weight.grad.abs(), weight.detach().abs()
        settled = (size < 0.3 * strength) | (size > strength.mean())
        assert settled.any()
        assert torch.equal(states[name]["factors"], torch.where(settled, 0.5, 1.0))


def test_gradients_that_change_before_they_are_judged() -> None:
    class Zeroing(Rule):
        """Zeroes the gradients after the rules before it have put off judging them."""

        def expression(self, context: Context) -> None:
            context.grad.zero_()  # type: ignore[union-attr]

    bio = make()
    optimizer = optim.SGD(bio.parameters(), lr=0.1)
    GradScheduler(bio, optimizer, rules=[Crystallize(), Zeroing()])
    with pytest.raises(biofx.PlasticityError, match=r"\.grad was changed during optimizer\.step"):
        step_once(bio, optimizer)


@pytest.mark.parametrize("options", [{}, {"momentum": 0.9}, {"weight_decay": 0.1}], ids=str)
def test_a_factor_of_zero_holds_a_weight(options: Any) -> None:
    bio = make()
    optimizer = optim.SGD(bio.parameters(), lr=0.1, **options)
    GradScheduler(bio, optimizer, rules=[Fixed()])
    start = {name: bio.get_parameter(name).detach().clone() for name in biofx.info(bio).synapses}
    train(bio, optimizer, batches(50))
    for name, before in start.items():
        assert torch.equal(bio.get_parameter(name).detach().flatten()[::4], before.flatten()[::4])


@pytest.mark.parametrize("small", [0, arenas.SMALL])
def test_plain_sgd_needs_no_copy(small: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arenas, "SMALL", small)
    for options, copies in ({}, False), ({"momentum": 0.9}, True):
        bio = make()
        optimizer = optim.SGD(bio.parameters(), lr=0.1, **options)  # type: ignore[arg-type]
        scheduler = GradScheduler(bio, optimizer, rules=[FuzzyLearningRates()])
        train(bio, optimizer, batches(1))
        kept = scheduler._attachments[0]._copy.kept
        # Small layers of equal settings share one.
        shared = [binding._other for binding in scheduler._engine.arenas[0].bindings]
        assert len(shared) == bool(small)
        assert [other is not None for other in shared] == [copies] * len(shared)
        assert len(kept) == (len(biofx.info(bio).synapses) if copies and not small else 0)


def test_sparse_gradients() -> None:
    """Rows that a batch does not touch do not move; the others do by their factors."""
    cases: list[tuple[Any, Any]] = [
        (lambda p: optim.SGD(p, lr=0.1), "update"),
        (lambda p: optim.SGD(p, lr=0.1), "gradient"),
        (lambda p: optim.SparseAdam(p, lr=0.1), "update"),
    ]
    for make_optimizer, apply in cases:
        weights = []
        for scheduled in (False, True):
            torch.manual_seed(0)
            model = biofx.transform(nn.Sequential(nn.Embedding(10, 4, sparse=True)))
            optimizer = make_optimizer(list(model.parameters()))
            weights.append(model.get_parameter("0.weight"))
            before = weights[-1].detach().clone()
            if scheduled:
                GradScheduler(model, optimizer, rules=[Fixed()], apply=apply)
            model(torch.tensor([1, 3, 3])).square().sum().backward()
            optimizer.step()
        factor = torch.tensor([0.0, 0.3, 1.0, 1.7]).expand(10, 4)
        expected = before + factor * (weights[0].detach() - before)
        torch.testing.assert_close(weights[1].detach(), expected)


def test_a_step_that_raises_is_forgotten() -> None:
    class Failing(optim.SGD):
        fail = True

        def step(self, closure: Any = None) -> Any:
            if self.fail:
                raise RuntimeError("disk full")
            return super().step(closure)

    bio, plain = make(), make()
    optimizer = Failing(bio.parameters(), lr=0.1, momentum=0.9)
    scheduler = GradScheduler(bio, optimizer, rules=[Fixed()])
    with pytest.raises(RuntimeError, match="disk full"):
        train(bio, optimizer, batches(1))
    assert scheduler.steps == [0]
    assert same(bio, plain)
    optimizer.fail = False
    train(bio, optimizer, batches(1))
    assert scheduler.steps == [1]
    other = optim.SGD(plain.parameters(), lr=0.1, momentum=0.9)
    GradScheduler(plain, other, rules=[Fixed()])
    train(plain, other, batches(1))
    assert same(bio, plain)


def test_gradient_mode_warns_of_optimizers_that_undo_it() -> None:
    model = make()
    with pytest.warns(UserWarning, match='Adam all but ignores.*apply="update"'):
        GradScheduler(model, optim.Adam(model.parameters()), apply="gradient")
    with pytest.warns(UserWarning, match="Lion"):
        GradScheduler(model, Lion(model.parameters()), apply="gradient")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        GradScheduler(model, optim.SGD(model.parameters(), lr=0.1), apply="gradient")
        GradScheduler(model, optim.Adam(model.parameters()))


def test_gradient_mode_scales_gradients_in_place() -> None:
    plain, bio = make(), make()
    for model in (plain, bio):
        optimizer = optim.SGD(model.parameters(), lr=0.1)
        if model is bio:
            GradScheduler(model, optimizer, rules=[Fixed()], apply="gradient")
        train(model, optimizer, batches(1))
    theirs = dict(plain.named_parameters())
    for name in biofx.info(bio).synapses:
        ours, grad = bio.get_parameter(name).grad, theirs[name].grad
        assert ours is not None
        assert grad is not None
        factor = torch.tensor([0.0, 0.3, 1.0, 1.7]).repeat(grad.numel() // 4 + 1)
        expected = grad * factor[: grad.numel()].view_as(grad)
        torch.testing.assert_close(ours, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "lion", "lbfgs", "adafactor"])
def test_rejuvenation_zeroes_what_the_optimizer_knows(optimizer: str) -> None:
    model = make({"fuzzy_lr_distribution": "baseline", "rejuvenate_every": 2})
    made = MADE[optimizer](model.parameters())
    scheduler = GradScheduler(model, made)
    for _ in range(2):
        step_once(model, made)
    turnover = [numbers["turnover"] for numbers in scheduler.metrics().values()]
    assert 0 < max(turnover) < 1  # the smallest parameter may have lost nothing
    if optimizer == "lbfgs":
        assert not made.state
    for name in biofx.info(model).synapses:
        parameter = model.get_parameter(name)
        for value in made.state.get(parameter, {}).values():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                share = int((value == 0).sum()) / value.numel()
                assert share >= scheduler.metrics()[name]["turnover"]
    for _ in range(3):
        step_once(model, made)


def test_what_makes_plain_adam_differ() -> None:
    """The package that started it all scaled gradients: under Adam that does next to nothing."""
    moved = {}
    for mode in ("plain", "gradient", "update"):
        model = make({"fuzzy_learning_rate_factor_nu": 0.5, "fuzzy_lr_max": 2.0})
        optimizer = optim.Adam(model.parameters(), lr=0.01)
        if mode != "plain":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                GradScheduler(model, optimizer, apply=mode)  # type: ignore[arg-type]
        before = model.get_parameter("fc.weight").detach().clone()
        train(model, optimizer, batches(1))
        moved[mode] = (model.get_parameter("fc.weight").detach() - before).norm()
        moved[mode + " weight"] = model.get_parameter("fc.weight").detach().clone()
    distance = {
        mode: float((moved[mode + " weight"] - moved["plain weight"]).norm() / moved["plain"])
        for mode in ("gradient", "update")
    }
    assert distance["gradient"] < 1e-4
    assert distance["update"] > 0.1
