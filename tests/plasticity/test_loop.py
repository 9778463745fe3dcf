"""Training loops as people write them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import biofx
from biofx.plasticity import (
    Context,
    Crystallize,
    FuzzyLearningRates,
    GradScheduler,
    Rejuvenate,
    Rule,
    Schedule,
    UnitTurnover,
    VolumeDependentRates,
)

from .optimizers import Own
from .table import DALE, Net, batches, make, same, train

ALL: dict[str, Any] = {
    "fuzzy_lr_distribution": "normal",
    "volume_dependent_every": 1,
    "crystallize_every": 1,
    "crystal_thresh": 0.05,
    "rejuvenate_every": 2,
    **DALE,
}


def close(first: nn.Module, second: nn.Module, **tolerance: float) -> None:
    for (name, a), b in zip(first.named_parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(a, b, msg=lambda text, name=name: f"{name}: {text}", **tolerance)


def adamw(model: nn.Module, **options: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), **{"lr": 0.01, **options})


def loss_of(model: nn.Module, batch: Any) -> Tensor:
    x, y = batch
    return nn.functional.mse_loss(model(x), y)


class Watch(Rule):
    """Records at which steps it was called, and with what."""

    def observe(self, context: Context) -> None:
        context.state.setdefault("seen", 0)
        context.state["seen"] += 1
        assert context.grad is not None
        context.state["norm"] = float(context.grad.norm() * (context.unscale or 1))


@dataclass(frozen=True, kw_only=True)
class Half(Rule):
    """Half of each update, or another share of it."""

    share: float = 0.5

    def factor(self, context: Context) -> Tensor:
        return torch.full_like(context.weight, self.share)


def test_accumulation_equals_one_large_batch() -> None:
    x, y = batches(1, size=12)[0]
    large, small = make(ALL), make(ALL)
    one, other = adamw(large), adamw(small)
    schedulers = [GradScheduler(large, one), GradScheduler(small, other)]
    for _ in range(4):
        one.zero_grad()
        loss_of(large, (x, y)).backward()
        one.step()
        other.zero_grad()
        for part in range(3):
            rows = slice(4 * part, 4 * part + 4)
            (loss_of(small, (x[rows], y[rows])) / 3).backward()
        other.step()
    assert schedulers[0].steps == schedulers[1].steps == [4]
    close(large, small, rtol=1e-3, atol=1e-4)


def test_clipping_comes_first() -> None:
    """Rules see the clipped gradient; factors do not undo the clipping."""
    model = make()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = GradScheduler(model, optimizer, rules=[Watch(only="fc.weight")])
    optimizer.zero_grad()
    (100 * loss_of(model, batches(1)[0])).backward()
    nn.utils.clip_grad_norm_(model.parameters(), 0.5)
    grad = model.get_parameter("fc.weight").grad
    assert grad is not None
    norm = float(grad.norm())
    optimizer.step()
    assert scheduler.state_dict()["state"]["Watch"]["fc.weight"]["norm"] == pytest.approx(norm)


@pytest.mark.parametrize("set_to_none", [True, False])
def test_zero_grad(set_to_none: bool) -> None:
    models = []
    for flag in (True, set_to_none):
        model = make(ALL)
        optimizer = adamw(model)
        GradScheduler(model, optimizer)
        for batch in batches(4):
            optimizer.zero_grad(set_to_none=flag)
            loss_of(model, batch).backward()
            optimizer.step()
        models.append(model)
    assert same(*models)


def fused_or_not(fused: bool) -> Any:
    return {
        "sgd": lambda p: torch.optim.SGD(p, lr=0.1, fused=fused),
        "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, fused=fused),
        "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, fused=fused),
        "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.01, fused=fused),
    }


@pytest.mark.parametrize("mode", ["update", "gradient"])
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adamw", "adagrad"])
@pytest.mark.filterwarnings("ignore:.*all but ignores:UserWarning")
def test_grad_scaler_skips_steps(optimizer: str, fused: bool, mode: Any) -> None:
    """Steps skipped for infinite gradients are no steps; the others see unscaled gradients."""
    trained = []
    for scaled in (False, True):
        model = make(ALL)
        made = fused_or_not(fused)[optimizer](model.parameters())
        scheduler = GradScheduler(model, made, apply=mode)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, enabled=scaled, growth_interval=99)
        before = None
        for place, batch in enumerate(batches(5)):
            made.zero_grad()
            scaler.scale(loss_of(model, batch)).backward()
            # not the first step: fused SGD then leaves its momentum uninitialised
            if place in (1, 3) and scaled:
                with torch.no_grad():
                    bad = model.get_parameter("fc.weight")
                    assert bad.grad is not None
                    bad.grad[0, 0] = torch.inf
                before = [parameter.detach().clone() for parameter in model.parameters()]
                states = str(scheduler.state_dict())
                scaler.step(made)
                for parameter, old in zip(model.parameters(), before, strict=True):
                    assert torch.equal(parameter, old)
                assert str(scheduler.state_dict()) == states
            elif place not in (1, 3):
                scaler.step(made)
            if scaled:
                scaler.update()
        assert scheduler.steps == [3]
        trained.append(model)
    close(*trained, rtol=1e-4, atol=1e-5)


def test_crystallize_sees_unscaled_gradients_in_fused_steps() -> None:
    model = make()
    made = torch.optim.AdamW(model.parameters(), lr=0.01, fused=True)
    scheduler = GradScheduler(model, made, rules=[Watch()])
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    loss = loss_of(model, batches(1)[0])
    loss.backward()
    norms = {
        name: float(model.get_parameter(name).grad.norm())  # type: ignore[union-attr]
        for name in biofx.info(model).synapses
    }
    made.zero_grad()
    scaler.scale(loss_of(model, batches(1)[0])).backward()
    scaler.step(made)
    state = scheduler.state_dict()["state"]["Watch"]
    for name, norm in norms.items():
        assert state[name]["norm"] == pytest.approx(norm, rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype: torch.dtype) -> None:
    model, again = make(ALL), make(ALL)
    for one in (model, again):
        optimizer = adamw(one)
        GradScheduler(one, optimizer)
        for x, y in batches(4):
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype=dtype):
                loss = nn.functional.mse_loss(one(x).float(), y)
            loss.backward()
            optimizer.step()
    assert same(model, again)
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())


def test_bfloat16_parameters_move_by_their_factors() -> None:
    class Half(Rule):
        def factor(self, context: Context) -> Tensor:
            return torch.full_like(context.weight, 0.5)

    for optimizer in ("sgd", "adamw"):
        ends = []
        for rules in ([], [Half()]):
            model = make(dtype=torch.bfloat16)
            name = "fc.weight"
            with torch.no_grad():
                model.get_parameter(name).fill_(1.0)
            made: Any = {
                "sgd": torch.optim.SGD(model.parameters(), lr=1.0),
                "adamw": torch.optim.AdamW(model.parameters(), lr=0.5, weight_decay=0.0),
            }[optimizer]
            GradScheduler(model, made, rules=rules)
            model.get_parameter(name).grad = torch.full((5, 4), 0.5, dtype=torch.bfloat16)
            made.step()
            ends.append(model.get_parameter(name).detach())
        assert (ends[0] < 0.51).all()
        # Rounded up or down by chance, by one unit in the last place at most.
        middle = (ends[0].float() + 1) / 2
        assert ((ends[1].float() - middle).abs() < 2.0**-8).all()


@pytest.mark.filterwarnings("ignore:FuzzyLearningRates changes nothing")
def test_param_groups_and_lr_schedulers() -> None:
    """Each group's learning rate, changed as training goes on, multiplies the factors."""
    plain, bio = make(), make()
    made = []
    for model in (plain, bio):
        named = dict(model.named_parameters())
        groups = [
            {"params": [named.pop("fc.weight")], "lr": 0.2},
            {"params": [named.pop("conv.weight")], "lr": 0.01, "momentum": 0.5},
            {"params": list(named.values())},
        ]
        optimizer = torch.optim.SGD(groups, lr=0.1)
        if model is bio:
            one = [FuzzyLearningRates(nu=0.3), FuzzyLearningRates(distribution="baseline")]
            GradScheduler(model, optimizer, rules=one)
        made.append((optimizer, torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.1)))
    moves = []
    for model, (optimizer, lr) in zip((plain, bio), made, strict=True):
        for _ in range(2):
            before = {name: value.detach().clone() for name, value in model.named_parameters()}
            for parameter in model.parameters():
                parameter.grad = torch.ones_like(parameter)
            optimizer.step()
            lr.step()
        moves.append({n: v.detach() - before[n] for n, v in model.named_parameters()})
    for name in biofx.info(bio).synapses:
        ratio = moves[1][name] / moves[0][name]
        assert ratio.min() > 0.68
        assert ratio.max() < 1.32
        # momentum mixes two steps of the same factor: the ratio stays that factor
        assert ratio.std() > 0.1


def test_several_optimizers_count_their_own_steps() -> None:
    """Two networks trained in turns: `every` counts each one's steps."""
    model = make({**ALL, "apply_dales_principle": False})
    named = dict(model.named_parameters())
    first = torch.optim.SGD([named["conv.weight"], named["grouped.weight"]], lr=0.1)
    second = torch.optim.AdamW([named["up.weight"], named["fc.weight"]], lr=0.01)
    scheduler = GradScheduler(model, [first, second])
    for place, batch in enumerate(batches(6)):
        first.zero_grad()
        second.zero_grad()
        loss_of(model, batch).backward()
        (second if place % 3 == 2 else first).step()
    assert scheduler.steps == [4, 2]
    assert set(scheduler.metrics()) == set(biofx.info(model).synapses)
    other = make({**ALL, "apply_dales_principle": False})
    named = dict(other.named_parameters())
    pair = [
        torch.optim.SGD([named["conv.weight"], named["grouped.weight"]], lr=0.1),
        torch.optim.AdamW([named["up.weight"], named["fc.weight"]], lr=0.01),
    ]
    GradScheduler(other, pair).load_state_dict(scheduler.state_dict())


def test_freezing_and_unfreezing() -> None:
    model = make({**ALL, "apply_dales_principle": False})
    frozen = model.get_parameter("conv.weight").requires_grad_(False)
    optimizer = adamw(model)
    scheduler = GradScheduler(model, optimizer)
    data = batches(9)
    start = frozen.detach().clone()
    train(model, optimizer, data[:3])
    assert torch.equal(frozen, start)
    assert "conv.weight" not in scheduler.metrics()
    frozen.requires_grad_(True)
    train(model, optimizer, data[3:6])
    assert not torch.equal(frozen, start)
    assert "conv.weight" in scheduler.metrics()
    frozen.requires_grad_(False)
    frozen.grad = None
    start = frozen.detach().clone()
    train(model, optimizer, data[6:])
    assert torch.equal(frozen, start)


def test_parameters_that_join_the_optimizer_later() -> None:
    model = make({"fuzzy_learning_rate_factor_nu": 0.4})
    optimizer = torch.optim.SGD(model.get_submodule("fc").parameters(), lr=0.1)
    scheduler = GradScheduler(model, optimizer)
    train(model, optimizer, batches(1))
    assert set(scheduler.metrics()) == {"fc.weight"}
    optimizer.add_param_group({"params": model.get_submodule("conv").parameters()})
    train(model, optimizer, batches(1))
    assert set(scheduler.metrics()) == {"fc.weight", "conv.weight"}


def test_layers_without_gradients_this_step() -> None:
    """Experts that a batch does not use keep their weights and their state."""

    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.experts = nn.ModuleList(nn.Linear(3, 3) for _ in range(2))

        def forward(self, x: Tensor, *, which: int) -> Tensor:
            return self.experts[which](x)

    model = biofx.transform(Experts(), biofx.BioConfig(**{**ALL, "apply_dales_principle": False}))
    optimizer = adamw(model)
    GradScheduler(model, optimizer)
    for which in (0, 1, 0):
        idle = model.get_parameter(f"experts.{1 - which}.weight").detach().clone()
        optimizer.zero_grad()
        model(torch.ones(2, 3), which=which).square().sum().backward()
        optimizer.step()
        assert torch.equal(model.get_parameter(f"experts.{1 - which}.weight"), idle)


@pytest.mark.parametrize("cls", [torch.optim.SGD, torch.optim.AdamW])
def test_closures(cls: Any) -> None:
    """A step with a closure is the same step."""
    models = []
    for closed in (False, True):
        model = make({**ALL, "crystal_thresh": 0.01})
        optimizer = cls(model.parameters(), lr=0.05)
        GradScheduler(model, optimizer)
        for batch in batches(4):

            def closure(model: Any = model, optimizer: Any = optimizer, batch: Any = batch) -> Any:
                optimizer.zero_grad()
                loss = loss_of(model, batch)
                loss.backward()
                return loss

            if closed:
                assert optimizer.step(closure) > 0
            else:
                closure()
                optimizer.step()
        models.append(model)
    close(*models, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("set_to_none", [True, False])
def test_all_gradients_of_a_closure_are_scaled(set_to_none: bool) -> None:
    """LBFGS calls it again and again in one step."""
    ends = []
    for halved in (False, True):
        model = make()
        optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=4)
        names = tuple(biofx.info(model).synapses) if halved else ()
        if not halved:
            GradScheduler(model, optimizer, rules=[Half()], apply="gradient")

        def closure(model: Any = model, optimizer: Any = optimizer, names: Any = names) -> Any:
            optimizer.zero_grad(set_to_none=set_to_none)
            loss = loss_of(model, batches(1)[0])
            loss.backward()
            for name in names:
                model.get_parameter(name).grad.mul_(0.5)
            return loss

        optimizer.step(closure)
        ends.append(model)
    assert same(*ends)


@pytest.mark.parametrize("what", ["model", "step", "both"])
@pytest.mark.filterwarnings("ignore")
def test_compiled(what: str) -> None:
    torch._dynamo.reset()
    models = []
    for compiled in (False, True):
        model = make(ALL)
        optimizer = adamw(model)
        called = model
        if compiled and what in ("model", "both"):
            called = torch.compile(model, backend="aot_eager")
        scheduler = GradScheduler(called, optimizer)
        step: Any = optimizer.step
        if compiled and what in ("step", "both"):
            step = torch.compile(optimizer.step, backend="aot_eager")
        for batch in batches(4):
            optimizer.zero_grad()
            loss_of(called, batch).backward()
            step()
        assert scheduler.steps == [4]
        models.append(model)
    close(*models, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_capturable_in_a_compiled_step() -> None:
    torch._dynamo.reset()
    ends = []
    for compiled in (False, True):
        model = make({"fuzzy_learning_rate_factor_nu": 0.4})
        optimizer = adamw(model, capturable=compiled)
        GradScheduler(model, optimizer)
        step: Any = optimizer.step
        if compiled:
            step = torch.compile(step, backend="aot_eager")
        for batch in batches(3):
            optimizer.zero_grad()
            loss_of(model, batch).backward()
            step()
        ends.append(model)
    close(*ends, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing(reentrant: bool) -> None:
    class Checkpointed(Net):
        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self.conv(x)).requires_grad_()
            x = checkpoint(self.grouped, x, use_reentrant=reentrant).relu() + x
            x = torch.relu(self.up(x)).mean((2, 3))
            return self.fc(x)

    models = []
    for cls in (Net, Checkpointed):
        torch.manual_seed(0)
        model = biofx.transform(cls(), biofx.BioConfig(**ALL))
        optimizer = adamw(model)
        GradScheduler(model, optimizer)
        train(model, optimizer, batches(3))
        models.append(model)
    close(*models, rtol=1e-4, atol=1e-5)


def by_hand(model: nn.Module, lr: float = 0.1) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter -= lr * parameter.grad
                parameter.grad = None


def test_without_an_optimizer() -> None:
    """By hand, plain gradient descent is what SGD does, with every rule on."""
    hooked, hand = make(ALL), make(ALL)
    optimizer = torch.optim.SGD(hooked.parameters(), lr=0.1)
    GradScheduler(hooked, optimizer)
    train(hooked, optimizer, batches(5))
    scheduler = GradScheduler(hand)
    for batch in batches(5):
        loss_of(hand, batch).backward()
        by_hand(hand)
        scheduler.step()
    assert scheduler.steps == [5]
    close(hooked, hand, rtol=1e-4, atol=1e-6)
    assert set(scheduler.metrics()) == set(biofx.info(hand).synapses)
    scheduler.detach()
    loss_of(hand, batches(1)[0]).backward()


class Descent(Own):
    """SGD, whose weights may lie in other memory after each step."""

    def move(self, w: Tensor, g: Tensor, state: Any, group: Any) -> None:
        w.data = w - group["lr"] * g if group["elsewhere"] else w.copy_(w - group["lr"] * g)


@pytest.mark.parametrize("with_optimizer", [True, False])
@pytest.mark.parametrize(
    "rule",
    [
        FuzzyLearningRates(),
        Rejuvenate(choose="random", max_share=0.5),
        UnitTurnover(utility="dormant", threshold=0.5, maturity=0),
    ],
    ids=lambda rule: rule.name,
)
def test_weights_that_lie_elsewhere_after_a_step(rule: Rule, with_optimizer: bool) -> None:
    """Rules act on those that the model has then."""
    ends = []
    for elsewhere in (False, True):
        torch.manual_seed(0)
        layers = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        model = biofx.transform(layers, example_inputs=torch.ones(1, 4))
        optimizer = Descent(model.parameters(), lr=0.1, elsewhere=elsewhere)
        scheduler = GradScheduler(model, optimizer if with_optimizer else None, rules=[rule])
        for _ in range(3):
            train(model, optimizer, [(torch.randn(8, 4), torch.randn(8, 2))])
            if not with_optimizer:
                scheduler.step()
        ends.append(model)
    assert same(*ends)


def test_without_an_optimizer_gradients_accumulate() -> None:
    rules = [FuzzyLearningRates(nu=0.4), VolumeDependentRates(base=1.0)]
    hooked, hand = make(), make()
    optimizer = torch.optim.SGD(hooked.parameters(), lr=0.1)
    GradScheduler(hooked, optimizer, rules=rules)
    scheduler = GradScheduler(hand, rules=rules)
    data = batches(6)
    for place in range(0, 6, 2):
        for batch in data[place : place + 2]:
            loss_of(hooked, batch).backward()
            loss_of(hand, batch).backward()
        optimizer.step()
        optimizer.zero_grad()
        by_hand(hand)
        scheduler.step()
    close(hooked, hand, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_without_an_optimizer_gradients_can_be_differentiated(dtype: torch.dtype) -> None:
    """A step within a step, as MAML takes one: factors are constants of it."""
    model = make({"crystallize_every": 1, "fuzzy_learning_rate_factor_nu": 0.4}).to(dtype)
    scheduler = GradScheduler(model)
    x, y = (part.to(dtype) for part in batches(1)[0])
    parameters = dict(model.named_parameters())

    def outer(scale: Callable[[str, Tensor], Tensor]) -> list[Tensor]:
        found = torch.autograd.grad(
            nn.functional.mse_loss(model(x), y), list(parameters.values()), create_graph=True
        )
        fast = {
            name: parameter - 0.5 * scale(name, gradient)
            for (name, parameter), gradient in zip(parameters.items(), found, strict=True)
        }
        loss = nn.functional.mse_loss(torch.func.functional_call(model, fast, (x,)), y)
        return list(torch.autograd.grad(loss, list(parameters.values())))

    given = outer(lambda name, gradient: gradient)
    factors = {name: scheduler.factors(name).to(dtype) for name in biofx.info(model).synapses}
    scheduler.detach()
    expected = outer(lambda name, gradient: gradient * factors.get(name, 1.0))
    for name, own, other in zip(parameters, given, expected, strict=True):
        torch.testing.assert_close(own, other * factors.get(name, 1.0), rtol=1e-4, atol=1e-6)
        assert name not in factors or not torch.equal(own, other)


def test_without_an_optimizer_layers_unfreeze() -> None:
    model = make()
    model.get_parameter("fc.weight").requires_grad_(False)
    scheduler = GradScheduler(model, rules=[FuzzyLearningRates(nu=0.9)])
    model.get_parameter("fc.weight").requires_grad_(True)
    scheduler.step()
    loss_of(model, batches(1)[0]).backward()
    assert "fc.weight" in scheduler.metrics()


def test_schedules() -> None:
    """A rule acts at the steps that its schedule names, and at no other."""
    model = make()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    rule = Rejuvenate(schedule=Schedule(every=3, start=1, stop=8))
    GradScheduler(model, optimizer, rules=[rule])
    changed = []
    for step, batch in enumerate(batches(12), start=1):
        before = model.get_parameter("conv.weight").detach().clone()
        train(model, optimizer, [batch])
        if not torch.equal(before, model.get_parameter("conv.weight")):
            changed.append(step)
    assert changed == [4, 7]


def test_crystals_hold_between_judgements() -> None:
    model = make()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    rule = Crystallize(threshold=1e9, schedule=Schedule(stop=2))  # everything is settled
    scheduler = GradScheduler(model, optimizer, rules=[rule])
    train(model, optimizer, batches(5))
    for numbers in scheduler.metrics().values():
        assert numbers["factor_mean"] == pytest.approx(0.36)
        assert numbers["crystallized"] == 1


def test_new_synapses_are_not_crystallized() -> None:
    model = make()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    rules = [Crystallize(threshold=1e9), Rejuvenate(schedule=Schedule(start=3, every=1, stop=4))]
    scheduler = GradScheduler(model, optimizer, rules=rules)
    train(model, optimizer, batches(4))
    for numbers in scheduler.metrics().values():
        assert numbers["crystallized"] == pytest.approx(1 - numbers["turnover"])
        assert numbers["turnover"] > 0


@pytest.mark.filterwarnings("ignore:dale_axis=")
def test_dale_holds_after_every_step() -> None:
    for axis in ("pre", "post"):
        config = {**DALE, "dale_axis": axis, "rejuvenate_every": 3}
        model = make(config)
        optimizer = adamw(model, lr=0.05)
        scheduler = GradScheduler(model, optimizer)
        for batch in batches(4):
            train(model, optimizer, [batch])
            signs = set()
            for name, synapses in biofx.info(model).synapses.items():
                weight = model.get_parameter(name).detach()
                units = unit_rows(weight, synapses, synapses.pre_axis if axis == "pre" else None)
                agree = ((units >= 0).all(1)) | ((units <= 0).all(1))
                assert agree.all(), name
                signs.update(weight.sign().unique().tolist())
            assert signs >= {-1.0, 1.0}  # one small parameter may have units of one sign only
        assert any(numbers["dale_projected"] for numbers in scheduler.metrics().values())


def unit_rows(weight: Tensor, synapses: Any, axis: int | None) -> Tensor:
    """One row per unit: its outgoing (or, with no axis, incoming) weights."""
    axis = synapses.post_axis if axis is None else axis
    if axis == 1 and synapses.groups > 1:
        blocks = weight.unflatten(0, (synapses.groups, -1)).movedim(2, 1)
        return blocks.flatten(0, 1).flatten(1)
    return weight.movedim(axis, 0).flatten(1)


def test_expanded_synapses_each_have_their_own_factor() -> None:
    config = {"weight_splitting_Gamma": 2, "weight_splitting_mode": "expand"}
    model = biofx.transform(nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2)))
    split = biofx.transform(
        nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2)), biofx.BioConfig(**config)
    )
    assert biofx.info(split).synapses["0.weight"].shape[0] == 2 * 4
    for net in (model, split):
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        GradScheduler(net, optimizer)
        before = net.get_parameter("0.weight").detach().clone()
        optimizer.zero_grad()
        net(torch.ones(3, 6)).square().sum().backward()
        grad = net.get_parameter("0.weight").grad
        assert grad is not None
        optimizer.step()
        ratio = ((before - net.get_parameter("0.weight").detach()) / (0.1 * grad))[
            grad.abs() > 1e-3
        ]
        assert len(ratio.mul(1e3).round().unique()) > 0.5 * len(ratio)


@pytest.mark.parametrize("compiled", [False, True])
def test_phases_of_one_rule(compiled: bool) -> None:
    """Each phase has factors of its own, whichever stood at its place in the list before."""
    # So few synapses that metrics look at all of them.
    bio = biofx.transform(nn.Sequential(nn.Linear(45, 45, bias=False)))
    optimizer = torch.optim.SGD(bio.parameters(), lr=1.0)
    rules = [
        FuzzyLearningRates(nu=0.5, schedule=Schedule(stop=2)),
        FuzzyLearningRates(nu=0.1, distribution="normal", schedule=Schedule(start=2)),
    ]
    scheduler = GradScheduler(bio, optimizer, rules=rules, compile=compiled)
    weight = bio.get_parameter("0.weight")
    for expected in (0.289, 0.289, 0.1, 0.1):
        before = weight.detach().clone()
        weight.grad = torch.ones_like(weight)
        optimizer.step()
        found = float((before - weight.detach()).std(correction=0))
        assert found == pytest.approx(expected, rel=0.05)
        assert scheduler.metrics()["0.weight"]["factor_std"] == pytest.approx(found, rel=1e-5)


@pytest.mark.parametrize("apply", ["update", "gradient"])
@pytest.mark.parametrize("in_place", [False, True])
def test_hooks_that_come_later_change_gradients(apply: Any, in_place: bool) -> None:
    bio, plain = make(), make()
    for model in (bio, plain):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        if model is bio:
            GradScheduler(bio, optimizer, rules=[Half(), Crystallize(threshold=0)], apply=apply)

        def shrink(optimizer: Any, *_: Any) -> None:
            for parameter in optimizer.param_groups[0]["params"]:
                if in_place:
                    parameter.grad.mul_(0.01)
                else:
                    parameter.grad = parameter.grad * 0.01

        start = {name: p.detach().clone() for name, p in model.named_parameters()}
        optimizer.register_step_pre_hook(shrink)
        loss_of(model, batches(1)[0]).backward()
        optimizer.step()
        moves = {name: p.detach() - start[name] for name, p in model.named_parameters()}
        if model is bio:
            ours = moves
    for name in biofx.info(bio).synapses:
        torch.testing.assert_close(ours[name], moves[name] / 2, rtol=1e-3, atol=1e-7)


def test_lbfgs_goes_on_where_the_factors_have_led() -> None:
    torch.manual_seed(0)
    x = torch.randn(200, 8)
    y = x @ torch.randn(8, 2)
    bio = biofx.transform(nn.Sequential(nn.Linear(8, 2, bias=False)))
    optimizer = torch.optim.LBFGS(bio.parameters(), max_iter=5, line_search_fn="strong_wolfe")
    GradScheduler(bio, optimizer, rules=[Half(only="*", share=0.1)])

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(bio(x), y)
        loss.backward()
        return loss

    losses = [float(optimizer.step(closure).detach()) for _ in range(61)]  # type: ignore[arg-type]
    assert losses[60] < 1e-3 * losses[0]


def test_a_detached_scheduler_without_an_optimizer_takes_no_steps() -> None:
    bio = biofx.transform(nn.Linear(4, 2))
    scheduler = GradScheduler(bio)
    bio(torch.ones(1, 4)).sum().backward()
    scheduler.step()
    scheduler.detach()
    with pytest.raises(biofx.PlasticityError, match="this one was detached"):
        scheduler.step()
    bio.zero_grad()
    bio(torch.ones(1, 4)).sum().backward()
    assert torch.equal(bio.weight.grad, torch.ones(2, 4))
