"""Example inputs: what the model cannot run on is refused, and nothing is changed by it."""

import contextlib
import copy
import functools
import threading
from collections.abc import Callable
from typing import Any

import numpy
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
    """Needs the values of its arguments; writes to a weight."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.first.weight.mul_(0.5)
        if x.sum() > 0:
            return super().forward(x)
        raise ValueError("too small")


class TooLarge(Net):
    """Needs more memory than there is."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + torch.empty(2**50)


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
        (TooLarge, X, ".*memory.*; example_inputs may be smaller than a batch"),
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


# --- large weights are shared with the run, until it writes to one


class Wide(nn.Module):
    """Its table has `rows` of 64 numbers."""

    def __init__(self, rows: int = 2**13) -> None:
        super().__init__()
        self.table = nn.Embedding(rows, 64)
        self.last = nn.Linear(64, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.table(x))


IDS = torch.tensor([[1, 2, 3]])
TABLES: dict[int, Tensor] = {}


@functools.lru_cache
def cached_table(length: int) -> Tensor:
    return torch.linspace(0, 1, length)


@pytest.mark.parametrize("rows", [2**13, 2**18 + 1], ids=["small", "large"])
def test_caches_outside_of_the_model_hold_ordinary_tensors(rows: int) -> None:
    class Positions(Wide):
        def forward(self, x: Tensor) -> Tensor:
            if x.shape[1] not in TABLES:
                TABLES[x.shape[1]] = torch.arange(x.shape[1]) / 2
            place = TABLES[x.shape[1]] + cached_table(x.shape[1])
            return self.last(self.table(x) * place[:, None])

    TABLES.clear()
    cached_table.cache_clear()
    model = Positions(rows)
    bio = biofx.transform(model, example_inputs=IDS)
    assert not TABLES
    assert type(cached_table(3)) is type(model(IDS)) is type(TABLES[3]) is Tensor
    bio(IDS).sum().backward()
    assert bio.last.weight.grad is not None


def largest_allocation(call: Callable[[], Any]) -> int:
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        call()
    events = profile.profiler.kineto_results.events()
    return max(event.nbytes() for event in events if event.name() == "[memory]")


def test_large_weights_are_not_copied() -> None:
    model = Wide()
    most = largest_allocation(lambda: biofx.transform(model, example_inputs=IDS))
    assert most < model.table.weight.nbytes / 100


def doubled(weight: nn.Parameter) -> None:
    weight.mul_(2)


def doubled_behind_autograd(weight: nn.Parameter) -> None:
    weight.data[1:].mul_(2)


def doubled_in_a_list(weight: nn.Parameter) -> None:
    torch._foreach_mul_([weight], 2)


def doubled_as_a_result(weight: nn.Parameter) -> None:
    torch.mul(weight, 2, out=weight)


def doubled_by_numpy(weight: nn.Parameter) -> None:
    view = weight.detach().numpy()
    view *= 2


def doubled_by_an_array(weight: nn.Parameter) -> None:
    view = numpy.asarray(weight.data)
    view *= 2


def doubled_without_a_word(weight: nn.Parameter) -> None:
    with contextlib.suppress(BaseException):
        weight.mul_(2)


@pytest.mark.parametrize(
    "double",
    [
        doubled,
        doubled_behind_autograd,
        doubled_in_a_list,
        doubled_as_a_result,
        doubled_by_numpy,
        doubled_by_an_array,
        doubled_without_a_word,
    ],
    ids=lambda function: function.__name__,
)
def test_a_large_weight_that_the_run_writes_to_is_copied(
    double: Callable[[nn.Parameter], None],
) -> None:
    class Writes(Wide):
        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                double(self.table.weight)
            return super().forward(x) * torch.rand(1)

    model = Writes()
    before = model.table.weight.detach().clone()
    bio = biofx.transform(model, example_inputs=IDS)
    assert torch.equal(model.table.weight, before)
    torch.manual_seed(0)
    found = bio(IDS)
    assert not torch.equal(model.table.weight, before)  # they share it, as ever
    with torch.no_grad():
        model.table.weight.copy_(before)
    torch.manual_seed(0)
    assert torch.equal(model(IDS), found)


def test_tied_large_weights_stay_tied() -> None:
    class Tied(Wide):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(64, 2**13, bias=False)
            self.head.weight = self.table.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.table(x))

    info = biofx.info(biofx.transform(Tied(), example_inputs=IDS))
    assert list(info.synapses["table.weight"].layers) == ["table", "head"]
