"""Models are operated on after they were transformed: training goes on, and it is said where."""

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn, optim
from torch.nn.utils import prune
from torch.nn.utils.parametrizations import weight_norm

import biofx
from biofx.plasticity import GradScheduler
from biofx.synapses import COUNTS


def transformed(config: biofx.BioConfig | None = None) -> nn.Module:
    torch.manual_seed(0)
    return biofx.transform(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)), config)


def replace(model: Any, layer: nn.Module) -> None:
    model[2] = layer


EDITS: dict[str, tuple[Callable[[Any], Any], str, str]] = {
    "prune": (lambda b: prune.l1_unstructured(b[0], "weight", 0.5), "0.weight", "no parameter"),
    "weight norm": (lambda b: weight_norm(b[0]), "0.weight", "no parameter"),
    "head": (lambda b: replace(b, nn.Linear(8, 3)), "2.weight", "replaced by one of type Linear"),
    "same head": (lambda b: replace(b, nn.Linear(8, 4)), "2.weight", "type Linear"),
    "deeper head": (
        lambda b: replace(b, nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 3))),
        "2.weight",
        "type Sequential",
    ),
    "no head": (lambda b: replace(b, nn.Identity()), "2.weight", "type Identity"),
    "resized": (
        lambda b: setattr(b[2], "weight", nn.Parameter(torch.ones(6, 8))),
        "2.weight",
        r"has shape \(6, 8\), and had \(4, 8\)",
    ),
    "quantised": (
        lambda b: setattr(b[0], "weight", None),
        "0.weight",
        "no parameter",
    ),
}


def step(model: nn.Module, optimizer: optim.Optimizer) -> None:
    optimizer.zero_grad()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()


@pytest.mark.parametrize(("edit", "name", "reason"), EDITS.values(), ids=EDITS)
def test_a_layer_that_was_changed_is_left_alone(
    edit: Callable[[Any], Any], name: str, reason: str
) -> None:
    bio = transformed()
    edit(bio)
    optimizer = optim.SGD(bio.parameters(), lr=0.1)
    with pytest.warns(UserWarning, match=rf"{name}: .*{reason}.*left alone.*transform the model"):
        scheduler = GradScheduler(bio, optimizer)
    before = {n: p.detach().clone() for n, p in bio.named_parameters()}
    step(bio, optimizer)
    assert scheduler.steps == [1]
    (left,) = scheduler.metrics()
    assert left == ("2.weight" if name == "0.weight" else "0.weight")
    for key, parameter in bio.named_parameters():
        moved = before[key] - parameter.detach()
        assert (key == left) == (not torch.allclose(moved, torch.full_like(moved, 0.1)))


@pytest.mark.parametrize("edit", ["head", "resized", "prune"])
def test_it_may_happen_while_training(edit: str) -> None:
    bio = transformed()
    optimizer = optim.SGD(bio.parameters(), lr=0.1)
    scheduler = GradScheduler(bio, optimizer)
    step(bio, optimizer)
    change, name, reason = EDITS[edit]
    if edit == "resized":
        bio[2].weight.data = torch.ones(6, 8)  # type: ignore[index]
    else:
        change(bio)
    if edit == "head":
        optimizer.add_param_group({"params": list(bio[2].parameters())})  # type: ignore[index]
    with pytest.warns(UserWarning, match=rf"{name}: .*{reason}.*left alone"):
        step(bio, optimizer)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # said once
        step(bio, optimizer)
    assert scheduler.steps == [3]
    if edit != "head":
        with pytest.raises(biofx.PlasticityError, match=rf"{name} has no factors: .*{reason}"):
            scheduler.factors(name)


CRYSTALLIZING = biofx.BioConfig(crystallize_every=1)


def pruned(model: Any, optimizer: Any) -> None:
    prune.l1_unstructured(model[0], "weight", 0.5)


def with_new_head(model: Any, optimizer: Any) -> None:
    model[2] = nn.Linear(8, 3)
    optimizer.add_param_group({"params": list(model[2].parameters())})


def without_head(model: Any, optimizer: Any) -> None:
    del model[2]
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))]})


@pytest.mark.parametrize("edit", [pruned, with_new_head, without_head])
def test_state_goes_to_and_fro_after_it(edit: Callable[[Any, Any], None]) -> None:
    bio = transformed(CRYSTALLIZING)
    optimizer = optim.AdamW(bio.parameters())
    scheduler = GradScheduler(bio, optimizer)
    step(bio, optimizer)
    edit(bio, optimizer)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        step(bio, optimizer)
    state, carried = copy.deepcopy(scheduler.state_dict()), copy.deepcopy(optimizer.state_dict())
    scheduler.load_state_dict(state)
    assert str(scheduler.state_dict()) == str(state)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        optimizer.load_state_dict(carried)
    step(bio, optimizer)
    assert scheduler.steps == [3]


def test_a_model_that_is_changed_again_goes_on_from_its_checkpoint() -> None:
    ends = []
    for interrupted in (False, True):
        bio = transformed(CRYSTALLIZING)
        optimizer = optim.AdamW(bio.parameters())
        scheduler = GradScheduler(bio, optimizer)
        step(bio, optimizer)
        with_new_head(bio, optimizer)
        with pytest.warns(UserWarning, match="left alone"):
            step(bio, optimizer)
        if interrupted:
            saved = copy.deepcopy((bio.state_dict(), optimizer.state_dict()))
            bio = transformed(CRYSTALLIZING)
            optimizer = optim.AdamW(bio.parameters())
            with_new_head(bio, optimizer)
            with pytest.warns(UserWarning, match="left alone"):
                scheduler = GradScheduler(bio, optimizer)
            bio.load_state_dict(saved[0])
            optimizer.load_state_dict(saved[1])
        step(bio, optimizer)
        assert scheduler.steps == [3]
        ends.append(bio.state_dict())
    torch.testing.assert_close(*ends, rtol=0, atol=0)


def test_units_of_a_resized_layer_are_not_counted() -> None:
    bio: Any = transformed(biofx.BioConfig(fuzzy_lr_distribution="activity", fuzzy_lr_dynamic=True))
    bio[2].weight = nn.Parameter(torch.ones(6, 8))
    bio[2].bias = nn.Parameter(torch.ones(6))
    optimizer = optim.AdamW(bio.parameters())
    with pytest.warns(UserWarning, match="left alone"):
        scheduler = GradScheduler(bio, optimizer)
    bio(torch.ones(2, 8)).sum().backward()
    optimizer.step()
    assert scheduler.steps == [1]
    assert not bio[2].get_buffer(COUNTS).any()


def test_nothing_is_left() -> None:
    bio = transformed()
    bio[0], bio[2] = nn.Identity(), nn.Identity()  # type: ignore[operator]
    with pytest.raises(biofx.PlasticityError, match="no layer is as it was transformed"):
        GradScheduler(bio, None)


def test_without_an_optimizer() -> None:
    bio = transformed()
    prune.l1_unstructured(bio[0], "weight", 0.5)  # type: ignore[index]
    with pytest.warns(UserWarning, match=r"0\.weight"):
        scheduler = GradScheduler(bio)
    bio(torch.ones(2, 8)).sum().backward()
    scheduler.step()
    assert list(scheduler.metrics()) == ["2.weight"]
