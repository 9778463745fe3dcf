"""What a scheduler warns of, and when it does not."""

import inspect
import warnings
from typing import Any

import pytest
import torch
from torch import nn

import biofx
from biofx.plasticity import Crystallize, FuzzyLearningRates, GradScheduler
from biofx.plasticity.rules.fuzzy import mean_factor


def scheduler(**config: Any) -> GradScheduler:
    torch.manual_seed(0)
    bio = biofx.transform(nn.Sequential(nn.Linear(6, 6)), biofx.BioConfig(**config))
    return GradScheduler(bio, torch.optim.SGD(bio.parameters(), lr=0.1))


def test_a_clamp_that_moves_the_mean() -> None:
    message = r"factor_nu=5 with the clamp \[0\.5, 2\] gives factors of mean 1\.2\d, not 1"
    with pytest.warns(UserWarning, match=message) as warned:
        scheduler(fuzzy_learning_rate_factor_nu=5)
    assert warned[0].filename == __file__  # the line that makes the scheduler
    _, first = inspect.getsourcelines(scheduler)
    assert warned[0].lineno == first + 3
    with pytest.warns(UserWarning, match=r"of mean 0\.\d+, not 1"):
        scheduler(fuzzy_learning_rate_factor_nu=2, fuzzy_lr_distribution="lognormal")


@pytest.mark.parametrize("distribution", [d for d in biofx.Distribution if d != "activity"])
def test_usual_settings_are_not_warned_of(distribution: str) -> None:
    for nu in (0.0, 0.16, 0.5):
        scheduler(fuzzy_lr_distribution=distribution, fuzzy_learning_rate_factor_nu=nu)
        assert mean_factor(biofx.Distribution(distribution), nu, 0.5, 2.0) == pytest.approx(
            1, abs=0.05
        )


class Half(nn.Module):
    """A layer of which a share of the units is silent."""

    def __init__(self, silent: int) -> None:
        super().__init__()
        self.fc, self.out = nn.Linear(4, 10), nn.Linear(10, 2)
        with torch.no_grad():
            self.fc.bias[:silent] = -100.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(torch.relu(self.fc(x)))


@pytest.mark.parametrize("apply", ["update", "gradient"])
@pytest.mark.parametrize(("silent", "warned"), [(4, False), (7, True)])
def test_silent_units(silent: int, warned: bool, apply: Any) -> None:
    torch.manual_seed(0)
    bio = biofx.transform(Half(silent))
    optimizer = torch.optim.SGD(bio.parameters(), lr=1e-4)
    rules = [FuzzyLearningRates(), Crystallize()]
    made = GradScheduler(bio, optimizer, rules=rules, apply=apply)
    found = []
    for step in range(1, 501):
        optimizer.zero_grad()
        bio(torch.randn(64, 4)).square().mean().backward()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            optimizer.step()
        found += [(step, str(one.message)) for one in caught]
    assert made.metrics()["fc.weight"]["silent"] == pytest.approx(silent / 10, abs=0.11)
    assert made.metrics()["out.weight"]["silent"] == 0
    assert len(found) == warned
    for step, text in found:
        assert step == 300
        assert "no gradient at steps 100, 200 and 300: fc.weight (70 %)" in text
