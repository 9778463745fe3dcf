"""Who watches a scheduler sees each step, and travels in its checkpoint."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

import biofx
from biofx.plasticity import GradScheduler, Rejuvenate
from biofx.plasticity.scheduler.observer import Observer

from .table import IDS, RULES, Entry, batches, make, train


class Counter(Observer):
    """Counts what it is told."""

    key = "Counter"

    def __init__(self) -> None:
        self.steps = 0
        self.fresh: dict[str, int] = {}

    def stepped(self) -> None:
        assert not torch.is_grad_enabled()
        self.steps += 1

    def replaced(self, name: str, fresh: Tensor) -> None:
        self.fresh[name] = self.fresh.get(name, 0) + int(fresh.sum())

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        self.steps = state_dict["steps"]


def scheduled(*, rules: Any = None) -> tuple[Any, torch.optim.Optimizer, GradScheduler]:
    model = make()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    return model, optimizer, GradScheduler(model, optimizer, rules=rules)


@pytest.mark.parametrize("entry", RULES, ids=IDS)
@pytest.mark.filterwarnings("ignore")
def test_factors_at_places_are_those_of_the_whole(entry: Entry) -> None:
    model = make(entry.config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    scheduler = GradScheduler(model, optimizer)
    train(model, optimizer, batches(entry.steps))
    for name, synapses in biofx.info(model).synapses.items():
        flat = torch.arange(0, scheduler.factors(name).numel(), 3)
        at = torch.unravel_index(flat, synapses.shape)
        torch.testing.assert_close(
            scheduler.factors(name, at=at), scheduler.factors(name)[at], rtol=1e-6, atol=1e-7
        )


def test_an_observer_is_told_of_steps_and_of_new_synapses() -> None:
    model, optimizer, scheduler = scheduled(rules=[Rejuvenate(max_share=0.1)])
    counter = Counter()
    scheduler.observers.add(counter)
    train(model, optimizer, batches(3))
    assert counter.steps == 3
    assert counter.fresh
    assert all(counter.fresh.values())
    scheduler.observers.remove(counter)
    scheduler.observers.remove(counter)
    train(model, optimizer, batches(1))
    assert counter.steps == 3


def test_only_one_observer_of_a_kind() -> None:
    *_, scheduler = scheduled()
    scheduler.observers.add(Counter())
    with pytest.raises(biofx.PlasticityError, match="Counter watches this scheduler already"):
        scheduler.observers.add(Counter())


@pytest.mark.parametrize("late", [False, True])
def test_its_state_travels_in_the_checkpoint(late: bool) -> None:
    model, optimizer, scheduler = scheduled()
    assert "observers" not in scheduler.state_dict()
    scheduler.observers.add(Counter())
    train(model, optimizer, batches(2))
    saved = scheduler.state_dict()

    *_, again = scheduled()
    counter = Counter()
    if not late:
        again.observers.add(counter)
    again.load_state_dict(saved)
    assert again.state_dict()["observers"] == saved["observers"]  # nobody need be there
    if late:
        again.observers.add(counter)
    assert counter.steps == 2


def test_its_state_travels_with_the_first_optimizer_too() -> None:
    model, optimizer, scheduler = scheduled()
    scheduler.observers.add(Counter())
    train(model, optimizer, batches(2))
    _, other, again = scheduled()
    counter = Counter()
    again.observers.add(counter)
    other.load_state_dict(optimizer.state_dict())
    assert counter.steps == 2


@pytest.mark.parametrize("states", [3, [1], {"Counter": 3}, {3: {}}])
def test_damaged_states_of_observers_are_refused(states: Any) -> None:
    *_, scheduler = scheduled()
    with pytest.raises(biofx.CheckpointError, match="its observers are"):
        scheduler.load_state_dict({**scheduler.state_dict(), "observers": states})


def test_a_checkpoint_without_it_leaves_it_as_it_is() -> None:
    *_, scheduler = scheduled()
    saved = scheduler.state_dict()
    counter = Counter()
    scheduler.observers.add(counter)
    scheduler.load_state_dict(saved)
    assert counter.steps == 0
