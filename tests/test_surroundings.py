"""What a forward rests on besides its arguments: seen to change, compared at each call, or refused.

Every model here would be captured wrongly by a tracer that only looks at tensors.
"""

import abc
import contextlib
import copy
import dataclasses
import enum
import functools
import importlib
import io
import itertools
import logging
import math
import os
import pickle
import random
import sys
import threading
import time
import types
import warnings
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import biofx
from tests.architectures import Architecture, floats, seed
from tests.fidelity import assert_same, run

SCALE = 2.0
SETTINGS = {"scale": 2.0}
CACHE: dict[int, torch.Tensor] = {}
CALLS = 0
GLOBAL_TENSOR = torch.ones(8)
LOG = logging.getLogger(__name__)


class Options:
    def __init__(self) -> None:
        self.scale = 2.0
        self.inner = types.SimpleNamespace(bias=1.0)
        self.names = ["a"]

    @property
    def doubled(self) -> float:
        return self.scale * 2


OPTIONS = Options()


class Layer(nn.Module):
    """Something to be transformed; `fc` is its weight layer."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)
        for name, value in attributes.items():
            setattr(self, name, value)


def case(make: Callable[[], nn.Module], inputs: Any = None) -> Architecture:
    return Architecture(name="case", make=make, inputs=inputs or floats((4, 8), grad=False))


def check(
    make: Callable[[], nn.Module],
    change: Callable[[Any], object] | None = None,
    *,
    inputs: Any = None,
    example: bool = False,
) -> nn.Module:
    """A transformed model stays equal to its twin, before and after both are changed."""
    architecture = case(make, inputs)
    seed()
    twin = make()
    seed()
    model = make()
    seed(1)
    bio = biofx.transform(model, example_inputs=architecture.inputs() if example else None)
    for draw, train in itertools.product(range(2), (True, False)):
        expected = run(twin, architecture, train=train, draw=draw)
        assert_same(expected, run(bio, architecture, train=train, draw=draw), f"run {draw}")
    if change is not None:
        for model in (twin, bio):
            seed(7)
            change(model)
        for train in (True, False):
            expected = run(twin, architecture, train=train, draw=9)
            assert_same(expected, run(bio, architecture, train=train, draw=9), "changed")
    return bio


# --- what belongs to a model: a change is seen


class ReadsConfig(Layer):
    def forward(self, x):
        return self.fc(x) * self.options.scale


class ReadsNestedConfig(Layer):
    def forward(self, x):
        return self.fc(x) + self.options.inner.bias


class ReadsProperty(Layer):
    def forward(self, x):
        return self.fc(x) * self.options.doubled


class ReadsDict(Layer):
    def forward(self, x):
        return self.fc(x) * self.settings["scale"]


class LoopsOverList(Layer):
    def forward(self, x):
        x = self.fc(x)
        for scale in self.scales:
            x = x * scale
        return x


class ReadsSet(Layer):
    def forward(self, x):
        return self.fc(x) * (2 if "wide" in self.flags else 3)


class CallsFromList(Layer):
    def forward(self, x):
        x = self.fc(x)
        for function in self.functions:
            x = function(x)
        return x


class CallsModulesFromList(Layer):
    def __init__(self) -> None:
        super().__init__()
        self.other = nn.Linear(8, 8)
        self.order = [self.fc, self.other]

    def forward(self, x):
        for position, module in enumerate(self.order):
            x = module(x) * (position + 1)
        return x


class ReadsAttribute(Layer):
    def forward(self, x):
        y = self.fc(x)
        return y if self.callback is None else self.callback(y)


class AsksForAttribute(Layer):
    def forward(self, x):
        return self.fc(x) * (getattr(self, "bonus", 3) if hasattr(self, "fc") else 2)


class ReadsLeaf(Layer):
    def forward(self, x):
        return F.dropout(self.fc(x), self.drop.p, self.training)


class AsksLeaf(Layer):
    def forward(self, x):
        return self.fc(x) * getattr(self.fc, "bonus", 3)


class CallsPartial(Layer):
    def forward(self, x):
        return self.partial(self.fc(x))


def times(x, options):
    return x * options.scale


class Slotted(nn.Module):
    __slots__ = ("scale",)

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)
        self.scale = 2.0

    def forward(self, x):
        return self.fc(x) * self.scale


class PlainTensor(Layer):
    def forward(self, x):
        return self.fc(x) * self.scale / self.scale.shape[0]


class ListOfTensors(Layer):
    def forward(self, x):
        return self.fc(x) * self.scales[0] + self.scales[1]["bias"]


class OptionalParameter(Layer):
    def __init__(self) -> None:
        super().__init__()
        self.register_parameter("extra", None)
        self.register_buffer("offset", None)

    def forward(self, x):
        y = self.fc(x)
        y = y if self.offset is None else y + self.offset
        return y if self.extra is None else y * self.extra


class Resizable(Layer):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 8))

    def forward(self, x):
        return F.linear(self.fc(x), self.weight) / self.weight.shape[0]


class Tied(Layer):
    """Two names for one parameter, and for one module."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.randn(8, 8))
        self.second = self.first
        self.again = self.fc

    def forward(self, x):
        return self.again(self.fc(x @ self.first) @ self.second)


class Chatty(Layer):
    """Returns one thing or two."""

    def forward(self, x):
        y = self.fc(x)
        return (y, torch.tanh(y)) if self.chatty else (y, None)


class Listens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.child = Chatty(chatty=False)

    def forward(self, x):
        y, more = self.child(x)
        return y if more is None else y * more


class Plain(Layer):
    def forward(self, x):
        return self.fc(x)


class Tupled(Layer):
    def forward(self, x):
        return (self.fc(x),)


class UsesChild(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.child = Plain()

    def forward(self, x):
        y = self.child(x)
        return y[0] if isinstance(y, tuple) else y


class Stack(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Plain(), Plain()])

    def forward(self, x):
        for position, block in enumerate(self.blocks):
            x = block(x) * (position + 1)
        return x


class LoopsOverSequence(Layer):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 8), nn.Tanh())

    def forward(self, x):
        for layer in self.body:
            x = self.fc(layer(x))
        return x


class StoresElsewhere(Layer):
    """Keeps its settings where `nn.Module.__setattr__` does not look."""

    def __init__(self) -> None:
        super().__init__()
        self.store: dict[str, float] = {}
        self.set(2.0)

    def set(self, value: float) -> None:
        self.store["scale"] = value

    def forward(self, x):
        return self.fc(x) * self.store["scale"]


def partial_with_options() -> nn.Module:
    return CallsPartial(partial=functools.partial(times, options=Options()))


def two_tensors() -> nn.Module:
    return ListOfTensors(scales=[torch.ones(8), {"bias": torch.ones(8)}])


# {case: (what makes a model, what changes it)}
CHANGES: dict[str, tuple[Callable[[], nn.Module], Callable[[Any], object]]] = {
    "field of a config": (
        lambda: ReadsConfig(options=Options()),
        lambda m: setattr(m.options, "scale", 3.0),
    ),
    "config replaced": (
        lambda: ReadsConfig(options=Options()),
        lambda m: setattr(m, "options", types.SimpleNamespace(scale=3.0)),
    ),
    "field of a nested config": (
        lambda: ReadsNestedConfig(options=Options()),
        lambda m: setattr(m.options.inner, "bias", 3.0),
    ),
    "nested config replaced": (
        lambda: ReadsNestedConfig(options=Options()),
        lambda m: setattr(m.options, "inner", types.SimpleNamespace(bias=5)),
    ),
    "field behind a property": (
        lambda: ReadsProperty(options=Options()),
        lambda m: setattr(m.options, "scale", 3.0),
    ),
    "value in a dict": (
        lambda: ReadsDict(settings={"scale": 2.0}),
        lambda m: m.settings.update(scale=3.0),
    ),
    "value in an ordered dict": (
        lambda: ReadsDict(settings=OrderedDict(scale=2.0)),
        lambda m: m.settings.update(scale=4.0),
    ),
    "list extended": (lambda: LoopsOverList(scales=[2.0]), lambda m: m.scales.append(3.0)),
    "list element": (lambda: LoopsOverList(scales=[2.0]), lambda m: m.scales.__setitem__(0, 3.0)),
    "set extended": (lambda: ReadsSet(flags={"deep"}), lambda m: m.flags.add("wide")),
    "function in a list": (
        lambda: CallsFromList(functions=[torch.relu]),
        lambda m: m.functions.__setitem__(0, torch.tanh),
    ),
    "order of modules in a list": (CallsModulesFromList, lambda m: m.order.reverse()),
    "callback set": (
        lambda: ReadsAttribute(callback=None),
        lambda m: setattr(m, "callback", torch.tanh),
    ),
    "attribute that was missing": (AsksForAttribute, lambda m: setattr(m, "bonus", 5)),
    "attribute of a leaf": (
        lambda: ReadsLeaf(drop=nn.Dropout(0.5)),
        lambda m: setattr(m.drop, "p", 0.1),
    ),
    "leaf replaced whose attribute was read": (
        lambda: ReadsLeaf(drop=nn.Dropout(0.5)),
        lambda m: setattr(m, "drop", nn.Dropout(0.1)),
    ),
    "missing attribute of a leaf": (AsksLeaf, lambda m: setattr(m.fc, "bonus", 5)),
    "argument of a partial": (
        partial_with_options,
        lambda m: setattr(m.partial.keywords["options"], "scale", 3.0),
    ),
    "slot": (Slotted, lambda m: setattr(m, "scale", 3.0)),
    "plain tensor": (
        lambda: PlainTensor(scale=torch.ones(8)),
        lambda m: setattr(m, "scale", torch.full((8,), 3.0)),
    ),
    "plain tensor in place": (
        lambda: PlainTensor(scale=torch.ones(8)),
        lambda m: m.scale.mul_(2),
    ),
    "plain tensor of another shape": (
        lambda: PlainTensor(scale=torch.ones(8)),
        lambda m: setattr(m, "scale", torch.full((4, 8), 3.0)),
    ),
    "tensor in a list": (two_tensors, lambda m: m.scales.__setitem__(0, torch.full((8,), 3.0))),
    "tensor in a dict in a list": (
        two_tensors,
        lambda m: m.scales[1].update(bias=torch.full((8,), 3.0)),
    ),
    "parameter registered": (
        OptionalParameter,
        lambda m: m.register_parameter("extra", nn.Parameter(torch.randn(8))),
    ),
    "parameter set": (
        OptionalParameter,
        lambda m: setattr(m, "extra", nn.Parameter(torch.randn(8))),
    ),
    "buffer registered": (
        OptionalParameter,
        lambda m: m.register_buffer("offset", torch.randn(8)),
    ),
    "parameter of another shape": (
        Resizable,
        lambda m: setattr(m, "weight", nn.Parameter(torch.randn(16, 8))),
    ),
    "parameter untied": (Tied, lambda m: setattr(m, "second", nn.Parameter(torch.randn(8, 8)))),
    "module no longer shared": (Tied, lambda m: setattr(m, "again", nn.Linear(8, 8))),
    "child returns more": (Listens, lambda m: setattr(m.child, "chatty", True)),
    "child replaced": (UsesChild, lambda m: setattr(m, "child", Tupled())),
    "child inserted": (Stack, lambda m: m.blocks.insert(0, Plain())),
    "child appended": (Stack, lambda m: m.blocks.append(Plain())),
    "child removed": (Stack, lambda m: m.blocks.pop(0)),
    "children replaced by more": (
        Stack,
        lambda m: setattr(m, "blocks", nn.ModuleList([Plain(), Plain(), Plain()])),
    ),
    "children sliced": (Stack, lambda m: setattr(m, "blocks", m.blocks[:1])),
    "sequence replaced by a longer one": (
        LoopsOverSequence,
        lambda m: setattr(m, "body", nn.Sequential(nn.Tanh(), nn.Linear(8, 8), nn.Tanh())),
    ),
    "children swapped behind the back": (
        Stack,
        lambda m: m.blocks._modules.update({"0": Plain()}),
    ),
    "own store": (StoresElsewhere, lambda m: m.set(3.0)),
}
# tensors are read anew at every call: the graph goes on standing
LIVE = (
    "plain tensor", "plain tensor in place", "tensor in a dict in a list", "parameter untied"
)  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_after_capture_is_seen(name: str) -> None:
    bio = check(*CHANGES[name])
    assert not biofx.info(bio).opaque, "captured, or there is nothing to test"
    if name not in LIVE:
        assert biofx.info(bio).stale


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_of_a_copy_is_seen(name: str) -> None:
    make, change = CHANGES[name]
    seed()
    twin = make()
    seed()
    original = biofx.transform(make())
    bio = copy.deepcopy(original)
    architecture = case(make)
    assert_same(run(twin, architecture, train=True), run(bio, architecture, train=True))
    assert not biofx.info(bio).stale
    for model in (twin, bio):
        seed(7)
        change(model)
    assert_same(run(twin, architecture, train=True), run(bio, architecture, train=True))
    assert not biofx.info(original).stale


def test_a_change_of_a_loaded_model_is_seen() -> None:
    bio = pickle.loads(pickle.dumps(biofx.transform(ReadsConfig(options=Options()))))
    assert not biofx.info(bio).stale
    before = bio(torch.ones(1, 8))
    bio.options.scale = 4.0
    assert torch.equal(bio(torch.ones(1, 8)), before * 2)
    bio.options.scale = 2.0
    assert not biofx.info(bio).stale


# --- what belongs to the program: compared at every call


class ReadsGlobal(Layer):
    def forward(self, x):
        return self.fc(x) * SCALE


def scaled(x):
    return x * SCALE


class ReadsGlobalInHelper(Layer):
    def forward(self, x):
        return scaled(self.fc(x))


class ReadsGlobalDict(Layer):
    def forward(self, x):
        return self.fc(x) * SETTINGS["scale"]


class ReadsGlobalObject(Layer):
    def forward(self, x):
        return self.fc(x) * OPTIONS.scale


class ReadsClassAttribute(Layer):
    scale = 2.0

    def forward(self, x):
        return self.fc(x) * self.scale


class Defaults:
    scale = 2.0


class ReadsGlobalClass(Layer):
    def forward(self, x):
        return self.fc(x) * Defaults.scale


@pytest.mark.parametrize(
    ("make", "owner", "name"),
    [
        (ReadsGlobal, sys.modules[__name__], "SCALE"),
        (ReadsGlobalInHelper, sys.modules[__name__], "SCALE"),
        (ReadsGlobalDict, SETTINGS, "scale"),
        (ReadsGlobalObject, OPTIONS, "scale"),
        (ReadsClassAttribute, ReadsClassAttribute, "scale"),
        (ReadsGlobalClass, Defaults, "scale"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_change_of_a_global_is_seen(
    make: Any, owner: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seed()
    twin = make()
    seed()
    bio = biofx.transform(make())
    copied = copy.deepcopy(bio)
    loaded = pickle.loads(pickle.dumps(bio))
    assert not biofx.info(bio).opaque
    x = torch.randn(4, 8)
    if isinstance(owner, dict):
        monkeypatch.setitem(owner, name, 5.0)
    else:
        monkeypatch.setattr(owner, name, 5.0)
    for model in (bio, copied, loaded):
        assert torch.equal(twin(x), model(x))
    assert biofx.info(bio).stale
    monkeypatch.undo()
    for model in (bio, copied, loaded):
        assert torch.equal(twin(x), model(x))
    assert not biofx.info(bio).stale


class ParameterDtype(Layer):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("one", torch.ones(1))

    @property
    def dtype(self):
        return next(self.parameters()).dtype

    def forward(self, x):
        return self.fc(x.to(self.dtype)), torch.zeros(2, dtype=next(self.buffers()).dtype)


def test_the_dtype_of_parameters_is_read_at_run_time() -> None:
    bio = check(ParameterDtype, lambda m: m.to(torch.float64))
    assert not biofx.info(bio).opaque
    assert not biofx.info(bio).stale


class Factories(Layer):
    def forward(self, x):
        return (self.fc(x) * torch.ones(8)).float(), torch.zeros(3)


def test_factories_follow_the_default_dtype() -> None:
    seed()
    twin = Factories()
    seed()
    bio = biofx.transform(Factories())
    x = torch.randn(4, 8)
    torch.set_default_dtype(torch.float64)
    try:
        expected, found = twin(x), bio(x)
    finally:
        torch.set_default_dtype(torch.float32)
    assert found[1].dtype is torch.float64
    assert torch.equal(expected[0], found[0])


class Imports(Layer):
    def forward(self, x):
        from imported_by_a_forward import double

        return double(self.fc(x))


def test_a_module_imported_while_tracing_sees_torch_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = "from math import sqrt\nfrom torch import finfo, ones\nONES = ones(8)\n"
    (tmp_path / "imported_by_a_forward.py").write_text(source + "def double(x): return x * 2\n")
    monkeypatch.syspath_prepend(tmp_path)
    bio = biofx.transform(Imports())
    imported = importlib.import_module("imported_by_a_forward")
    monkeypatch.delitem(sys.modules, "imported_by_a_forward")
    assert (imported.finfo, imported.ones) == (torch.finfo, torch.ones)
    assert imported.sqrt is math.sqrt
    assert torch.equal(imported.ONES, torch.ones(8))
    assert bio(torch.ones(2, 8)).shape == (2, 8)


# --- what a graph cannot hold stays Python


class TypeOfValue(Layer):
    def forward(self, x):
        return self.fc(x) * (2 if type(x) is torch.Tensor else 3)


class TypeInHelper(Layer):
    def factor(self, x):
        return 2 if type(x) == torch.Tensor else 3  # noqa: E721

    def forward(self, x):
        return self.fc(x) * self.factor(x)


class Identity(Layer):
    def __init__(self) -> None:
        super().__init__()
        self.same = nn.Identity()

    def forward(self, x):
        return self.fc(x) * (2 if self.same(x) is x else 3)


class FlagIsTrue(Layer):
    def forward(self, x):
        return self.fc(x) * (2 if self.training is True else 3)


class GradientIsNone(Layer):
    def forward(self, x):
        y = self.fc(x)
        return y * (2 if x.grad is None else 3)


class GradientOfParameterIsNone(Layer):
    def forward(self, x):
        return self.fc(x) * (2 if self.fc.weight.grad is None else 3)


class IdOfValue(Layer):
    def forward(self, x):
        return self.fc(x) * (2 if id(x) == id(x) else 3)


class TextOfValue(Layer):
    def forward(self, x):
        return self.fc(x) * len(str(x.shape[0]))


class FormatsValue(Layer):
    def forward(self, x):
        return self.fc(x) * len(f"{x!r}")


class ValueAsKey(Layer):
    def forward(self, x):
        return {x: self.fc(x)}[x]


class CallableValue(Layer):
    def forward(self, x):
        return self.fc(x) * (2 if callable(x) else 3)


class ReadsOwnDict(Layer):
    def forward(self, x):
        return self.fc(x) * (2 if self.__dict__["training"] else 3)


class CountsInGlobal(Layer):
    def forward(self, x):
        global CALLS
        CALLS += 1
        return self.fc(x)


class CachesInGlobal(Layer):
    def forward(self, x):
        if 8 not in CACHE:
            CACHE[8] = torch.ones(8) * 2
        return self.fc(x) * CACHE[8]


@functools.lru_cache
def cached_ones(n: int) -> torch.Tensor:
    return torch.ones(n)


class CallsCachedFunction(Layer):
    def forward(self, x):
        return self.fc(x) * cached_ones(8)


class HasCachedMethod(Layer):
    @functools.lru_cache  # noqa: B019
    def ones(self, n):
        return torch.ones(n)

    def forward(self, x):
        return self.fc(x) * self.ones(8)


class HasCachedProperty(Layer):
    @functools.cached_property
    def ones(self):
        return torch.ones(8)

    def forward(self, x):
        return self.fc(x) * self.ones


class Holder:
    def __init__(self) -> None:
        self.value = None

    def get(self):
        if self.value is None:
            self.value = torch.ones(8) * 2
        return self.value


class CachesInObject(Layer):
    def forward(self, x):
        return self.fc(x) * self.holder.get()


class CountsInFunction(Layer):
    def __init__(self) -> None:
        def act(x):
            act.calls += 1
            return x * act.calls

        act.calls = 0
        super().__init__(act=act)

    def forward(self, x):
        return self.act(self.fc(x))


class CountsInClosure(Layer):
    def __init__(self) -> None:
        calls = 0

        def act(x):
            nonlocal calls
            calls += 1
            return x * calls

        super().__init__(act=act)

    def forward(self, x):
        return self.act(self.fc(x))


class MutableDefault(Layer):
    def forward(self, x, seen=[]):  # noqa: B006
        seen.append(1)
        return self.fc(x) * len(seen)


class OwnRandom(Layer):
    def forward(self, x):
        return self.fc(x) * self.random.random()


class OwnNumpy(Layer):
    def forward(self, x):
        return self.fc(x) * float(self.array[0])


class OwnIterator(Layer):
    def forward(self, x):
        return self.fc(x) * next(self.iterator)


class OwnGenerator(Layer):
    def forward(self, x):
        return self.fc(x) * torch.rand(8, generator=self.generator)


class ReadsClock(Layer):
    def forward(self, x):
        return self.fc(x) * (1 if time.time() > 0 else 2)


class ReadsEnvironment(Layer):
    def forward(self, x):
        return self.fc(x) * float(os.environ.get("BIOFX_TEST_SCALE", "2"))


class Prints(Layer):
    def forward(self, x):
        print("forward")  # noqa: T201
        return self.fc(x)


class Warns(Layer):
    def forward(self, x):
        warnings.warn("forward", UserWarning, stacklevel=2)
        return self.fc(x)


class Logs(Layer):
    def forward(self, x):
        LOG.warning("forward")
        return self.fc(x)


class GlobalTensor(Layer):
    def forward(self, x):
        return self.fc(x) * int(GLOBAL_TENSOR.sum())


class Suppresses(Layer):
    def forward(self, x):
        scale = 7
        with contextlib.suppress(Exception):
            scale = int(x.sum() * 0 + 2)
        return self.fc(x) * scale


class Catches(Layer):
    def forward(self, x):
        try:
            scale = int(x.sum() * 0 + 2)
        except TypeError:
            scale = 7
        return self.fc(x) * scale


class DefaultDtype(Layer):
    def forward(self, x):
        return self.fc(x).to(torch.get_default_dtype())


class Backends(Layer):
    def forward(self, x):
        return self.fc(x) * (2 if torch.backends.mkldnn.enabled else 3)


REFUSED: dict[type[nn.Module], str] = {
    TypeOfValue: "asks for the type of an intermediate value",
    TypeInHelper: "asks for the type of an intermediate value",
    Identity: "compares computed values with `is`",
    FlagIsTrue: "compares computed values with `is`",
    GradientIsNone: "compares with None",
    GradientOfParameterIsNone: "compares with None",
    IdOfValue: "calls id() on an intermediate value",
    TextOfValue: "formats an intermediate value as text",
    FormatsValue: "formats an intermediate value as text",
    ValueAsKey: "uses an intermediate value as a key",
    CallableValue: "calls callable() on an intermediate value",
    ReadsOwnDict: "reads its __dict__",
    CountsInGlobal: "assigns 'CALLS', which outlives the call",
    CachesInGlobal: "changes a Python container while it runs",
    CallsCachedFunction: "calls a cached function (cached_ones)",
    HasCachedMethod: "calls a cached function (ones)",
    HasCachedProperty: "reads a cached property",
    CachesInObject: "assigns 'value' of a Holder",
    CountsInFunction: "changes a Python container",
    CountsInClosure: "assigns 'calls', which outlives the call",
    MutableDefault: "changes a Python container",
    OwnRandom: "reads its attribute 'random', a random.Random",
    OwnNumpy: "reads its attribute 'array', a numpy.ndarray",
    OwnIterator: "reads its attribute 'iterator'",
    OwnGenerator: "draws from a generator of its own",
    ReadsClock: "reads the clock",
    ReadsEnvironment: "reads the environment",
    Prints: "calls print()",
    Warns: "calls warn()",
    Logs: "writes a log",
    GlobalTensor: "uses the global variable 'GLOBAL_TENSOR', a Tensor",
    Suppresses: "takes int() of an intermediate value",
    Catches: "catches exceptions",
    DefaultDtype: "reads torch.get_default_dtype()",
    Backends: "reads torch.backends",
}
ATTRIBUTES: dict[type[nn.Module], Callable[[], dict[str, Any]]] = {
    CachesInObject: lambda: {"holder": Holder()},
    OwnRandom: lambda: {"random": random.Random(0)},
    OwnNumpy: lambda: {"array": np.ones(3)},
    OwnIterator: lambda: {"iterator": itertools.count(1)},
    OwnGenerator: lambda: {"generator": torch.Generator().manual_seed(0)},
}


@pytest.mark.parametrize("cls", REFUSED, ids=lambda cls: cls.__name__)
def test_what_a_graph_cannot_hold_stays_python(
    cls: Any, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    CACHE.clear()
    cached_ones.cache_clear()

    def make() -> nn.Module:
        return cls(**ATTRIBUTES.get(cls, dict)())

    bio = biofx.transform(make())
    assert REFUSED[cls] in "; ".join(biofx.info(bio).opaque.values())
    assert not CACHE
    assert not cached_ones.cache_info().currsize
    assert capsys.readouterr().out == ""
    assert not caplog.records
    if cls is MutableDefault:  # a model and its twin share the list
        assert cls.forward.__defaults__ == ([],)
    else:
        check(make)


# --- questions that are answered as at run time


class Asks(Layer):
    def forward(self, x):
        y = self.fc(x)
        scale = 1
        scale *= 2 if torch.is_tensor(x) else 3
        scale *= 2 if isinstance(x, torch.Tensor) else 3
        scale *= 2 if isinstance(x, list | tuple) else 3
        scale *= 2 if isinstance(y, torch.fx.Proxy) else 3
        scale *= 2 if torch.fx._symbolic_trace.is_fx_tracing() else 3
        scale *= 2 if hasattr(x, "__iter__") else 3
        scale *= 2 if issubclass(x.__class__, torch.Tensor) else 3
        scale *= 2 if isinstance(self, nn.Module) else 3
        scale *= 2 if type(self.fc) is nn.Linear else 3
        match x:
            case torch.Tensor():
                scale *= 2
            case _:
                scale *= 3
        return y * scale


class AsksWhatIsNotThere(Layer):
    def forward(self, x):
        return self.fc(x) * getattr(x, "missing", 2)


@pytest.mark.parametrize("cls", [Asks, AsksWhatIsNotThere])
@pytest.mark.parametrize("warm", [False, True], ids=["cold", "warm"])
def test_questions_are_answered_as_at_run_time(cls: Any, warm: bool) -> None:
    if warm:  # the interpreter specialises code that has run often
        model = cls()
        for _ in range(50):
            model(torch.zeros(1, 8))
    bio = check(cls)
    assert bool(biofx.info(bio).opaque) == (cls is AsksWhatIsNotThere)


# --- arguments


class Color(enum.IntEnum):
    RED = 1


class Word(str, enum.Enum):  # noqa: UP042
    A = "a"


class EnumDefault(Layer):
    def forward(self, x, color=Color.RED, word=Word.A):
        return self.fc(x) * (2 if color is Color.RED and word is Word.A else 3)


@dataclasses.dataclass
class Batch:
    x: torch.Tensor
    scale: int = 2


class Pair(NamedTuple):
    x: torch.Tensor


class TakesBatch(Layer):
    def forward(self, batch):
        return self.fc(batch.x) * getattr(batch, "scale", 1)


class TakesTuple(Layer):
    def forward(self, pair):
        return self.fc(pair[0]) * (2 if hasattr(pair, "x") else 3)


@pytest.mark.parametrize(
    ("cls", "inputs"),
    [
        (EnumDefault, floats((4, 8))),
        (TakesBatch, lambda: ((Batch(torch.randn(4, 8)),), {})),
        (TakesBatch, lambda: ((Pair(torch.randn(4, 8)),), {})),
        (TakesTuple, lambda: ((Pair(torch.randn(4, 8)),), {})),
        (TakesTuple, lambda: (((torch.randn(4, 8),),), {})),
    ],
    ids=["enums", "dataclass", "named tuple by name", "named tuple by index", "tuple"],
)
@pytest.mark.parametrize("example", [False, True], ids=["blind", "with example"])
def test_arguments_of_every_kind(cls: Any, inputs: Any, example: bool) -> None:
    check(cls, inputs=inputs, example=example)


class Signed(Layer):
    def forward(self, x, scale=0.0):
        return torch.copysign(self.fc(x), torch.tensor(scale * self.scale))


class Calls(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.signed = Signed(scale=1.0)

    def forward(self, x):
        return self.signed(x) + 2 * self.signed(x, -0.0)


def test_the_sign_of_a_zero_counts() -> None:
    model = Signed(scale=1.0)
    bio = biofx.transform(model)
    x = torch.randn(4, 8)
    assert not biofx.info(bio).opaque
    for scale in (0.0, -0.0, 0.0):
        assert torch.equal(bio(x, scale), model(x, scale))
    compiled = torch.compile(bio, backend="eager", fullgraph=True)
    assert torch.equal(compiled(x), model(x))
    check(Calls)
    check(lambda: Signed(scale=0.0), lambda model: setattr(model, "scale", -0.0))


def test_a_graph_for_tuples_is_not_used_for_named_tuples() -> None:
    seed()
    twin = TakesTuple()
    x = torch.randn(4, 8)
    bio = biofx.transform(twin, example_inputs=((x,),))
    assert torch.equal(bio(Pair(x)), twin(Pair(x)))


class MaybeNone(Layer):
    def forward(self, x):
        return None if x.sum() > 1e9 else self.fc(x)


class HelperComparesWithNone(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.maybe = MaybeNone()
        self.fc = nn.Linear(8, 8)

    def mix(self, y, mask):
        return y if mask is None else y * mask

    def forward(self, x):
        return self.mix(self.fc(x), self.maybe(x))


class LambdaComparesWithNone(HelperComparesWithNone):
    def forward(self, x):
        return (self.fc(x), *filter(lambda value: value is not None, [self.maybe(x)]))


class Masked(Layer):
    def forward(self, x, mask):
        return (self.fc(x) if mask is None else self.fc(x) * mask), mask


class PassesNoneOn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.maybe = MaybeNone()
        self.child = Masked()

    def forward(self, x):
        y, mask = self.child(x, self.maybe(x))
        return {"y": y, "mask": mask}


@pytest.mark.parametrize("cls", [HelperComparesWithNone, LambdaComparesWithNone, PassesNoneOn])
def test_values_that_may_be_none(cls: Any) -> None:
    check(cls)


# --- classes of every kind

REGISTRY: dict[str, type] = {}
MADE: list[str] = []


class Registered(nn.Module):
    def __init_subclass__(cls, *, key: str, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        REGISTRY[key] = cls


class WithInitSubclass(Registered, key="a"):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x):
        return self.fc(x)


class Meta(type):
    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        MADE.append(cls.__name__)
        return super().__call__(*args, **kwargs)


class WithMetaclass(Layer, metaclass=Meta):
    def forward(self, x):
        return self.fc(x)


class Abstract(Layer, abc.ABC):
    @abc.abstractmethod
    def scale(self) -> int: ...

    def forward(self, x):
        return self.fc(x) * self.scale()


class Concrete(Abstract):
    def scale(self) -> int:
        return 2


T = TypeVar("T")


class Typed(Layer, Generic[T]):
    def forward(self, x):
        return self.fc(x)


@dataclasses.dataclass(eq=False)
class Data(nn.Module):
    width: int = 8

    def __post_init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(self.width, 8)

    def forward(self, x):
        return self.fc(x) * self.width


class ReadsThrough(nn.Module):
    """Attributes that it lacks are those of its child."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Plain()

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("inner"), name)

    def forward(self, x):
        return self.fc(x)


class NamesOfOurs(Layer):
    """Calls things what biofx calls things."""

    def __init__(self) -> None:
        super().__init__(meta=2, scale=2)
        self._cell = nn.Linear(8, 8)

    def fits(self, x):
        return x * self.scale

    def synapses(self):
        return 3

    def forward(self, x):
        return self.fits(self._cell(self.fc(x))) * self.synapses() * self.meta


class TakesGraph(Layer):
    """Assigns, later, what means something else on a `GraphModule`."""

    def take(self, graph: Any) -> None:
        self.graph = graph

    def forward(self, x):
        return self.fc(x)


def test_a_graph_of_ones_own() -> None:
    bio = check(TakesGraph, lambda m: m.take({"a": "b"}))
    assert bio.graph == {"a": "b"}
    assert "'graph' means something else" in biofx.info(bio).opaque[""]


class StaticForward(nn.Module):
    @staticmethod
    def forward(x):
        return x * 2


class LambdaForward(Layer):
    forward = lambda self, x: self.fc(x) * 2  # noqa: E731


class PartialForward(Layer):
    def scaled(self, x, scale):
        return self.fc(x) * scale

    forward = functools.partialmethod(scaled, scale=2)


class Yields(Layer):
    def parts(self, x):
        for scale in range(3):
            yield self.fc(x) * scale

    def forward(self, x):
        return sum(self.parts(x))


class OwnSequential(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Linear(8, 8), nn.ReLU(), StaticForward())


class OwnLinear(nn.Linear):
    __slots__ = ("scale",)

    def __init__(self) -> None:
        super().__init__(8, 8)
        self.scale = 3.0

    def forward(self, x):
        return super().forward(x) * self.scale


class Locked(Layer):
    """Leaves out of its pickles what cannot be pickled."""

    def __init__(self) -> None:
        super().__init__(stream=io.BytesIO(), lock=threading.Lock())

    def __getstate__(self):
        state = self.__dict__.copy()
        del state["stream"], state["lock"]
        return state

    def __setstate__(self, state):
        super().__setstate__(state)
        self.stream, self.lock = io.BytesIO(), threading.Lock()

    def forward(self, x):
        return self.fc(x)


KINDS = [
    WithInitSubclass, WithMetaclass, Concrete, Typed, Typed[int], Data, ReadsThrough, NamesOfOurs,
    LambdaForward, PartialForward, Yields, OwnSequential, OwnLinear, Slotted, Locked,
]  # fmt: skip


@pytest.mark.parametrize("cls", KINDS, ids=lambda cls: cls.__name__)
def test_classes_of_every_kind(cls: Any) -> None:
    registered = dict(REGISTRY)
    bio = check(cls)
    assert registered == REGISTRY
    assert isinstance(bio, getattr(cls, "__origin__", cls))
    x = torch.randn(4, 8)
    for twin in (copy.deepcopy(bio), pickle.loads(pickle.dumps(bio)), copy.copy(bio)):
        assert torch.equal(bio(x), twin(x))
        assert type(twin).__mro__[1:] == type(bio).__mro__[1:]
    assert set(MADE) <= {"WithMetaclass"}, "a derived class is not made by its metaclass's call"
