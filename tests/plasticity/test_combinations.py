"""Rules that meet at the same synapse: who wins. docs/rules.md has the same table."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import biofx
from biofx.plasticity import (
    Crystallize,
    DalesPrinciple,
    FuzzyLearningRates,
    GradScheduler,
    Rejuvenate,
    Restore,
    UnitTurnover,
)
from tools.trials.populations import populate

OFF = biofx.BioConfig(fuzzy_lr_distribution="baseline")
FUZZY = FuzzyLearningRates(nu=0.4, distribution="uniform")
UNITS = UnitTurnover(rate=1.0, maturity=0, only="0.weight")
RENEW = Rejuvenate(law="initial", choose="random", max_share=0.9)


def step(*rules: Any, lr: float = 0.0) -> tuple[nn.Module, GradScheduler, dict[str, Any]]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))
    bio = populate(biofx.transform(net, OFF))
    optimizer = torch.optim.Adam(bio.parameters(), lr=lr)
    scheduler = GradScheduler(bio, optimizer, rules=list(rules))
    before = {name: p.detach().clone() for name, p in bio.named_parameters()}
    bio(torch.randn(8, 6)).square().mean().backward()
    optimizer.step()
    return bio, scheduler, before


def units_win(order: int) -> None:
    """A new unit is read by nobody, although its outgoing synapses were to be drawn anew."""
    bio, _, _ = step(*[UNITS, RENEW][::order])
    assert not bio.get_parameter("2.weight").any()


def the_last_one_wins(order: int) -> None:
    """Of two rules that replace a synapse, the later one's weight stays."""
    tiny = Rejuvenate(choose="random", law="uniform", max_share=0.9)
    alone, _, _ = step(RENEW)
    both, _, _ = step(*([tiny, RENEW] if order == 1 else [RENEW, tiny]))
    # keys tell two rules of one class apart, so draws differ: compare the laws
    bound = 1 / 6**0.5
    weight = both.get_parameter("0.weight").detach()
    assert (weight.abs() <= bound).all()
    assert not torch.equal(weight, alone.get_parameter("0.weight").detach())


def dale_gives_the_sign(order: int) -> None:
    """Whatever replaces a synapse, its sign is that of its unit."""
    bio, _, _ = step(*[RENEW, DalesPrinciple()][::order])
    weight = bio.get_parameter("2.weight")
    assert (weight[:, 0::2] >= 0).all()
    assert (weight[:, 1::2] <= 0).all()
    assert (weight != 0).float().mean() > 0.8


def restore_keeps_its_start(order: int) -> None:
    """A replaced synapse is pulled to where the old one began."""
    bio, scheduler, before = step(*[RENEW, Restore(strength=0.5)][::order])
    start = scheduler.state_dict()["state"]["Restore"]["2.weight"]["start"]
    assert torch.equal(start, before["2.weight"])
    assert not torch.equal(bio.get_parameter("2.weight").detach(), start)


def new_synapses_are_plastic(order: int) -> None:
    """What has crystallized is forgotten with the synapse."""
    _, scheduler, _ = step(*[UNITS, Crystallize(threshold=1e9)][::order])
    factors = scheduler.state_dict()["state"]["Crystallize"]["2.weight"]["factors"]
    assert torch.equal(factors, torch.ones_like(factors))


def factors_multiply(order: int) -> None:
    """Fuzzy and crystallized factors act together on one update."""
    ends = [
        step(
            *[FuzzyLearningRates(nu=0.4, distribution="uniform"), Crystallize(threshold=1e9)][
                ::way
            ],
            lr=0.01,
        )[0]
        for way in (1, -1)
    ]
    for first, second in zip(ends[0].parameters(), ends[1].parameters(), strict=True):
        torch.testing.assert_close(first, second)


TABLE = {
    ("UnitTurnover", "Rejuvenate"): units_win,
    ("Rejuvenate", "Rejuvenate"): the_last_one_wins,
    ("DalesPrinciple", "Rejuvenate"): dale_gives_the_sign,
    ("Restore", "Rejuvenate"): restore_keeps_its_start,
    ("UnitTurnover", "Crystallize"): new_synapses_are_plastic,
    ("FuzzyLearningRates", "Crystallize"): factors_multiply,
}


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("pair", TABLE, ids=" and ".join)
def test_two_rules(pair: tuple[str, str], order: int) -> None:
    TABLE[pair](order)


@pytest.mark.parametrize("pair", TABLE, ids=" and ".join)
def test_the_documentation_has_the_pair(pair: tuple[str, str]) -> None:
    text = (Path(__file__).parents[2] / "docs" / "rules.md").read_text(encoding="utf-8")
    table = text[text.index("## Rules that meet") :]
    assert f"| {pair[0]} and {pair[1]} |" in table


def test_two_that_crystallize() -> None:
    """Each judges for itself, and their factors multiply."""
    halves = Crystallize(threshold=1e9, dampening=0.5)
    _, one, _ = step(halves)
    _, both, _ = step(halves, Crystallize(threshold=1e9, dampening=0.25))
    assert (one.factors("0.weight") == 0.5).all()
    assert (both.factors("0.weight") == 0.125).all()
