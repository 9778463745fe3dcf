"""Plasticity state in optimizer.state_dict(): carried by whatever keeps the optimizer's state."""

import copy
import io
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_state_dict,
    set_state_dict,
)

import biofx
from biofx.plasticity import DalesPrinciple, FuzzyLearningRates, GradScheduler, Schedule

from .table import IDS, RULES, Entry, batches, make, same

CONFIG: dict[str, Any] = {
    "fuzzy_lr_distribution": "temporal",
    "fuzzy_lr_dynamic": True,
    "fuzzy_lr_update_freq": 1,
    "fuzzy_lr_decay": 0.9,
    "crystallize_every": 1,
    "crystal_thresh": 0.05,
    "rejuvenate_every": 2,
}
OPTIMIZERS: dict[str, Any] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01),
    "lbfgs": lambda p: torch.optim.LBFGS(p, lr=0.1, max_iter=2),
}


def through_a_file(value: Any) -> Any:
    torch.save(value, file := io.BytesIO())
    file.seek(0)
    return torch.load(file, weights_only=True)


def learn(model: nn.Module, optimizer: torch.optim.Optimizer, data: Any) -> None:
    for x, y in data:

        def closure(x: Any = x, y: Any = y) -> Any:
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(model(x), y)
            loss.backward()
            return loss

        if isinstance(optimizer, torch.optim.LBFGS):
            optimizer.step(closure)
        else:
            closure()
            optimizer.step()


@pytest.mark.parametrize("first", ["scheduler", "state"])
@pytest.mark.parametrize("entry", RULES, ids=IDS)
@pytest.mark.filterwarnings("ignore:.*plasticity steps 0")
def test_resumes_from_the_optimizers_state_alone(entry: Entry, first: str) -> None:
    data = batches(entry.steps)
    whole = make(entry.config)
    optimizer = torch.optim.AdamW(whole.parameters(), lr=0.01)
    kept = GradScheduler(whole, optimizer)
    learn(whole, optimizer, data[:3])
    weights, state = through_a_file([whole.state_dict(), optimizer.state_dict()])
    learn(whole, optimizer, data[3:])

    resumed = make(entry.config)
    optimizer = torch.optim.AdamW(resumed.parameters(), lr=0.01)
    if first == "scheduler":
        scheduler = GradScheduler(resumed, optimizer)
    resumed.load_state_dict(weights)
    optimizer.load_state_dict(state)
    if first == "state":
        scheduler = GradScheduler(resumed, optimizer)
    assert scheduler.steps == [3]
    assert "plasticity" not in optimizer.param_groups[0]
    learn(resumed, optimizer, data[3:])
    assert same(whole, resumed)
    assert str(kept.state_dict()) == str(scheduler.state_dict())


def test_weights_are_as_they_were_where_the_state_is_refused() -> None:
    """Nothing is begun on trained weights, whatever the state that came with them is worth."""
    entry = next(entry for entry in RULES if entry.name == "dale-mirrored")
    model = make(entry.config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    optimizer.param_groups[0]["plasticity"] = {"fingerprint": "damaged"}
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(biofx.CheckpointError):
        GradScheduler(model, optimizer)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_resumes_under_every_kind_of_optimizer(name: str) -> None:
    data = batches(6)
    whole = make(CONFIG)
    optimizer = OPTIMIZERS[name](whole.parameters())
    GradScheduler(whole, optimizer)
    learn(whole, optimizer, data[:3])
    weights, state = through_a_file([whole.state_dict(), optimizer.state_dict()])
    learn(whole, optimizer, data[3:])
    resumed = make(CONFIG)
    optimizer = OPTIMIZERS[name](resumed.parameters())
    GradScheduler(resumed, optimizer)
    resumed.load_state_dict(weights)
    optimizer.load_state_dict(state)
    learn(resumed, optimizer, data[3:])
    assert same(whole, resumed)


def two(model: nn.Module) -> list[torch.optim.Optimizer]:
    early = [p for name, p in model.named_parameters() if name.startswith("conv")]
    late = [p for name, p in model.named_parameters() if not name.startswith("conv")]
    return [torch.optim.SGD(early, lr=0.1), torch.optim.AdamW(late, lr=0.01)]


def test_each_of_several_optimizers_carries_its_own() -> None:
    data = batches(6)
    whole = make(CONFIG)
    optimizers = two(whole)
    GradScheduler(whole, optimizers)

    def steps(model: nn.Module, optimizers: list[torch.optim.Optimizer], data: Any) -> None:
        for place, (x, y) in enumerate(data):
            for optimizer in optimizers:
                optimizer.zero_grad()
            nn.functional.mse_loss(model(x), y).backward()
            for optimizer in optimizers[: 1 + place % 2]:
                optimizer.step()

    steps(whole, optimizers, data[:3])
    states = through_a_file([optimizer.state_dict() for optimizer in optimizers])
    held = [set(s["param_groups"][0]["plasticity"]["state"]["Crystallize"]) for s in states]
    assert held == [{"conv.weight"}, {"grouped.weight", "up.weight", "fc.weight"}]
    weights = copy.deepcopy(whole.state_dict())
    steps(whole, optimizers, data[3:])

    resumed = make(CONFIG)
    optimizers = two(resumed)
    scheduler = GradScheduler(resumed, optimizers)
    resumed.load_state_dict(weights)
    optimizers[1].load_state_dict(states[1])
    assert scheduler.steps == [0, 1]
    optimizers[0].load_state_dict(states[0])
    assert scheduler.steps == [3, 1]
    steps(resumed, optimizers, data[3:])
    assert same(whole, resumed)
    with pytest.raises(biofx.CheckpointError, match=r"parameter 'conv\.weight', which"):
        optimizers[1].load_state_dict({**states[1], "param_groups": states[0]["param_groups"]})


def test_the_state_of_a_layer_that_was_left_out_is_carried_too() -> None:
    model = make(CONFIG)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    first = GradScheduler(model, optimizer)
    learn(model, optimizer, batches(2))
    state = copy.deepcopy(first.state_dict())
    again = make(CONFIG)
    again.get_parameter("fc.weight").requires_grad_(False)
    optimizer = torch.optim.SGD([p for p in again.parameters() if p.requires_grad], lr=0.1)
    scheduler = GradScheduler(again, optimizer)
    scheduler.load_state_dict(state)
    carried = optimizer.state_dict()["param_groups"][0]["plasticity"]
    assert str(carried["state"]) == str(scheduler.state_dict()["state"])
    assert "fc.weight" in carried["state"]["Crystallize"]


def test_two_schedulers_of_one_optimizer() -> None:
    ends = []
    for stop in (None, 2):
        models = [make(CONFIG), make(CONFIG)]

        def start(models: list[Any]) -> Any:
            both = [p for model in models for p in model.parameters()]
            optimizer = torch.optim.AdamW(both, lr=0.01)
            schedulers = [GradScheduler(model, optimizer) for model in models]
            return optimizer, schedulers

        optimizer, _ = start(models)
        for step, (x, y) in enumerate(batches(4)):
            if step == stop:
                weights = [copy.deepcopy(model.state_dict()) for model in models]
                state = through_a_file(optimizer.state_dict())
                assert {"plasticity", "plasticity.2"} < set(state["param_groups"][0])
                models = [make(CONFIG), make(CONFIG)]
                optimizer, schedulers = start(models)
                for model, its in zip(models, weights, strict=True):
                    model.load_state_dict(its)
                optimizer.load_state_dict(state)
                assert [scheduler.steps for scheduler in schedulers] == [[2], [2]]
            optimizer.zero_grad()
            sum(
                (1 + place) * nn.functional.mse_loss(model(x), y)
                for place, model in enumerate(models)
            ).backward()
            optimizer.step()
        ends.append(models)
    assert same(ends[0][0], ends[1][0])
    assert same(ends[0][1], ends[1][1])
    assert not same(ends[0][0], ends[0][1])


def test_a_file_with_plasticity_loads_into_a_run_without_it() -> None:
    model = make(CONFIG)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    GradScheduler(model, optimizer)
    learn(model, optimizer, batches(2))
    weights, state = through_a_file([model.state_dict(), optimizer.state_dict()])
    plain = make()
    bare = make()
    for net, remove in ((plain, False), (bare, True)):
        net.load_state_dict(weights)
        optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)
        its = copy.deepcopy(state)  # optimizers go on in the tensors that they are given
        if remove:
            del its["param_groups"][0]["plasticity"]
        optimizer.load_state_dict(its)
        learn(net, optimizer, batches(4)[2:])
        through_a_file(optimizer.state_dict())
    assert same(plain, bare)


def test_a_file_without_plasticity_loads_with_a_warning() -> None:
    plain = make()
    optimizer = torch.optim.AdamW(plain.parameters(), lr=0.01)
    learn(plain, optimizer, batches(2))
    state = through_a_file(optimizer.state_dict())
    model = make(CONFIG)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    scheduler = GradScheduler(model, optimizer)
    with pytest.warns(UserWarning, match="holds no plasticity state"):
        optimizer.load_state_dict(state)
    assert scheduler.steps == [0]
    assert optimizer.state[model.get_parameter("fc.weight")]["step"] == 2


def test_another_runs_state_is_refused_with_the_remedy_and_changes_nothing() -> None:
    model = make(CONFIG)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    GradScheduler(model, optimizer, seed=1)
    learn(model, optimizer, batches(2))
    state = through_a_file(optimizer.state_dict())

    other = make(CONFIG)
    optimizer = torch.optim.AdamW(other.parameters(), lr=0.01)
    scheduler = GradScheduler(other, optimizer, seed=2)
    learn(other, optimizer, batches(1))
    before = str(optimizer.state_dict())
    with pytest.raises(biofx.CheckpointError, match=r"seed is 1.*pop\('plasticity'\)"):
        optimizer.load_state_dict(state)
    assert str(optimizer.state_dict()) == before
    state["param_groups"][0].pop("plasticity")
    with pytest.warns(UserWarning, match="no plasticity state"):
        optimizer.load_state_dict(state)
    scheduler.detach()

    state = through_a_file(optimizer.state_dict())
    assert "plasticity" not in state["param_groups"][0]


def test_a_state_that_the_optimizer_refuses_changes_nothing() -> None:
    model = make(CONFIG)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    scheduler = GradScheduler(model, optimizer)
    learn(model, optimizer, batches(1))
    state = copy.deepcopy(optimizer.state_dict())
    learn(model, optimizer, batches(3)[1:])
    state["param_groups"][0]["params"].pop()
    before = str(scheduler.state_dict())
    with pytest.raises(ValueError, match="doesn't match the size"):
        optimizer.load_state_dict(state)
    assert str(scheduler.state_dict()) == before
    for wrong in ({}, {"param_groups": []}, {"param_groups": None, "state": {}}):
        with pytest.raises((KeyError, ValueError, TypeError)):
            optimizer.load_state_dict(wrong)  # type: ignore[arg-type]
    assert str(scheduler.state_dict()) == before


def test_what_is_loaded_is_not_changed() -> None:
    model = make(CONFIG)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    GradScheduler(model, optimizer)
    learn(model, optimizer, batches(1))
    state = copy.deepcopy(optimizer.state_dict())
    groups = str(state["param_groups"])
    optimizer.load_state_dict(state)
    learn(model, optimizer, batches(1))
    assert str(state["param_groups"]) == groups


class OfItsOwn(torch.optim.AdamW):
    """Takes its groups without any hook, as bitsandbytes's do."""

    def load_state_dict(self, state_dict: Any) -> None:
        plain = torch.optim.AdamW([p for group in self.param_groups for p in group["params"]])
        plain.load_state_dict(state_dict)
        self.__setstate__({"state": plain.state, "param_groups": plain.param_groups})


def test_an_optimizer_that_loads_without_hooks() -> None:
    data = batches(5)
    whole = make(CONFIG)
    optimizer = OfItsOwn(whole.parameters(), lr=0.01)
    GradScheduler(whole, optimizer)
    learn(whole, optimizer, data[:2])
    weights, state = through_a_file([whole.state_dict(), optimizer.state_dict()])
    learn(whole, optimizer, data[2:])
    resumed = make(CONFIG)
    optimizer = OfItsOwn(resumed.parameters(), lr=0.01)
    scheduler = GradScheduler(resumed, optimizer)
    resumed.load_state_dict(weights)
    optimizer.load_state_dict(state)
    learn(resumed, optimizer, data[2:])
    assert scheduler.steps == [5]
    assert same(whole, resumed)


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("name", ["momentum", "adamw"])
@pytest.mark.filterwarnings("ignore")
def test_distributed_checkpoint_carries_it(name: str, full: bool, tmp_path: Path) -> None:
    options = StateDictOptions(full_state_dict=full)

    def states(model: Any, optimizer: Any) -> dict[str, Any]:
        weights, optim = get_state_dict(model, optimizer, options=options)
        return {"model": weights, "optim": optim}

    data = batches(6)
    whole = make(CONFIG)
    optimizer = OPTIMIZERS[name](whole.parameters())
    GradScheduler(whole, optimizer)
    learn(whole, optimizer, data[:3])
    dcp.save(states(whole, optimizer), checkpoint_id=tmp_path)
    learn(whole, optimizer, data[3:])

    resumed = make(CONFIG)
    optimizer = OPTIMIZERS[name](resumed.parameters())
    scheduler = GradScheduler(resumed, optimizer)
    state = states(resumed, optimizer)
    dcp.load(state, checkpoint_id=tmp_path)
    set_state_dict(
        resumed,
        optimizer,
        model_state_dict=state["model"],
        optim_state_dict=state["optim"],
        options=options,
    )
    assert scheduler.steps == [3]
    learn(resumed, optimizer, data[3:])
    assert same(whole, resumed)


def test_a_state_loaded_often_does_not_warn() -> None:
    model = make(CONFIG)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    GradScheduler(model, optimizer, rules=[FuzzyLearningRates()])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3):
            learn(model, optimizer, batches(1))
            optimizer.load_state_dict(optimizer.state_dict())


def test_the_learning_rate_of_a_loaded_state_holds() -> None:
    """Plain SGD's update is computed from the group's rate: of the groups as they are now."""
    ends = []
    for load in (False, True):
        model = make()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        GradScheduler(model, optimizer, rules=[FuzzyLearningRates(nu=0.5)])
        learn(model, optimizer, batches(1))
        if load:
            optimizer.load_state_dict(optimizer.state_dict())
        optimizer.param_groups[0]["lr"] = 0.5
        learn(model, optimizer, batches(2)[1:])
        ends.append(model)
    assert same(*ends)


@pytest.mark.parametrize("loaded", [False, True])
def test_a_step_that_raised_is_in_no_state(loaded: bool) -> None:
    model = make(CONFIG)
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    GradScheduler(model, optimizer)
    data = batches(6)
    learn(model, optimizer, data[:3])
    states = through_a_file([model.state_dict(), optimizer.state_dict()])

    def fail(*_: Any) -> None:
        raise RuntimeError("no step")

    handle = optimizer.register_step_pre_hook(fail)
    with pytest.raises(RuntimeError, match="no step"):
        learn(model, optimizer, data[3:4])
    handle.remove()
    if loaded:
        model.load_state_dict(states[0])
        optimizer.load_state_dict(copy.deepcopy(states[1]))  # it keeps what it is given
    else:
        states = through_a_file([model.state_dict(), optimizer.state_dict()])
    learn(model, optimizer, data[3:])
    other = make(CONFIG)
    again = OPTIMIZERS["adamw"](other.parameters())
    GradScheduler(other, again)
    other.load_state_dict(states[0])
    again.load_state_dict(states[1])
    learn(other, again, data[3:])
    whole = make(CONFIG)
    straight = OPTIMIZERS["adamw"](whole.parameters())
    GradScheduler(whole, straight)
    learn(whole, straight, data)
    assert same(model, whole)
    assert same(other, whole)


def frozen(now: bool) -> Any:
    """A run whose last layer may be frozen when its scheduler is made."""
    model = make({"apply_dales_principle": True, "dale_initialisation": "signs"})
    model.get_parameter("fc.weight").requires_grad_(not now)
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    GradScheduler(model, optimizer, rules=[DalesPrinciple(schedule=Schedule(every=100))])
    return model, optimizer


def test_a_layer_that_is_frozen_while_a_run_resumes_is_not_begun_again() -> None:
    """Nor from a second file, which is written while it is frozen."""
    ends = []
    for resumed in (False, True):
        model, optimizer = frozen(now=False)
        for step, batch in enumerate(batches(8)):
            weight = model.get_parameter("fc.weight")
            weight.requires_grad_(not 2 <= step < 6)
            if step == 2:
                weight.data.neg_()
            learn(model, optimizer, [batch])
            if resumed and step in (3, 4):
                states = through_a_file([model.state_dict(), optimizer.state_dict()])
                model, optimizer = frozen(now=True)
                model.load_state_dict(states[0])
                optimizer.load_state_dict(states[1])
        ends.append(model)
    assert same(*ends)


def test_a_closures_further_calls_count_for_no_step() -> None:
    """What they count would be in no file."""
    config = {
        "fuzzy_lr_distribution": "activity",
        "fuzzy_lr_dynamic": True,
        "fuzzy_lr_update_freq": 1,
    }
    ends = []
    for resumed in (False, True):
        model = make(config)
        optimizer = OPTIMIZERS["lbfgs"](model.parameters())
        GradScheduler(model, optimizer)
        learn(model, optimizer, batches(6)[:3])
        if resumed:
            states = through_a_file([model.state_dict(), optimizer.state_dict()])
            model = make(config)
            optimizer = OPTIMIZERS["lbfgs"](model.parameters())
            GradScheduler(model, optimizer)
            model.load_state_dict(states[0])
            optimizer.load_state_dict(states[1])
        learn(model, optimizer, batches(6)[3:])
        ends.append(model)
    assert same(*ends)
