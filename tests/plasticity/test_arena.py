"""Small parameters take their steps together, and compute the same as one by one."""

import copy
import functools
import io
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import biofx
from biofx.plasticity import (
    Context,
    Crystallize,
    DalesPrinciple,
    FuzzyLearningRates,
    GradScheduler,
    Rejuvenate,
    Restore,
    Rule,
    Schedule,
    VolumeDependentRates,
)
from biofx.plasticity.kernels.arena import LENGTH, Arena, as_rows, total_of
from biofx.plasticity.scheduler import arenas

from .table import OPTIMIZERS, RULES, Entry, batches, make
from .table import train as train_on

pytestmark = [
    pytest.mark.filterwarnings("ignore:Initializing zero-element tensors"),
    pytest.mark.filterwarnings("ignore:Dale's principle starts as"),
]

# These need the graph of the model, and this one has no forward.
WIRED = ("unit-turnover", "dale-mirrored", "everything")
BY_ITSELF = [entry for entry in RULES if not entry.name.startswith(WIRED)]
OF_UNITS = [entry for entry in RULES if entry.name.startswith(WIRED)]


class Zoo(nn.Module):
    """Parameters of every kind."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.linear = nn.Linear(20, 5)
        self.rows = nn.Linear(LENGTH, 3)
        self.one = nn.Linear(1, 1)
        self.prime = nn.Linear(1, 131)
        self.conv = nn.Conv2d(4, 6, 3).to(memory_format=torch.channels_last)
        self.grouped = nn.Conv1d(4, 8, 3, groups=2)
        self.large = nn.Linear(400, 350)
        self.none = nn.Linear(0, 3)
        self.frozen = nn.Linear(6, 6)
        self.frozen.weight.requires_grad_(False)
        self.tied = nn.Linear(20, 5)
        self.tied.weight = self.linear.weight
        self.words = nn.Embedding(11, 3)
        self.to(dtype)


def together(monkeypatch: pytest.MonkeyPatch, small: int) -> None:
    monkeypatch.setattr(arenas, "SMALL", small)


def train(
    config: dict[str, Any] | None = None,
    rules: list[Rule] | None = None,
    *,
    optimizer: str = "sgd",
    apply: Any = "update",
    dtype: torch.dtype = torch.float32,
    steps: int = 6,
    grads: Callable[[int, str, Tensor], Tensor | None] = lambda step, name, grad: grad,
) -> tuple[nn.Module, Any, GradScheduler]:
    """Steps on made-up gradients."""
    torch.manual_seed(0)
    bio = biofx.transform(Zoo(dtype), biofx.BioConfig(**(config or {})))
    made = OPTIMIZERS[optimizer](list(bio.parameters()))
    scheduler = GradScheduler(bio, made, rules=rules, apply=apply, compile=False)
    go_on(bio, made, range(1, steps + 1), grads)
    return bio, made, scheduler


def go_on(
    bio: nn.Module,
    optimizer: Any,
    steps: range,
    grads: Callable[[int, str, Tensor], Tensor | None] = lambda step, name, grad: grad,
) -> None:
    for step in steps:
        torch.manual_seed(step)
        for name, parameter in bio.named_parameters():
            if parameter.requires_grad:
                parameter.grad = grads(step, name, 0.1 * torch.randn_like(parameter))
        optimizer.step()


def assert_same(ours: tuple[nn.Module, Any, GradScheduler], theirs: Any) -> None:
    """To the bit: weights, states of the optimizer and of the rules, metrics."""
    for (name, p), (_, q) in zip(
        ours[0].named_parameters(), theirs[0].named_parameters(), strict=True
    ):
        assert torch.equal(p, q), name
        mine, his = ours[1].state[p], theirs[1].state[q]
        for key, value in mine.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(his[key])), (name, key)
    first, second = (run[2].state_dict()["state"] for run in (ours, theirs))
    assert first.keys() == second.keys()
    for rule, parameters in first.items():
        for name, state in parameters.items():
            for key, value in state.items():
                other = second[rule][name][key]
                if isinstance(value, str):
                    assert value == other, (rule, name, key)
                else:
                    same = torch.as_tensor(value), torch.as_tensor(other)
                    assert torch.equal(*same), (rule, name, key)
    assert repr(ours[2].metrics()) == repr(theirs[2].metrics())


def members(scheduler: GradScheduler) -> list[int]:
    found = [arena.bindings for arena in scheduler._engine.arenas]
    return [len(binding.members) for binding in itertools.chain(*found)]


@pytest.mark.parametrize("apply", ["update", "gradient"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("entry", BY_ITSELF, ids=[entry.name for entry in BY_ITSELF])
@pytest.mark.filterwarnings("ignore:.*ignores the scale of gradients")
def test_of_each_rule(
    entry: Entry, optimizer: str, apply: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = {**entry.config}
    if "apply_dales_principle" in config:
        unconnected = {"apply_dales_principle": False}
        config["overrides"] = dict.fromkeys(("words",), unconnected)
    ours = train(config, optimizer=optimizer, apply=apply, steps=entry.steps)
    # What replaces weights by chance of a whole layer, or asks for ages, keeps its own step.
    if not entry.name.startswith("rejuvenate"):
        assert any(count > 4 for count in members(ours[2])) == (
            entry.acts and "activity" not in entry.name
        )
    together(monkeypatch, 0)
    theirs = train(config, optimizer=optimizer, apply=apply, steps=entry.steps)
    assert members(theirs[2]) == []
    assert_same(ours, theirs)


@pytest.mark.parametrize("apply", ["update", "gradient"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("entry", OF_UNITS, ids=[entry.name for entry in OF_UNITS])
@pytest.mark.filterwarnings("ignore:.*ignores the scale of gradients")
def test_of_rules_that_need_the_graph(
    entry: Entry, optimizer: str, apply: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[Any] = []
    for small in (arenas.SMALL, 0):
        together(monkeypatch, small)
        model = make(entry.config)
        made = OPTIMIZERS[optimizer](list(model.parameters()))
        scheduler = GradScheduler(model, made, apply=apply, compile=False)
        train_on(model, made, batches(entry.steps))
        runs.append((model, made, scheduler))
    assert members(runs[1][2]) == []
    assert_same(runs[0], runs[1])


ALL: list[Rule] = [
    FuzzyLearningRates(),
    VolumeDependentRates(base=1.0),
    Crystallize(threshold=0.3, schedule=Schedule(every=2)),
    Rejuvenate(max_share=0.05, schedule=Schedule(every=3)),
    DalesPrinciple(only=("linear.*", "rows.*", "conv.*", "large.*")),
]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_of_other_types(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = train(rules=ALL, dtype=dtype)
    assert bool(members(ours[2])) == (dtype == torch.float64)
    together(monkeypatch, 0)
    assert_same(ours, train(rules=ALL, dtype=dtype))


def mirrored(steps: int = 6) -> tuple[nn.Module, Any, GradScheduler]:
    """A network whose wiring is known: its first layer is free, the others are in pairs."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))
    x = torch.randn(5, 12)
    bio = biofx.transform(net, example_inputs=x)
    optimizer = torch.optim.SGD(bio.parameters(), lr=0.5)
    rules = [VolumeDependentRates(base=1.0), Rejuvenate(max_share=0.3), DalesPrinciple()]
    scheduler = GradScheduler(bio, optimizer, rules=rules, compile=False)
    for _ in range(steps):
        optimizer.zero_grad()
        bio(x).square().mean().backward()
        optimizer.step()
    return bio, optimizer, scheduler


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.AdamW(p, lr=0.1, amsgrad=True),
        lambda p: torch.optim.Adam(p, lr=0.1, weight_decay=0.1, maximize=True),
        lambda p: torch.optim.NAdam(p, lr=0.1, weight_decay=0.1),
        lambda p: torch.optim.RAdam(p, lr=0.1),
        lambda p: torch.optim.Adamax(p, lr=0.1),
        lambda p: torch.optim.Adagrad(p, lr=0.1, initial_accumulator_value=0.5),
    ],
    ids=["amsgrad", "adam", "nadam", "radam", "adamax", "adagrad"],
)
def test_of_births(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def grads(step: int, name: str, grad: Tensor) -> Tensor | None:
        # the optimizer counts one step less for one of them
        return None if name == "rows.weight" and step == 1 else grad

    runs = []
    for small in (0, arenas.SMALL):
        together(monkeypatch, small)
        monkeypatch.setitem(OPTIMIZERS, "births", make)
        rules = [FuzzyLearningRates(), Rejuvenate(d=1.0, schedule=Schedule(every=2))]
        runs.append(train(rules=rules, optimizer="births", steps=9, grads=grads))
    assert members(runs[1][2]) != []
    assert members(runs[0][2]) == []
    assert_same(runs[1], runs[0])


def test_of_births_long_ago(monkeypatch: pytest.MonkeyPatch) -> None:
    """A synapse is young by its own parameter's steps, of which some took more than others."""

    def grads(step: int, name: str, grad: Tensor) -> Tensor | None:
        return None if name == "linear.weight" and step < 9 else grad

    # 0.6ᵗ is below 10⁻⁷ from 32 steps on
    make = functools.partial(torch.optim.Adam, lr=0.1, betas=(0.5, 0.6))
    monkeypatch.setitem(OPTIMIZERS, "births", make)
    rules: list[Rule] = [Rejuvenate(d=1.0, schedule=Schedule(every=10, stop=11))]
    ours = train(rules=rules, optimizer="births", steps=55, grads=grads)
    together(monkeypatch, 0)
    theirs = train(rules=rules, optimizer="births", steps=55, grads=grads)
    assert members(ours[2]) != []
    assert_same(ours, theirs)


def test_of_start_values_in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    make = functools.partial(torch.optim.Adagrad, lr=0.1, initial_accumulator_value=0.1)
    monkeypatch.setitem(OPTIMIZERS, "births", make)
    rules: list[Rule] = [Rejuvenate(d=1.0)]
    ours = train(rules=rules, optimizer="births", dtype=torch.float64)
    together(monkeypatch, 0)
    theirs = train(rules=rules, optimizer="births", dtype=torch.float64)
    assert members(ours[2]) != []
    assert_same(ours, theirs)


@pytest.mark.parametrize("sizes", [(5, 7), (300, 300)], ids=["few rows", "several pieces"])
@pytest.mark.parametrize("compiled", [False, True])
def test_of_births_under_nadam(
    sizes: tuple[int, int], compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It looks the momenta of each age up in a table."""

    def run() -> list[Tensor]:
        torch.manual_seed(0)
        bio = biofx.transform(nn.ModuleList([nn.Linear(*sizes) for _ in range(2)]))
        optimizer = torch.optim.NAdam(bio.parameters(), lr=0.01)
        rules: list[Rule] = [Rejuvenate(max_share=0.1, schedule=Schedule(every=4))]
        GradScheduler(bio, optimizer, rules=rules, compile=compiled)
        go_on(bio, optimizer, range(1, 13))
        return list(bio.parameters())

    ours = run()
    together(monkeypatch, 0)
    for one, other in zip(ours, run(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6 if compiled else 0)


@pytest.mark.parametrize(
    "settings",
    [
        {"rules": [Rejuvenate(max_share=0.2, schedule=Schedule(every=4, stop=5))]},
        {
            "config": {
                "fuzzy_lr_distribution": "weight_adaptive",
                "fuzzy_lr_dynamic": True,
                "fuzzy_lr_update_freq": 4,
            }
        },
    ],
    ids=["births", "redrawn factors"],
)
@pytest.mark.parametrize("gap", [4, 5])
def test_numbers_that_some_have_changed_one_by_one(
    settings: dict[str, Any], gap: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run() -> tuple[nn.Module, Any, GradScheduler]:
        return train(
            **settings,
            optimizer="adamw",
            steps=12,
            grads=lambda step, name, g: None if (step, name) == (gap, "rows.weight") else g,
        )

    ours = run()
    assert members(ours[2]) != []
    together(monkeypatch, 0)
    assert_same(ours, run())


def test_resuming_while_a_layer_is_frozen() -> None:
    rules: list[Rule] = [Rejuvenate(max_share=0.2, schedule=Schedule(every=2))]
    whole = train(rules=rules, optimizer="adamw", steps=3)
    whole[0].rows.requires_grad_(False)
    whole[0].rows.zero_grad()
    go_on(*whole[:2], range(4, 5))
    states = copy.deepcopy([part.state_dict() for part in whole])
    bio = biofx.transform(Zoo())
    bio.rows.requires_grad_(False)
    optimizer = OPTIMIZERS["adamw"](list(bio.parameters()))
    later = bio, optimizer, GradScheduler(bio, optimizer, rules=rules, compile=False)
    for part, state in zip(later, states, strict=True):
        part.load_state_dict(state)
    for run in (whole, later):
        go_on(*run[:2], range(5, 6))
        run[0].rows.requires_grad_(True)
        go_on(*run[:2], range(6, 12))
    assert_same(later, whole)


@pytest.mark.parametrize("place", [0, 1])
def test_a_parameter_that_moves_to_another_group(place: int) -> None:
    bio = biofx.transform(nn.ModuleList([nn.Linear(6, 6, bias=False) for _ in range(3)]))
    first, second, third = bio.parameters()
    groups = [{"params": [first, second]}, {"params": [third], "lr": 0.01}]
    optimizer = torch.optim.SGD(groups, lr=1.0)
    scheduler = GradScheduler(bio, optimizer, rules=[FuzzyLearningRates(nu=0.3)], compile=False)
    for step in range(1, 7):
        if step == 3:
            moved = optimizer.param_groups[0]["params"].pop()
            optimizer.param_groups[1]["params"].insert(place, moved)
        before = second.detach().clone()
        go_on(bio, optimizer, range(step, step + 1))
        assert second.grad is not None
        due = -second.grad * (1.0 if step < 3 else 0.01) * scheduler.factors("1.weight")
        torch.testing.assert_close(second.detach() - before, due, rtol=1e-3, atol=1e-6)


def chain(*, config: dict[str, Any] | None = None) -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Linear(6, 6) for _ in range(4)]
    return biofx.transform(nn.Sequential(*layers), biofx.BioConfig(**(config or {})))


def alone_and_together(
    run: Callable[[], list[Tensor]], monkeypatch: pytest.MonkeyPatch
) -> tuple[list[Tensor], list[Tensor]]:
    ours = run()
    together(monkeypatch, 0)
    return ours, run()


def test_all_members_move_to_another_group_and_back(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {
        "fuzzy_lr_distribution": "weight_adaptive",
        "fuzzy_lr_dynamic": True,
        "fuzzy_lr_update_freq": 2,
    }

    def run() -> list[Tensor]:
        bio = chain(config=settings)
        weights = [p for p in bio.parameters() if p.dim() > 1]
        biases = [p for p in bio.parameters() if p.dim() == 1]
        optimizer = torch.optim.SGD([{"params": weights}, {"params": biases}], lr=0.1)
        GradScheduler(bio, optimizer, compile=False)
        for step in range(1, 9):
            first, second = optimizer.param_groups
            away = step == 4
            first["params"] = [] if away else weights
            second["params"] = weights + biases if away else biases
            go_on(bio, optimizer, range(step, step + 1))
        return weights

    ours, theirs = alone_and_together(run, monkeypatch)
    assert all(map(torch.equal, ours, theirs))


class Seen(Rule):
    """Puts another tensor in the place of its own at each step."""

    def elementwise(self, synapses: Any) -> bool:
        return True

    def observe(self, context: Context) -> None:
        assert context.grad is not None
        context.state["seen"] = context.state.get("seen", 0) + context.grad.abs()

    def factor(self, context: Context) -> Tensor:
        return 1 / (1 + context.state["seen"])


class Early(Rule):
    """Replaces before the step, in an arena."""

    replaces = True

    def elementwise(self, synapses: Any) -> bool:
        return True

    def before_update(self, context: Context) -> Tensor:
        new = context.uniform("which") < 0.2
        context.weight.copy_(torch.where(new, 0.1 * context.symmetric("new"), context.weight))
        return new


@pytest.mark.parametrize(("rule", "gap"), [(Seen(), 5), (Early(schedule=Schedule(every=2)), 1)])
def test_of_what_users_rules_do(rule: Rule, gap: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def run() -> list[Tensor]:
        bio = chain()
        optimizer = torch.optim.Adam(bio.parameters(), lr=0.01)
        GradScheduler(bio, optimizer, rules=[rule], compile=False)
        go_on(
            bio, optimizer, range(1, 9),
            lambda step, name, grad: None if (step, name) == (gap, "0.weight") else grad,
        )  # fmt: skip
        return list(bio.parameters())

    ours, theirs = alone_and_together(run, monkeypatch)
    assert all(map(torch.equal, ours, theirs))


@dataclass(frozen=True, kw_only=True)
class Broadcast(Rule):
    """Halves the rate by a factor of any form that broadcasts to the weights."""

    form: Callable[[Context], Tensor]

    def settings(self, synapses: Any) -> dict[str, Any]:
        return {}

    def elementwise(self, synapses: Any) -> bool:
        return True

    def factor(self, context: Context) -> Tensor:
        return self.form(context)


FORMS: dict[str, Callable[[Context], Tensor]] = {
    "one": lambda context: torch.full((1, 1), 0.5),
    "flat": lambda context: torch.full((1,), 0.5),
    "expanded": lambda context: torch.tensor(0.5).expand(context.weight.shape),
    "of another type later on": lambda context: torch.full(
        context.weight.shape, 0.5, dtype=torch.float64 if context.step > 1 else torch.float32
    ),
}


@pytest.mark.parametrize("size", [6, 300], ids=["few rows", "several pieces"])
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_of_factors_of_any_form(form: str, compiled: bool, size: int) -> None:
    torch.manual_seed(0)
    layers = [nn.Linear(size, size, bias=False) for _ in range(2)]
    bio = biofx.transform(nn.ModuleList(layers))
    optimizer = torch.optim.SGD(bio.parameters(), lr=0.1, momentum=0.5)
    rules: list[Rule] = [Broadcast(form=FORMS[form])]
    scheduler = GradScheduler(bio, optimizer, rules=rules, compile=compiled)
    due = [parameter.detach().clone() for parameter in bio.parameters()]
    plain = torch.optim.SGD([nn.Parameter(weight) for weight in due], lr=0.05, momentum=0.5)
    for step in range(1, 5):
        go_on(bio, optimizer, range(step, step + 1))
        for one, other in zip(plain.param_groups[0]["params"], bio.parameters(), strict=True):
            one.grad = other.grad
        plain.step()
    assert members(scheduler) == [2]
    for weight, one in zip(bio.parameters(), plain.param_groups[0]["params"], strict=True):
        torch.testing.assert_close(weight, one, rtol=1e-5, atol=1e-6)
    assert (scheduler.factors("0.weight") == 0.5).all()
    assert scheduler.metrics()["1.weight"]["factor_mean"] == 0.5


def test_numbers_of_an_arena_that_is_frozen_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    def run() -> list[Tensor]:
        bio = chain(config={"crystallize_every": 1})
        halves = [list(part.parameters()) for part in (bio[:2], bio[2:])]  # type: ignore[index]
        optimizer = torch.optim.Adam([{"params": half} for half in halves], lr=0.01)
        scheduler = GradScheduler(bio, optimizer, compile=False)
        go_on(bio, optimizer, range(1, 4))
        for parameter in halves[0]:
            parameter.requires_grad_(False)
            parameter.grad = None
        go_on(bio, optimizer, range(4, 8))
        assert "factor_mean" in scheduler.metrics()["0.weight"]
        return [scheduler.factors(f"{place}.weight") for place in range(4)]

    ours, theirs = alone_and_together(run, monkeypatch)
    assert all(map(torch.equal, ours, theirs))
    assert not torch.equal(ours[0], torch.ones_like(ours[0]))


def test_metrics_read_the_weights_that_there_are() -> None:
    bio = chain()
    start = bio.get_parameter("1.weight").detach().clone()
    optimizer = torch.optim.SGD(bio.parameters(), lr=0.1)
    scheduler = GradScheduler(bio, optimizer, rules=[Restore(strength=0.01)], compile=False)
    for parameter in bio.parameters():
        parameter.data = parameter.data.clone()
    go_on(bio, optimizer, range(1, 4))
    distance = (bio.get_parameter("1.weight").detach() - start).square().mean().sqrt()
    assert scheduler.metrics()["1.weight"]["distance"] == pytest.approx(float(distance), rel=1e-4)


def test_of_mirrored_pairs_and_free_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = mirrored()
    assert members(ours[2]) == [3]
    told = {numbers["dale"].split(":")[0] for numbers in ours[2].metrics().values()}
    assert told == {"free", "mirrored"}
    assert (ours[0].get_parameter("0.weight") < 0).any(0).all()
    together(monkeypatch, 0)
    assert_same(ours, mirrored())


def gaps(step: int, name: str, grad: Tensor) -> Tensor | None:
    """Some without a gradient at some steps, one with a sparse one."""
    if (step, name) in ((2, "linear.weight"), (5, "rows.weight"), (6, "rows.weight")):
        return None
    if name == "words.weight" and step > 3:
        return grad.to_sparse(1)
    return grad


def test_parameters_come_and_go(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = train(rules=ALL, steps=9, grads=gaps)
    together(monkeypatch, 0)
    assert_same(ours, train(rules=ALL, steps=9, grads=gaps))


def test_frozen_and_freed_at_other_rates_with_other_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What holds for arenas from step to step holds no longer."""

    def run() -> tuple[nn.Module, Any, GradScheduler]:
        bio, optimizer, scheduler = train(rules=ALL, steps=3)
        bio.rows.weight.requires_grad_(False)  # with a gradient, which it keeps
        go_on(bio, optimizer, range(4, 7))
        bio.rows.weight.requires_grad_(True)
        bio.frozen.weight.requires_grad_(True)
        optimizer.param_groups[0]["lr"] *= 3
        go_on(bio, optimizer, range(7, 10))
        state = optimizer.state_dict()
        state["param_groups"][0]["lr"] /= 5
        optimizer.load_state_dict(state)
        go_on(bio, optimizer, range(10, 12))
        bio.linear.weight.data = bio.linear.weight.data * 0.5
        bio.prime.weight.data = bio.prime.weight.data.clone()
        go_on(bio, optimizer, range(12, 15))
        return bio, optimizer, scheduler

    ours = run()
    together(monkeypatch, 0)
    assert_same(ours, run())


@pytest.mark.parametrize("small", [0, arenas.SMALL])
def test_resuming_with_arenas_and_without(small: int, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = train(rules=ALL, optimizer="momentum", steps=8)
    bio, optimizer, scheduler = train(rules=ALL, optimizer="momentum", steps=3)
    file = io.BytesIO()
    torch.save([bio.state_dict(), optimizer.state_dict(), scheduler.state_dict()], file)
    together(monkeypatch, small)
    for started in (0, 2):  # a scheduler that is new, and one that has laid out its arenas
        file.seek(0)
        states = torch.load(file, weights_only=True)  # again: an optimizer keeps what it is given
        later = train(rules=ALL, optimizer="momentum", steps=started)
        for part, state in zip(later, states, strict=True):
            part.load_state_dict(state)
        go_on(*later[:2], range(4, 9))
        assert_same(later, whole)


def test_groups_and_settings_have_arenas_of_their_own() -> None:
    net = nn.Sequential(*(nn.Linear(4, 4, bias=False) for _ in range(6)))
    config = biofx.BioConfig(overrides={"5": {"fuzzy_learning_rate_factor_nu": 0.3}})
    bio = biofx.transform(net, config)
    first, second = list(bio.parameters())[:2], list(bio.parameters())[2:]
    optimizer = torch.optim.SGD([{"params": first, "lr": 0.1}, {"params": second, "lr": 0.2}])
    scheduler = GradScheduler(bio, optimizer, compile=False)
    for parameter in bio.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert members(scheduler) == [2, 3]


def test_optimizers_do_not_disturb_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    def weights() -> list[Tensor]:
        torch.manual_seed(0)
        bio = biofx.transform(nn.Sequential(*(nn.Linear(9, 9) for _ in range(4))))
        parameters = list(bio.parameters())
        optimizers = [torch.optim.SGD(p, lr=0.1) for p in (parameters[:4], parameters[4:])]
        scheduler = GradScheduler(bio, optimizers, rules=ALL[:4], compile=False)
        for step in range(4):
            torch.manual_seed(step)
            for parameter in parameters:
                parameter.grad = torch.randn_like(parameter)
            optimizers[step % 2].step()
            optimizers[1].step()
        assert len(members(scheduler)) == (2 if arenas.SMALL else 0)
        return [parameter.detach() for parameter in parameters]

    ours = weights()
    together(monkeypatch, 0)
    assert all(map(torch.equal, ours, weights()))


class Halving(Rule):
    """A rule of a user's own, that looks at units: it runs parameter by parameter."""

    def after_step(self, context: Context) -> None:
        assert context.weight.shape == context.shard.size
        context.weight.mul_(0.5)


class Shrinking(Rule):
    """One that joins."""

    def elementwise(self, synapses: Any) -> bool:
        return True

    def needs(self, context: Context, stage: str) -> tuple[str, ...]:
        return ("mean_abs",) if stage == "after_step" else ()

    def after_step(self, context: Context) -> Tensor:
        large = context.weight.abs() > context.statistics["mean_abs"]
        context.weight.copy_(torch.where(large, 0.9 * context.weight, context.weight))
        context.weight.add_(0.01 * context.symmetric("more").to(context.weight.dtype))
        return large & (context.index % 3 == 0)


def test_rules_of_a_users_own(monkeypatch: pytest.MonkeyPatch) -> None:
    rules = [FuzzyLearningRates(), Shrinking(), Crystallize(), Rejuvenate(max_share=0.1)]
    ours = train(rules=rules, optimizer="momentum")
    assert sum(members(ours[2])) > 4
    assert members(train(rules=[*rules, Halving()], steps=1)[2]) == []
    together(monkeypatch, 0)
    assert_same(ours, train(rules=rules, optimizer="momentum"))


class Deeper(Rule):
    """One that joins, and takes for each parameter what holds for one of them."""

    def elementwise(self, synapses: Any) -> bool:
        return True

    def factor(self, context: Context) -> Tensor:
        return torch.full((), 1 / (1 + context.synapses.depth), device=context.weight.device)


def test_what_differs_among_parameters_is_refused() -> None:
    bio = chain()
    optimizer = torch.optim.SGD(bio.parameters(), lr=0.1)
    GradScheduler(bio, optimizer, rules=[Deeper()], compile=False)
    before = [parameter.clone() for parameter in bio.parameters()]
    with pytest.raises(
        biofx.PlasticityError, match=r"reads context\.synapses\.depth, which differs"
    ):
        go_on(bio, optimizer, range(1, 2))
    assert all(map(torch.equal, bio.parameters(), before))


class Renewing(Rule):
    """One that joins, and replaces synapses before the step and after it."""

    replaces = True

    def elementwise(self, synapses: Any) -> bool:
        return True

    def before_update(self, context: Context) -> Tensor:
        return self.after_step(context, 0)

    def after_step(self, context: Context, turn: int = 1) -> Tensor:
        mask = context.index % 7 == (context.step + turn) % 7
        context.weight.copy_(torch.where(mask, 0.1, context.weight))
        return mask


def test_births_before_the_step_and_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the optimizer keeps is laid out twice: its step comes in between."""
    rules = [Crystallize(), Renewing()]
    ours = train(rules=rules, optimizer="adamw")
    assert members(ours[2]) != []
    together(monkeypatch, 0)
    assert_same(ours, train(rules=rules, optimizer="adamw"))


class Inverse(Rule):
    """One that joins, and gives no number where there is no weight: in the padding."""

    def elementwise(self, synapses: Any) -> bool:
        return True

    def factor(self, context: Context) -> Tensor:
        return 1e-3 / context.weight.float().abs()


def test_factors_of_no_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    rules = [Inverse(), VolumeDependentRates(), Crystallize(), Rejuvenate()]
    ours = train(rules=rules)
    assert sum(members(ours[2])) > 4
    together(monkeypatch, 0)
    assert_same(ours, train(rules=rules))


def test_factors_that_are_not_finite_are_named_by_parameter() -> None:
    bio, optimizer, _ = train(rules=[Inverse()], steps=2)
    bio.get_parameter("rows.weight").data[1, 2] = 0
    with pytest.raises(biofx.PlasticityError, match=r"gave 1 of 384 factors .* for rows\.weight;"):
        go_on(bio, optimizer, range(3, 4))


def test_what_is_not_finite_is_named_and_nothing_is_written() -> None:
    bio, optimizer, _ = train(rules=ALL, steps=2)
    bio.get_parameter("rows.weight").data[1, 2] = torch.nan
    before = {name: p.detach().clone() for name, p in bio.named_parameters()}
    with pytest.raises(biofx.PlasticityError, match=r"rows\.weight holds 1 of 384 weights"):
        go_on(bio, optimizer, range(3, 4))
    for name, parameter in bio.named_parameters():
        assert torch.equal(parameter.nan_to_num(), before[name].nan_to_num()), name


def test_a_gradient_changed_in_the_step_is_refused() -> None:
    bio, optimizer, _ = train(rules=ALL, steps=1)

    def meddle(*_: Any) -> None:
        bio.get_parameter("rows.weight").grad.mul_(2)  # type: ignore[union-attr]

    # Plain SGD's factors act after the step, on the gradient that was judged.
    optimizer.step = _between(optimizer.step, meddle)
    with pytest.raises(biofx.PlasticityError, match=r"rows\.weight: \.grad was changed"):
        go_on(bio, optimizer, range(2, 3))


def _between(step: Any, meddle: Callable[..., None]) -> Any:
    hook = step.__self__._optimizer_step_post_hooks
    first = next(iter(hook))
    own = hook[first]
    hook[first] = lambda *arguments: (meddle(), own(*arguments))[1]
    return step


def test_where_no_rule_acts_no_parameter_is_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    bio = biofx.transform(nn.Sequential(nn.Linear(20, 5), nn.ReLU(), nn.Linear(5, 1)))
    optimizer = torch.optim.SGD(bio.parameters(), lr=0.01)
    rules = [Rejuvenate(schedule=Schedule(every=n)) for n in (3, 4)]
    GradScheduler(bio, optimizer, rules=rules)
    copies = torch._foreach_copy_
    calls: list[int] = []

    def counted(*arguments: Any) -> None:
        calls[-1] += 1
        copies(*arguments)

    monkeypatch.setattr(torch, "_foreach_copy_", counted)
    for _ in range(12):
        calls.append(0)
        bio(torch.randn(4, 20)).square().mean().backward()
        optimizer.step()
    acted = {step for step, count in enumerate(calls, 1) if count}
    assert acted == {3, 4, 6, 8, 9, 12}


def test_sums_do_not_depend_on_the_company() -> None:
    torch.manual_seed(0)
    shapes = [torch.Size(s) for s in ((3, 50), (1,), (7, 131), (128,), (60, 64))]
    parts = [torch.randn(shape) for shape in shapes]
    arena = Arena(shapes, torch.device("cpu"))
    matrix = arena.empty(torch.float32)
    torch._foreach_copy_(arena.views(matrix), parts)
    assert arena.total(matrix).tolist() == [float(total_of(part)) for part in parts]
    assert arena.largest(matrix).tolist() == [float(part.max()) for part in parts]
    index = arena.views(arena.index(torch.device("cpu")))
    for part, own in zip(parts, index, strict=True):
        assert torch.equal(own.flatten(), torch.arange(part.numel(), dtype=torch.int32))
        assert torch.equal(as_rows(part).flatten()[: part.numel()], part.flatten())
    matrix[-1, 5] = torch.nan
    assert arena.largest(matrix).isnan().tolist() == [False] * 4 + [True]


def test_kept_bytes_per_synapse() -> None:
    """Weights and gradients of small parameters, and their copies before the step."""
    _, _, scheduler = train(rules=[FuzzyLearningRates()], optimizer="adamw", steps=2)
    (binding,) = scheduler._engine.arenas[0].bindings
    matrices = (binding.weight, binding.grad, binding._other[0])
    assert sum(matrix.nbytes for matrix in matrices) <= 12 * binding.weight.numel()
    held = [v for v in vars(binding).values() if isinstance(v, Tensor)]
    assert {id(matrix) for matrix in held} <= {id(matrix) for matrix in matrices}
    copies = scheduler._attachments[0]._copy.kept.keys()
    assert copies.isdisjoint([binding.name, *binding.names])
