"""Mistakes are refused where they are made, with a message that helps."""

import copy
import pickle
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import biofx
from biofx.plasticity import (
    Context,
    Crystallize,
    DalesPrinciple,
    FuzzyLearningRates,
    GradScheduler,
    Rejuvenate,
    Rule,
    Schedule,
    VolumeDependentRates,
)

from .table import batches, make, same, train


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1)


def test_a_model_that_was_not_transformed() -> None:
    model = nn.Linear(2, 2)
    with pytest.raises(biofx.ModelError, match=r"not made by biofx\.transform"):
        GradScheduler(model, sgd(model))


def test_an_optimizer_of_another_model() -> None:
    with pytest.raises(biofx.PlasticityError, match=r"\(SGD\) shares no weight with the model"):
        GradScheduler(make(), sgd(make()))


@pytest.mark.parametrize("inplace", [False, True])
def test_an_optimizer_made_before_weights_were_expanded(inplace: bool) -> None:
    """It trains biases and the output layer, and no split weight."""
    plain = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    optimizer = sgd(plain)
    config = biofx.BioConfig(weight_splitting_Gamma=2, weight_splitting_mode="expand")
    model = biofx.transform(plain, config, inplace=inplace)
    with pytest.raises(biofx.PlasticityError, match=r"before 0\.weight was split .* make it after"):
        GradScheduler(model, optimizer)
    heads = torch.optim.SGD([*model.get_submodule("2").parameters(), torch.zeros(3)])
    GradScheduler(model, heads).detach()  # it leaves the split layer out on purpose
    GradScheduler(model, sgd(model))


def test_a_rule_that_does_nothing() -> None:
    class Misspelt(Rule):
        def after_stp(self, context: Context) -> None:
            context.weight.zero_()

    with pytest.raises(biofx.PlasticityError, match="calls no after_stp; is it to be after_step"):
        GradScheduler(make(), rules=[Misspelt()])


def test_a_report_that_is_no_dict() -> None:
    class Told(Rule):
        def report(self, context: Context) -> Any:
            return 3

    model = make()
    optimizer = sgd(model)
    scheduler = GradScheduler(model, optimizer, rules=[Told()])
    sum(parameter.sum() for parameter in model.parameters()).backward()
    optimizer.step()
    with pytest.raises(biofx.PlasticityError, match=r"Told.report gave 3 for .*; give a dict"):
        scheduler.metrics()


def test_a_refused_optimizer_is_left_unhooked() -> None:
    optimizer = sgd(make())
    with pytest.raises(biofx.PlasticityError):
        GradScheduler(make(), optimizer)
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks


def test_parameters_that_are_replaced_behind_the_optimizer() -> None:
    model = make()
    optimizer = sgd(model)
    GradScheduler(model, optimizer)
    loose = [torch.zeros(2, requires_grad=True)]
    optimizer.param_groups[0]["params"] = loose
    loose[0].grad = torch.ones(2)
    with pytest.raises(biofx.PlasticityError, match="shares no weight"):
        optimizer.step()


@pytest.mark.parametrize("optimizer", [3, "adam", object(), [], [None]])
def test_what_is_no_optimizer(optimizer: Any) -> None:
    with pytest.raises(biofx.PlasticityError, match="optimizer"):
        GradScheduler(make(), optimizer)


def test_an_optimizer_inside_a_wrapper() -> None:
    model = make()

    class Wrapper:
        optimizer = sgd(model)

    scheduler = GradScheduler(model, Wrapper())  # type: ignore[arg-type]
    train(model, Wrapper.optimizer, batches(1))
    assert scheduler.steps == [1]


def test_two_schedulers_on_one_optimizer() -> None:
    model = make()
    optimizer = sgd(model)
    first = GradScheduler(model, optimizer)
    with pytest.raises(biofx.PlasticityError, match="has a GradScheduler already"):
        GradScheduler(model, optimizer)
    first.detach()
    first.detach()
    GradScheduler(model, optimizer)


def sum_of_squares(model: nn.Module) -> torch.Tensor:
    return torch.stack([p.square().sum() for p in model.parameters()]).sum()


def test_two_models_in_one_optimizer_as_each_in_its_own() -> None:
    def trained(*, together: bool) -> list[nn.Module]:
        models = [make(), make()]
        groups = [list(model.parameters()) for model in models]
        optimizers = [
            torch.optim.SGD(group, lr=0.1, momentum=0.9)
            for group in ([groups[0] + groups[1]] if together else groups)
        ]
        schedulers = [
            GradScheduler(model, optimizers[place if not together else 0], seed=place)
            for place, model in enumerate(models)
        ]
        for _ in range(3):
            for optimizer in optimizers:
                optimizer.zero_grad()
            (sum_of_squares(models[0]) + sum_of_squares(models[1])).backward()
            for optimizer in optimizers:
                optimizer.step()
        assert [scheduler.steps for scheduler in schedulers] == [[3], [3]]
        return models

    for one, other in zip(trained(together=True), trained(together=False), strict=True):
        assert same(one, other)


@pytest.mark.parametrize("first_has_one", [False, True])
@pytest.mark.parametrize("second_has_one", [False, True])
def test_factors_are_not_applied_twice(first_has_one: bool, second_has_one: bool) -> None:
    model = make()
    one = sgd(model)
    first = GradScheduler(model, one if first_has_one else None)
    other = sgd(model)
    if first_has_one and second_has_one:  # each scales the steps of its own optimizer
        GradScheduler(model, other)
        return
    with pytest.raises(biofx.PlasticityError, match=r"already that acts on .*; detach"):
        GradScheduler(model, other if second_has_one else None)
    assert not other._optimizer_step_post_hooks
    first.detach()
    GradScheduler(model, other if second_has_one else None)


def test_two_transformations_of_one_model_share_their_weights() -> None:
    model = nn.Sequential(nn.Linear(3, 3))
    one, other = biofx.transform(model), biofx.transform(model)
    GradScheduler(one)
    with pytest.raises(biofx.PlasticityError, match=r"acts on 0\.weight"):
        GradScheduler(other)


def test_an_optimizer_that_is_gone_does_not_count() -> None:
    model = make()
    GradScheduler(model, sgd(model))
    GradScheduler(model)


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, pickle.dumps])
def test_a_scheduler_is_not_copied(copied: Any) -> None:
    model = make()
    optimizer = sgd(model)
    scheduler = GradScheduler(model, optimizer)
    with pytest.raises(biofx.PlasticityError, match=r"state_dict\(\).*load_state_dict"):
        copied((model, optimizer, scheduler) if copied is copy.deepcopy else scheduler)


def test_no_synapses_at_all() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    bio = biofx.transform(model, biofx.BioConfig(exclude=("*",)))
    for optimizer in (None, sgd(bio)):
        with pytest.raises(biofx.PlasticityError, match=r"no layer .* \(0: excluded by the user"):
            GradScheduler(bio, optimizer)


def test_one_parameter_in_two_optimizers() -> None:
    model = make()
    with pytest.raises(biofx.PlasticityError, match=r"conv\.weight is in two of the optimizers"):
        GradScheduler(model, [sgd(model), sgd(model)])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"apply": "weights"}, "apply='weights'"),
        ({"compile": "yes"}, "compile='yes'"),
        ({"seed": 1.5}, r"seed=1\.5"),
        ({"rules": [Crystallize]}, "an instance is needed"),
        ({"rules": ["crystallize"]}, "'crystallize' is not"),
        ({"rules": "Crystallize"}, "rules='Crystallize' must be a list of rules"),
        ({"rules": Crystallize()}, r"must be a list of rules; give \[Crystallize\(\)\]"),
        ({"rules": Crystallize}, "must be a list of rules"),
        ({"rules": 3}, "rules=3 must be a list of rules"),
    ],
)
def test_arguments(options: Any, message: str) -> None:
    model = make()
    with pytest.raises(biofx.PlasticityError, match=message):
        GradScheduler(model, sgd(model), **options)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (FuzzyLearningRates(nu=-0.1), r"nu=-0\.1 must be a number in \[0, inf\)"),
        (FuzzyLearningRates(nu=float("nan")), "nu=nan"),
        (FuzzyLearningRates(nu="big"), "nu='big' must be a number"),  # type: ignore[arg-type]
        (FuzzyLearningRates(distribution="cauchy"), "'cauchy' is not one of baseline, uniform"),
        (FuzzyLearningRates(low=1.2), r"low=1\.2"),
        (FuzzyLearningRates(high=0.5), r"high=0\.5"),
        (FuzzyLearningRates(decay=0.0), r"decay=0\.0"),
        (FuzzyLearningRates(update_every=0), "update_every=0"),
        (FuzzyLearningRates(nu=[0.1]), r"nu=\[0\.1\] must be a number"),  # type: ignore[arg-type]
        (FuzzyLearningRates(decay=np.ones(2)), "decay=.* must be a number"),  # type: ignore[arg-type]
        (FuzzyLearningRates(update_every=1.5), "whole number"),  # type: ignore[arg-type]
        (VolumeDependentRates(base=0.0), r"base=0\.0 must be a number in \(0, 1\]"),
        (VolumeDependentRates(stability=-1), "stability=-1"),
        (VolumeDependentRates(variability=float("inf")), "variability=inf"),
        (Crystallize(threshold=-1e-3), "threshold"),
        (Crystallize(dampening=0.0), r"dampening=0\.0"),
        (Crystallize(dampening=1.01), r"dampening=1\.01"),
        (Crystallize(floor=2.0), r"floor=2\.0"),
        (Rejuvenate(d=0.0), r"d=0\.0"),
        (Rejuvenate(law="cauchy"), "law='cauchy'"),  # type: ignore[arg-type]
        (Rejuvenate(max_share=0.0), r"max_share=0\.0"),
        (DalesPrinciple(axis="both"), "axis='both'"),  # type: ignore[arg-type]
        (Crystallize(only="decoder.*"), r"Crystallize serves no parameter.*decoder"),
    ],
)
def test_hyperparameters(rule: Rule, message: str) -> None:
    model = make()
    before = make()
    optimizer = sgd(model)
    with pytest.raises(biofx.PlasticityError, match=message):
        GradScheduler(model, optimizer, rules=[rule])
    assert not optimizer._optimizer_step_pre_hooks
    assert same(model, before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every": 0}, "every=0"),
        ({"every": 1.5}, r"every=1\.5"),
        ({"every": True}, "every=True"),
        ({"start": -1}, "start=-1"),
        ({"start": 5, "stop": 5}, "stop=5 must be a whole number of at least 6"),
    ],
)
def test_schedules(options: Any, message: str) -> None:
    with pytest.raises(biofx.PlasticityError, match=message):
        Schedule(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"schedule": 10}, r"Crystallize: schedule=10 must be a Schedule, such as Schedule\("),
        ({"schedule": "daily"}, "must be a Schedule"),
        ({"only": None}, "only=None must be one or more globs"),
        ({"only": 3}, "only=3 must be"),
        ({"only": ("fc", 3)}, "must be one or more globs"),
        ({"configured": "no"}, "configured='no' must be True or False"),
    ],
)
def test_rules_are_refused_when_they_are_made(options: Any, message: str) -> None:
    with pytest.raises(biofx.PlasticityError, match=message):
        Crystallize(**options)


def test_numbers_of_numpy() -> None:
    every: Any = np.int64(2)
    nu: Any = np.float32(0.25)
    seed: Any = np.int32(7)
    model = make()
    rules = [
        FuzzyLearningRates(nu=nu, update_every=every),
        Crystallize(schedule=Schedule(every=every, stop=np.int16(9)), dampening=np.float16(0.5)),  # type: ignore[arg-type]
    ]
    scheduler = GradScheduler(model, sgd(model), rules=rules, seed=seed)
    plain = make()
    expected = GradScheduler(
        plain,
        sgd(plain),
        rules=[
            FuzzyLearningRates(nu=0.25, update_every=2),
            Crystallize(schedule=Schedule(every=2, stop=9), dampening=0.5),
        ],
        seed=7,
    )
    assert scheduler.state_dict()["fingerprint"] == expected.state_dict()["fingerprint"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": None}, "incomplete: it has no 'steps'"),
        ({"state": None}, "incomplete: it has no 'state'"),
        ({"steps": 3}, "incomplete: it has no 'steps'"),
        ({"state": [1]}, "incomplete: it has no 'state'"),
        ({"fingerprint": 3}, "incomplete: it has no 'fingerprint'"),
    ],
)
@pytest.mark.parametrize("absent", [False, True])
def test_incomplete_checkpoints(change: Any, message: str, absent: bool) -> None:
    model = make()
    scheduler = GradScheduler(model, sgd(model))
    state = {**scheduler.state_dict(), **change}
    if absent:
        state = {name: value for name, value in state.items() if name not in change}
    with pytest.raises(biofx.CheckpointError, match=f"{message}|not a checkpoint"):
        scheduler.load_state_dict(state)


def test_metrics_where_double_precision_is_the_default() -> None:
    model = make()
    optimizer = sgd(model)
    scheduler = GradScheduler(model, optimizer)
    train(model, optimizer, batches(1))
    expected = scheduler.metrics()
    torch.set_default_dtype(torch.float64)
    try:
        assert scheduler.metrics() == expected
    finally:
        torch.set_default_dtype(torch.float32)


def test_layer_index_without_enough_layers() -> None:
    model = make({"fuzzy_lr_distribution": "layer_adaptive", "fuzzy_lr_layer_index": 4})
    with pytest.raises(biofx.PlasticityError, match="must be below the number of layers, 4"):
        GradScheduler(model, sgd(model))


def test_activity_that_nobody_counts() -> None:
    model = make()
    with pytest.raises(biofx.PlasticityError, match=r"conv\.weight: its layer conv .*ACTIVITY"):
        GradScheduler(model, sgd(model), rules=[FuzzyLearningRates(distribution="activity")])


def test_dale_on_a_parameter_without_two_sides() -> None:
    model = make()
    record = model._biofx
    odd = replace(record.synapses["fc.weight"], pre_axis=0)
    record.synapses["fc.weight"] = odd
    with pytest.raises(biofx.PlasticityError, match=r"fc\.weight.* does not connect units"):
        GradScheduler(model, sgd(model), rules=[DalesPrinciple()])


def test_dale_on_a_layer_with_two_inputs() -> None:
    model = biofx.transform(torch.nn.Bilinear(4, 4, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(biofx.PlasticityError, match="weight is of a layer with two inputs"):
        GradScheduler(model, optimizer, rules=[DalesPrinciple()])


def test_of_many_parameters_at_fault_a_few_are_named() -> None:
    layers = [nn.Linear(2, 2) for _ in range(40)]
    config = biofx.BioConfig(rejuvenate_every=1)
    model = biofx.transform(nn.Sequential(*layers), config)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = GradScheduler(model, optimizer)
    for parameter in model.parameters():
        torch.nn.init.constant_(parameter, torch.nan)
        parameter.grad = torch.ones_like(parameter)
    with pytest.raises(biofx.PlasticityError, match="; and 32 more; the rules have") as caught:
        optimizer.step()
    assert len(str(caught.value)) < 1000
    scheduler.detach()


@pytest.mark.parametrize(
    ("config", "rule"),
    [
        ({"volume_dependent_every": 1}, "VolumeDependentRates"),
        ({"crystallize_every": 1}, "Crystallize"),
        ({"fuzzy_lr_distribution": "weight_adaptive"}, "FuzzyLearningRates"),
    ],
)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite(config: Any, rule: str, value: float) -> None:
    """All are named and counted, and nothing has been written."""
    model = make(config)
    optimizer = torch.optim.AdamW(model.parameters())
    scheduler = GradScheduler(model, optimizer)
    with torch.no_grad():
        model.get_parameter("fc.weight")[0, :3] = value
        model.get_parameter("up.weight")[0, 0] = value
    before = [parameter.detach().clone() for parameter in model.parameters()]
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    with pytest.raises(biofx.PlasticityError) as caught:
        optimizer.step()
    message = str(caught.value)
    assert "fc.weight holds 3 of 20 weights that are not finite" in message
    assert "up.weight holds 4 of 64 weights" in message
    assert "conv.weight" not in message
    assert rule in message
    for parameter, old in zip(model.parameters(), before, strict=True):
        torch.testing.assert_close(parameter, old, rtol=0, atol=0, equal_nan=True)
        assert (parameter.grad == 1).all()  # type: ignore[union-attr]
    assert scheduler.steps == [0]


@pytest.mark.parametrize("layers", [1, 2])
def test_weights_whose_sum_is_not_finite(layers: int) -> None:
    """They are large, and may be: alone, and in an arena."""
    model = biofx.transform(nn.Sequential(*[nn.Linear(8, 8) for _ in range(layers)]))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    GradScheduler(model, optimizer, rules=[VolumeDependentRates()])
    for parameter in model.parameters():
        torch.nn.init.constant_(parameter, 3e38)
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert all(bool((parameter == 3e38).all()) for parameter in model.parameters())


@pytest.mark.parametrize("choose", ["paper", "random", "weak"])
@pytest.mark.parametrize("law", ["uniform", "lognormal", "initial"])
def test_rejuvenation_of_weights_that_are_not_finite(law: str, choose: str) -> None:
    model = make(
        {
            "fuzzy_lr_distribution": "baseline",
            "rejuvenate_every": 1,
            "rejuvenate_law": law,
            "rejuvenate_choose": choose,
            "rejuvenate_max_share": 0.1,
        }
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    GradScheduler(model, optimizer)
    with torch.no_grad():
        model.get_parameter("fc.weight")[1, 2] = float("inf")
    before = [parameter.detach().clone() for parameter in model.parameters()]
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    with pytest.raises(
        biofx.PlasticityError, match=r"fc\.weight holds 1 of 20 .*Rejuvenate needs them"
    ):
        optimizer.step()
    for parameter, old in zip(model.parameters(), before, strict=True):
        assert torch.equal(parameter, old)


def test_factors_that_are_not_finite() -> None:
    class Bad(Rule):
        def factor(self, context: Context) -> torch.Tensor:
            factor = torch.ones_like(context.weight)
            factor.view(-1)[:2] = torch.inf
            return factor

    model, before = make(), make()
    optimizer = sgd(model)
    GradScheduler(model, optimizer, rules=[Bad(only="fc.*")])
    with pytest.raises(biofx.PlasticityError, match=r"Bad\.factor gave 2 of 20 .*for fc\.weight"):
        train(model, optimizer, batches(1))
    assert same(model, before)


def test_meta_parameters() -> None:
    with torch.device("meta"):
        model = biofx.transform(nn.Sequential(nn.Linear(2, 2)))
    with pytest.raises(biofx.PlasticityError, match=r"0\.weight has no data yet"):
        GradScheduler(model, sgd(model))


def test_step_belongs_to_schedulers_without_an_optimizer() -> None:
    model = make()
    scheduler = GradScheduler(model, sgd(model))
    with pytest.raises(biofx.PlasticityError, match=r"acts in optimizer\.step"):
        scheduler.step()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (0.5, r"Gives\.factor gave 0\.5 for fc\.weight; give a tensor that broadcasts to \(5, 4\)"),
        (torch.ones(3, 3), r"gave a tensor of shape \(3, 3\) and type torch\.float32 for fc"),
        (torch.ones(2, 4, 5), r"gave a tensor of shape \(2, 4, 5\)"),
    ],
)
def test_factors_that_fit_no_weight(given: Any, message: str) -> None:
    class Gives(Rule):
        def factor(self, context: Context) -> Any:
            return given

    model = make()
    optimizer = sgd(model)
    GradScheduler(model, optimizer, rules=[Gives(only="fc.*")])
    with pytest.raises(biofx.PlasticityError, match=message):
        train(model, optimizer, batches(1))


@pytest.mark.parametrize("compiled", [False, True])
def test_a_mask_is_a_factor(compiled: bool) -> None:
    class Positive(Rule):
        def factor(self, context: Context) -> torch.Tensor:
            return context.weight > 0

    model, before = make(), make()
    optimizer = sgd(model)
    GradScheduler(model, optimizer, rules=[Positive()], compile=compiled)
    train(model, optimizer, batches(1))
    for name in biofx.info(model).synapses:
        old, new = before.get_parameter(name).detach(), model.get_parameter(name).detach()
        torch.testing.assert_close(new[old <= 0], old[old <= 0], rtol=1e-6, atol=0)
        assert (new[old > 0] != old[old > 0]).any()


def test_masks_of_replaced_synapses() -> None:
    class Rows(Rule):
        mask: Any = None

        def after_step(self, context: Context) -> Any:
            return self.mask

    def step(mask: Any) -> torch.Tensor:
        model, rule = make(), Rows(only="fc.*")
        object.__setattr__(rule, "mask", mask)
        optimizer = torch.optim.Adam(model.parameters())
        GradScheduler(model, optimizer, rules=[rule])
        train(model, optimizer, batches(1))
        average: torch.Tensor = optimizer.state[model.get_parameter("fc.weight")]["exp_avg"]
        return average

    average = step(torch.tensor([[True], *[[False]] * 4]))
    assert not average[0].any()
    assert average[1:].all()
    for bad in (True, torch.ones(5, 4), torch.ones(3, 1, dtype=torch.bool)):
        with pytest.raises(biofx.PlasticityError, match=r"Rows\.after_step gave .* for fc\.weight"):
            step(bad)


def test_an_error_in_a_rule_says_where() -> None:
    class Misspelt(Rule):
        def factor(self, context: Context) -> torch.Tensor:
            return context.statistics["mean"]

    model = make()
    optimizer = sgd(model)
    GradScheduler(model, optimizer, rules=[Misspelt(only="fc.*")])
    with pytest.raises(KeyError) as caught:
        train(model, optimizer, batches(1))
    assert caught.value.__notes__ == ["(in the rule Misspelt, at the parameter fc.weight)"]
