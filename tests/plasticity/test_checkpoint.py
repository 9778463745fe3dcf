"""Stopping and going on, from files and from other layouts; refusing what does not belong."""

import copy
import io
import json
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import nn

import biofx
from biofx.plasticity import (
    Crystallize,
    DalesPrinciple,
    FuzzyLearningRates,
    GradScheduler,
    Rejuvenate,
    Restore,
    Rule,
    VolumeDependentRates,
)

from .table import IDS, RULES, Entry, batches, make, same, train

EVERYTHING = RULES[-1]


def test_is_tensors_and_plain_values() -> None:
    model = make(EVERYTHING.config)
    optimizer = torch.optim.AdamW(model.parameters())
    scheduler = GradScheduler(model, optimizer)
    train(model, optimizer, batches(3))

    def plain(value: Any) -> bool:
        if isinstance(value, dict):
            return all(isinstance(key, str) and plain(item) for key, item in value.items())
        if isinstance(value, list):
            return all(plain(item) for item in value)
        return type(value) in (str, int, float, torch.Tensor)

    assert plain(scheduler.state_dict())


@dataclass(frozen=True, kw_only=True)
class Sleepy(Rule):
    """Keeps a tensor and a number of its own."""

    rate: float = 0.5

    def prepare(self, context: Any) -> None:
        context.state["tired"] = torch.zeros(context.weight.shape)
        context.state["naps"] = 0

    def observe(self, context: Any) -> None:
        context.state["tired"] += context.uniform("tired")
        context.state["naps"] += 1

    def factor(self, context: Any) -> Any:
        return torch.where(context.state["tired"] > 1, self.rate, 1.0)


def test_keeps_what_users_rules_remember() -> None:
    ends = []
    for stop in (None, 2):
        model = make()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        scheduler = GradScheduler(model, optimizer, rules=[Sleepy()])
        data = batches(5)
        if stop is not None:
            train(model, optimizer, data[:stop])
            saved = torch.save([model.state_dict(), scheduler.state_dict()], file := io.BytesIO())
            assert saved is None
            file.seek(0)
            weights, state = torch.load(file, weights_only=True)
            model = make()
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            scheduler = GradScheduler(model, optimizer, rules=[Sleepy()])
            model.load_state_dict(weights)
            scheduler.load_state_dict(state)
        train(model, optimizer, data[stop or 0 :])
        assert scheduler.state_dict()["state"]["Sleepy"]["fc.weight"]["naps"] == 5
        ends.append(model)
    assert same(*ends)


def refusal(first: Any, second: Any) -> str:
    """The message when `second` is given the state of `first`."""
    with pytest.raises(biofx.CheckpointError) as caught:
        second.load_state_dict(first.state_dict())
    return str(caught.value)


def scheduler_of(config: dict[str, Any] | None = None, **options: Any) -> GradScheduler:
    model = make(config)
    return GradScheduler(model, torch.optim.SGD(model.parameters(), lr=0.1), **options)


def test_refuses_another_configuration() -> None:
    message = refusal(
        scheduler_of({"crystallize_every": 1, "dampening_factor": 0.5}),
        scheduler_of({"crystallize_every": 1}),
    )
    assert "conv.weight: Crystallize's dampening is 0.5 in the checkpoint and 0.6 here" in message
    message = refusal(
        scheduler_of({"overrides": {"fc": {"fuzzy_lr_distribution": "gamma"}}}), scheduler_of()
    )
    assert "fc.weight: FuzzyLearningRates's distribution is 'gamma'" in message
    assert "conv.weight" not in message
    message = refusal(scheduler_of({"rejuvenate_every": 2}), scheduler_of())
    assert "Rejuvenate serves conv.weight only in the checkpoint" in message


def test_refuses_another_model() -> None:
    torch.manual_seed(0)
    for other, text in (
        (torch.nn.Sequential(torch.nn.Linear(4, 4)), "parameter 0.weight is not in the checkpoint"),
        (type(make())(), "shape"),
    ):
        if text == "shape":
            other.fc = torch.nn.Linear(4, 6)
            text = "parameter fc.weight has shape [5, 4] in the checkpoint and [6, 4] here"
        bio = biofx.transform(other)
        second = GradScheduler(bio, torch.optim.SGD(bio.parameters(), lr=0.1))
        assert text in refusal(scheduler_of(), second)


def test_refuses_other_rules_seeds_and_modes() -> None:
    message = refusal(scheduler_of(seed=1), scheduler_of(seed=2))
    assert "seed is 1 in the checkpoint and 2 here" in message
    message = refusal(scheduler_of(apply="gradient"), scheduler_of())
    assert "apply is 'gradient' in the checkpoint and 'update' here" in message
    message = refusal(
        scheduler_of(rules=[Crystallize()]), scheduler_of(rules=[VolumeDependentRates()])
    )
    assert "['Crystallize']" in message
    assert "['VolumeDependentRates']" in message


def test_refuses_what_is_no_checkpoint() -> None:
    scheduler = scheduler_of()
    for wrong in ({}, {"model": 1}, torch.optim.SGD([torch.zeros(1)], lr=1).state_dict(), None):
        with pytest.raises(biofx.CheckpointError, match="not a checkpoint of a GradScheduler"):
            scheduler.load_state_dict(wrong)  # type: ignore[arg-type]
    state = scheduler.state_dict()
    with pytest.raises(biofx.CheckpointError, match="version 99"):
        scheduler.load_state_dict({**state, "version": 99})
    with pytest.raises(biofx.CheckpointError, match="2 optimizers"):
        scheduler.load_state_dict({**state, "steps": [1, 2]})


def test_a_refused_checkpoint_changes_nothing() -> None:
    first, second = scheduler_of(EVERYTHING.config, seed=1), scheduler_of(EVERYTHING.config)
    before = json.dumps(str(second.state_dict()))
    refusal(first, second)
    assert json.dumps(str(second.state_dict())) == before


def test_states_of_frozen_layers_wait() -> None:
    """A layer that is frozen when training resumes finds its state when it is unfrozen."""
    config = {"fuzzy_lr_distribution": "baseline", "crystallize_every": 1, "crystal_thresh": 1e9}
    model = make(config)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = GradScheduler(model, optimizer)
    train(model, optimizer, batches(2))
    saved = scheduler.state_dict()

    model = make(config)
    fc = model.get_parameter("fc.weight").requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = GradScheduler(model, optimizer)
    scheduler.load_state_dict(saved)
    train(model, optimizer, batches(1))
    again = scheduler.state_dict()["state"]["Crystallize"]["fc.weight"]["factors"]
    assert torch.allclose(again, torch.tensor(0.6**2))
    fc.requires_grad_(True)
    train(model, optimizer, batches(1))
    again = scheduler.state_dict()["state"]["Crystallize"]["fc.weight"]["factors"]
    assert torch.allclose(again, torch.tensor(0.6**3))


@pytest.mark.parametrize("entry", RULES, ids=IDS)
@pytest.mark.filterwarnings("ignore")
def test_distributed_checkpoint_in_one_process(entry: Entry, tmp_path: Path) -> None:
    data = batches(entry.steps)
    whole = make(entry.config)
    optimizer = torch.optim.SGD(whole.parameters(), lr=0.1)
    scheduler = GradScheduler(whole, optimizer)
    train(whole, optimizer, data[:3])
    states = {"model": whole.state_dict(), "scheduler": scheduler.state_dict()}
    dcp.save(states, checkpoint_id=tmp_path)
    train(whole, optimizer, data[3:])

    resumed = make(entry.config)
    optimizer = torch.optim.SGD(resumed.parameters(), lr=0.1)
    scheduler = GradScheduler(resumed, optimizer)
    state = {"model": resumed.state_dict(), "scheduler": scheduler.state_dict()}
    dcp.load(state, checkpoint_id=tmp_path)
    resumed.load_state_dict(state["model"])
    scheduler.load_state_dict(state["scheduler"])
    train(resumed, optimizer, data[3:])
    assert same(whole, resumed)


ROOT = Path(__file__).parents[2]
KILLED = "tests.plasticity.killed_run"
STEPS = 40


def run_to_the_end(folder: Path) -> dict[str, torch.Tensor]:
    command = [sys.executable, "-m", KILLED, folder, str(STEPS)]
    subprocess.run(command, check=True, timeout=120, cwd=ROOT)
    return torch.load(folder / "end.pt", weights_only=True)


@pytest.mark.slow
def test_survives_being_killed(tmp_path: Path) -> None:
    """Killed with SIGKILL wherever it happens to be, then resumed: the same end, to the bit."""
    whole = run_to_the_end(tmp_path / "whole")
    folder = tmp_path / "killed"
    chance = random.Random(0)
    killed = 0
    for _ in range(4):
        command = [sys.executable, "-m", KILLED, folder, str(STEPS), "0.03"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "running\n"
            time.sleep(chance.uniform(0.02, 0.35))
            process.send_signal(signal.SIGKILL)
        killed += process.returncode == -signal.SIGKILL
    assert killed >= 3
    ended = run_to_the_end(folder)
    assert ended.keys() == whole.keys()
    for name, value in whole.items():
        assert torch.equal(ended[name], value), name


def test_rules_settings_that_are_no_json_are_compared_as_text() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Odd(Rule):
        where: Any = None

    first = scheduler_of(rules=[Odd(where=Path("a"))])
    second = scheduler_of(rules=[Odd(where=Path("b"))])
    assert "Odd's where is 'a' in the checkpoint and 'b' here" in refusal(first, second)
    second.detach()
    assert FuzzyLearningRates().name == "FuzzyLearningRates"
    assert Rejuvenate().name == "Rejuvenate"


def test_goes_back_to_before_a_layer_was_thawed() -> None:
    config = {"fuzzy_lr_distribution": "baseline", "crystallize_every": 1, "crystal_thresh": 1e9}
    model = make(config)
    fc = model.get_parameter("fc.weight").requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = GradScheduler(model, optimizer)
    train(model, optimizer, batches(1))
    saved = copy.deepcopy(scheduler.state_dict())
    fc.requires_grad_(True)
    train(model, optimizer, batches(3))
    scheduler.load_state_dict(saved)
    train(model, optimizer, batches(1))
    states = scheduler.state_dict()["state"]["Crystallize"]
    assert torch.allclose(states["fc.weight"]["factors"], torch.tensor(0.6))
    assert torch.allclose(states["conv.weight"]["factors"], torch.tensor(0.6**2))


@pytest.mark.parametrize("with_optimizer", [True, False])
@pytest.mark.parametrize("rule", [Restore(strength=0.1), DalesPrinciple()], ids=["restore", "dale"])
def test_a_layer_that_is_thawed_again_begins_again(rule: Rule, with_optimizer: bool) -> None:
    """A state from before it was thawed is loaded: its rules begin when it is, as they did."""
    layers = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    model = biofx.transform(layers, example_inputs=torch.ones(1, 4))
    weight = model.get_parameter("2.weight").requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = GradScheduler(model, optimizer if with_optimizer else None, rules=[rule])
    data = [(torch.randn(8, 4), torch.randn(8, 2)) for _ in range(4)]

    def learn(part: list[Any]) -> None:
        for batch in part:
            train(model, optimizer, [batch])
            if not with_optimizer:
                scheduler.step()

    learn(data[:1])
    saved = copy.deepcopy([scheduler.state_dict(), model.state_dict()])
    ends = []
    for _ in range(2):
        weight.requires_grad_(True)
        learn(data[1:])
        ends.append(copy.deepcopy(model))
        weight.requires_grad_(False)
        scheduler.load_state_dict(saved[0])
        model.load_state_dict(saved[1])
    assert same(*ends)
