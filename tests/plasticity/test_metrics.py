"""What a scheduler tells of a run: the factors of a step, and flat numbers for loggers."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import biofx
from biofx.plasticity import Context, Crystallize, FuzzyLearningRates, GradScheduler, Rule

from .table import IDS, RULES, Entry, batches, make, train


def one_step(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    train(model, optimizer, batches(1))
    return {name: weight.detach() - before[name] for name, weight in model.named_parameters()}


@pytest.mark.parametrize("apply", ["update", "gradient"])
@pytest.mark.parametrize("compile", [True, False])
def test_factors_are_what_the_update_was_multiplied_by(apply: Any, compile: bool) -> None:
    @dataclass(frozen=True, kw_only=True)
    class Rows(Rule):
        def factor(self, context: Context) -> Tensor:
            shape = (context.weight.shape[0], *[1] * (context.weight.dim() - 1))
            return torch.arange(context.weight.shape[0]).view(shape) / 2

    plain = make()
    moved = one_step(plain, torch.optim.SGD(plain.parameters(), lr=0.1))
    model = make()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    rules = [FuzzyLearningRates(), Crystallize(threshold=0.05, dampening=0.5), Rows()]
    scheduler = GradScheduler(model, optimizer, rules=rules, apply=apply, compile=compile)
    change = one_step(model, optimizer)
    for name in biofx.info(model).synapses:
        factors = scheduler.factors(name)
        assert factors.dtype == torch.float32
        assert factors.shape == model.get_parameter(name).shape
        assert not factors.requires_grad
        torch.testing.assert_close(change[name], factors * moved[name], rtol=1e-4, atol=1e-7)
        assert factors.std() > 0.1
    assert torch.equal(scheduler.factors("fc.weight")[0], torch.zeros_like(factors[0]))


@pytest.mark.parametrize("entry", RULES, ids=IDS)
@pytest.mark.filterwarnings("ignore")
def test_factors_agree_with_the_metrics(entry: Entry) -> None:
    model = make(entry.config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    scheduler = GradScheduler(model, optimizer)
    train(model, optimizer, batches(entry.steps))
    for name, numbers in scheduler.metrics().items():
        factors = scheduler.factors(name)
        assert float(factors.mean()) == pytest.approx(numbers["factor_mean"], rel=1e-5)
        assert float(factors.std(correction=0)) == pytest.approx(numbers["factor_std"], abs=1e-6)


def test_factors_are_one_where_no_rule_acted() -> None:
    model = make({"exclude": ["conv"]})
    model.get_parameter("fc.weight").requires_grad_(False)
    frozen = GradScheduler(model, torch.optim.SGD(model.parameters(), lr=0.1))
    assert torch.equal(frozen.factors("fc.weight"), torch.ones_like(model.fc.weight))
    frozen.detach()
    model = make({"fuzzy_lr_distribution": "baseline", "crystallize_every": 5})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = GradScheduler(model, optimizer)
    train(model, optimizer, batches(1))
    assert torch.equal(scheduler.factors("fc.weight"), torch.ones_like(model.fc.weight))


def test_factors_are_a_copy() -> None:
    model = make({"fuzzy_lr_distribution": "temporal", "fuzzy_lr_dynamic": True})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = GradScheduler(model, optimizer)
    train(model, optimizer, batches(1))
    before = scheduler.factors("fc.weight")
    scheduler.factors("fc.weight").zero_()
    assert torch.equal(scheduler.factors("fc.weight"), before)


def test_places_of_factors_count_from_the_end_where_negative() -> None:
    model = make({})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = GradScheduler(model, optimizer)
    train(model, optimizer, batches(1))
    factors = scheduler.factors("fc.weight")
    found = scheduler.factors("fc.weight", at=(torch.tensor([-1, 0]), torch.tensor([-2, 1])))
    assert torch.equal(found, torch.stack([factors[-1, -2], factors[0, 1]]))
    with pytest.raises(biofx.PlasticityError, match=r"at has 1 tensors of indices, and fc\.weight"):
        scheduler.factors("fc.weight", at=(torch.tensor([0]),))


def test_metrics_look_at_all_columns() -> None:
    """Evenly spaced places of 256 × 1024 would lie in 8 columns."""
    bio = biofx.transform(nn.Sequential(nn.Linear(1024, 256), nn.Linear(256, 4)))
    optimizer = torch.optim.SGD(bio.parameters(), lr=0.1)
    scheduler = GradScheduler(bio, optimizer, rules=[HalfOfTheColumns()])
    bio(torch.randn(2, 1024)).sum().backward()
    optimizer.step()
    assert scheduler.metrics()["0.weight"]["factor_mean"] == pytest.approx(0.5, abs=0.05)


class HalfOfTheColumns(Rule):
    """Holds every other column."""

    def factor(self, context: Context) -> torch.Tensor:
        factors = torch.ones_like(context.weight)
        factors[:, ::2] = 0
        return factors


@pytest.mark.parametrize("wrong", ["fc", "fc.wieght", "fc.bias", "", 3, None])
def test_an_unknown_name_is_refused_with_those_that_exist(wrong: Any) -> None:
    model = make()
    scheduler = GradScheduler(model, torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(biofx.PlasticityError) as caught:
        scheduler.factors(wrong)
    assert repr(wrong) in str(caught.value)
    assert "fc.weight" in str(caught.value)
    assert "conv.weight" in str(caught.value)


def test_scalars_are_flat_numbers() -> None:
    model = make({"crystallize_every": 1})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = GradScheduler(model, optimizer)
    assert not any(scheduler.scalars().values())
    train(model, optimizer, batches(2))
    metrics, scalars = scheduler.metrics(), scheduler.scalars()
    assert all(type(value) is float for value in scalars.values())
    assert scalars["plasticity/fc/factor_mean"] == metrics["fc.weight"]["factor_mean"]
    assert scalars["plasticity/fc/crystallized"] == metrics["fc.weight"]["crystallized"]
    per_layer = sum(isinstance(value, float) for value in metrics["fc.weight"].values())
    assert len(scalars) == len(metrics) * per_layer


def test_scalars_of_a_layer_with_several_weights_keep_apart() -> None:
    model = biofx.transform(nn.LSTM(3, 4, num_layers=2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = GradScheduler(model, optimizer)
    model(torch.ones(2, 3))[0].sum().backward()
    optimizer.step()
    means = [name for name in scheduler.scalars() if name.endswith("/factor_mean")]
    assert len(means) == len(scheduler.metrics()) == 4
    assert "plasticity/weight_hh_l1/factor_mean" in means
