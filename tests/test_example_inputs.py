"""Example inputs: what the model cannot run on is refused, and nothing is changed by it."""

import copy
import threading
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import biofx


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 8)
        self.norm = nn.BatchNorm1d(8)
        self.last = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.norm(self.first(x)).relu())


class Branches(Net):
    """Needs the values of its arguments, which fake tensors do not have; writes to a weight."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.first.weight.mul_(0.5)
        if x.sum() > 0:
            return super().forward(x)
        raise ValueError("too small")


class TooLarge(Net):
    """Needs more memory than there is, and the values of its arguments."""

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            torch.empty(2**50)
        return super().forward(x)


class Bundle(Net):
    """Takes a dict, and writes into it."""

    def forward(self, batch: dict[str, Any]) -> Tensor:
        batch["x"] = batch["x"].mul_(2)
        batch["seen"] = True
        return super().forward(batch["x"])


X = torch.ones(3, 4)


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize(
    ("make", "example", "message"),
    [
        (Net, torch.ones(3, 5), r"RuntimeError: .*(3x5 and 4x8|3, 5)"),
        (Net, 3, "TypeError"),
        (Net, "x", "TypeError"),
        (Net, (X, X), "too many positional arguments. Its forward takes"),
        (Net, {"zzz": X}, "(missing a required|got an unexpected)"),
        (Net, (), "missing a required argument: 'x'"),
        (Net, (None,), r"TypeError: .*NoneType \(at test_.*\); example_inputs hold no tensor"),
        (Net, [X, torch.zeros(3)], r"too many .*forward takes \(.*one argument itself: \(batch,\)"),
        (Net, [{"x": X}, {"x": X}], "too many positional arguments.*one argument itself"),
        (Net, X.to("meta"), ".*; the model is on cpu, example_inputs on meta"),
        (Branches, -X, r"ValueError: too small \(at test_example_inputs.py:\d+\)"),
        (TooLarge, X, ".*memory.*; without values: DataDependentOutputException"),
    ],
)
def test_inputs_that_do_not_fit(
    make: type[nn.Module], example: Any, message: str, inplace: bool
) -> None:
    model = make()
    attributes = set(vars(model))
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(
        biofx.ModelError, match=f"(running the model on|called with) example_inputs: {message}"
    ):
        biofx.transform(model, example_inputs=example, inplace=inplace)
    assert type(model) is make
    assert type(model.first) is nn.Linear
    assert set(vars(model)) == attributes
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_run_on_real_values_leaves_no_trace() -> None:
    model = Branches()
    state, mode = torch.get_rng_state(), model.training
    before = copy.deepcopy(model.state_dict())
    x = X.clone().requires_grad_()
    bio = biofx.transform(model, example_inputs=x * 1.0)
    assert torch.equal(torch.get_rng_state(), state)
    assert bio.training == model.training == mode
    assert x.grad is None
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_model_without_values_is_recorded_as_far_as_it_needs_none() -> None:
    with torch.device("meta"):
        plain, branches = Net(), Branches()
    info = biofx.info(biofx.transform(plain, example_inputs=X))
    assert info.whole
    assert info.wiring.known
    with pytest.raises(biofx.ModelError, match=r"no values .*transform it without example_inputs"):
        biofx.transform(branches, example_inputs=X)
    assert biofx.info(biofx.transform(branches)).synapses


@pytest.mark.parametrize(
    ("example", "where"),
    [
        (iter([X]), ""),
        ((map(abs, [X]),), r"\[0\]"),
        ({"x": [X, (x for x in [X])]}, r"\['x'\]\[1\]"),
        (((), {"x": zip([X], [X], strict=True)}), r"\[1\]\['x'\]"),
    ],
)
def test_what_gives_its_values_only_once_is_refused(example: Any, where: str) -> None:
    with pytest.raises(biofx.ModelError, match=f"example_inputs{where} is a .* only once"):
        biofx.transform(Net(), example_inputs=example)


@pytest.mark.parametrize("extra", [None, threading.Lock()], ids=["", "uncopyable"])
def test_arguments_are_as_before(extra: Any) -> None:
    batch = {"x": X.clone(), "extra": extra}
    assert biofx.info(biofx.transform(Bundle(), example_inputs=(batch,))).whole
    assert list(batch) == ["x", "extra"]
    assert batch["extra"] is extra
    assert torch.equal(batch["x"], X)


def test_a_model_too_large_to_run_is_recorded_without_values() -> None:
    class Wide(Net):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + torch.empty(2**50, 1, 2)[:3, 0]

    assert biofx.info(biofx.transform(Wide(), example_inputs=X)).whole
