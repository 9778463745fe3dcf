"""Promises 1 to 4 over the whole table: faithful, total, nothing silent, original untouched.

And what a graph is: flat, standard FX, whole with example inputs, valid whatever names it holds.
"""

import contextlib
import copy
import dataclasses
import enum
import functools
import gc
import logging
import pickle
import random
import sys
import threading
import tracemalloc
import warnings
import weakref
from abc import ABC
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, Generic, TypeVar

import numpy
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor, nn

import biofx
from biofx.copying.rebind import Rebinder
from biofx.errors import ModelError
from biofx.modules.graph_module import recompile
from biofx.verify.comparison import difference
from tests.architectures import BY_NAME, Architecture, seed, with_tags
from tests.architectures.attributes import ACTIVATIONS
from tests.fidelity import assert_same, run
from tests.strategies import random_networks

WEIGHTY = with_tags(without=("no_weights", "norms_only"))
ALL = pytest.mark.parametrize("architecture", WEIGHTY, ids=str)


def make(architecture: Architecture) -> nn.Module:
    """The architecture's model, the same at every call."""
    seed()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return architecture.make()


@functools.cache
def once(architecture: Architecture) -> tuple[nn.Module, nn.Module]:
    """A model and what became of it, for tests that only look."""
    model = make(architecture)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return model, biofx.transform(model)


def check_faithful(architecture: Architecture, *, train: bool, example: bool) -> None:
    """Captured in a mode, then switched back and forth, next to an untransformed twin."""
    seed()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        twin = make(architecture)
        model = make(architecture).train(train)
        seed(1)
        inputs = architecture.inputs() if example else None
        bio = biofx.transform(model, example_inputs=inputs)
    for draw, mode in enumerate((not train, train, not train)):
        expected = run(twin, architecture, train=mode, draw=draw)
        found = run(bio, architecture, train=mode, draw=draw)
        assert_same(expected, found, f"run {draw}, {'train' if mode else 'eval'} mode:")


# --- promise 1: faithful


@ALL
@pytest.mark.parametrize("train", [True, False], ids=["train", "eval"])
def test_same_function_in_both_modes(architecture: Architecture, train: bool) -> None:
    check_faithful(architecture, train=train, example=not train)


@pytest.mark.slow
@ALL
@pytest.mark.parametrize("train", [True, False], ids=["train", "eval"])
def test_same_function_in_both_modes_the_other_way(architecture: Architecture, train: bool) -> None:
    check_faithful(architecture, train=train, example=train)


@settings(max_examples=40)
@given(random_networks())
def test_random_networks_keep_their_function(architecture: Architecture) -> None:
    model = make(architecture)
    if not any(isinstance(m, nn.Linear | nn.Conv2d) for m in model.modules()):
        with pytest.raises(ModelError, match="no weight layer"):
            biofx.transform(model)
        return
    for train in (True, False):
        check_faithful(architecture, train=train, example=train)


@pytest.mark.slow
@settings(max_examples=1000)
@given(random_networks())
def test_many_random_networks_keep_their_function(architecture: Architecture) -> None:
    test_random_networks_keep_their_function.hypothesis.inner_test(architecture)


# --- promise 2: total, and whole with example inputs


def recorded(
    architecture: Architecture, *, train: bool
) -> tuple[nn.Module, nn.Module, Callable[[], tuple]]:
    """A twin, a model transformed with example inputs, and the inputs, the same at each call."""

    def inputs() -> tuple:
        seed(1)
        return architecture.inputs()

    twin = make(architecture).train(train)
    model = make(architecture).train(train)
    example = inputs()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return twin, biofx.transform(model, example_inputs=example), inputs


# A forward that changes the mode of a layer: the graph shows the layers and the diff says so.
CHANGES_MODES = {"sets_mode_of_child"}


@ALL
@pytest.mark.parametrize("train", [True, False], ids=["train", "eval"])
def test_with_example_inputs_the_graph_is_the_run(architecture: Architecture, train: bool) -> None:
    twin, bio, inputs = recorded(architecture, train=train)
    info = biofx.info(bio)
    assert info.whole
    assert info.opaque == {}
    assert info.wiring.known
    info.graph.lint()
    recompile(bio)
    results = []
    for model in (twin, bio):
        args, kwargs = inputs()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            results.append(model(*args, **kwargs))
    if train and architecture.name in CHANGES_MODES:
        assert any(a.kind == "state" and "evaluation mode" in a.what for a in info.assumptions)
    else:
        assert difference(*results) is None


@pytest.mark.parametrize(
    "architecture", with_tags("captured", without=("no_weights", "norms_only")), ids=str
)
def test_without_example_inputs_what_fx_alone_traces_is_traced(architecture: Architecture) -> None:
    _, bio = once(architecture)
    info = biofx.info(bio)
    assert info.opaque == {}
    assert not info.whole
    assert isinstance(bio, torch.fx.GraphModule)


@ALL
def test_result_is_of_the_users_class_with_its_keys(architecture: Architecture) -> None:
    model, bio = once(architecture)
    assert isinstance(bio, type(model))
    assert list(bio.state_dict()) == list(model.state_dict())
    assert [name for name, _ in bio.named_modules()] == [name for name, _ in model.named_modules()]


# --- promise 3: nothing silent


@ALL
def test_every_matrix_is_accounted_for(architecture: Architecture) -> None:
    _, bio = once(architecture)
    info = biofx.info(bio)
    reported = {name for layer in info.layers.values() for name in layer.parameters}
    assert reported == set(info.synapses)
    known = {id(bio.get_parameter(name)) for name in info.synapses}
    assert len(known) == len(info.synapses), "one Synapses per parameter"
    for name, layer in info.layers.items():
        assert layer.action in ("augmented", "split", "skipped")
        assert layer.reason or layer.action != "skipped", name
    for name, module in bio.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            continue
        for key, parameter in module.named_parameters(recurse=False):
            if parameter.ndim >= 2 and id(parameter) not in known:
                owner = name.partition(".parametrizations")[0]
                assert {name, owner} & set(info.layers), f"{name}.{key} is not mentioned"


@ALL
def test_what_is_unknown_has_a_reason_with_the_remedy(architecture: Architecture) -> None:
    _, bio = once(architecture)
    info = biofx.info(bio)
    assert all(reason.strip() for reason in info.opaque.values())
    assert all(reason.strip() for reason in info.wiring.unknown.values())
    assert set(info.wiring.order) | set(info.wiring.unknown) <= set(info.layers)
    for name in set(info.layers) - set(info.wiring.order) - set(info.wiring.unknown):
        assert info.layers[name].action == "skipped" or info.layers[name].reason, name


# --- what a graph takes for granted


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.head = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x, mask=None):
        h = self.fc(x)
        if h.isnan().any():
            raise ValueError
        return self.head(h * float(h.detach().max()) + torch.arange(8).sum().item())


def test_data_that_becomes_a_python_value_is_an_assumption_with_its_line() -> None:
    info = biofx.info(biofx.transform(Branches(), example_inputs=torch.randn(3, 4)))
    found = [(a.kind, a.what.partition(" gave")[0], a.where) for a in info.assumptions]
    first = Branches.forward.__code__.co_firstlineno
    assert found == [
        ("data", ".bool()", f"test_capture.py:{first + 2}"),
        ("data", ".float()", f"test_capture.py:{first + 4}"),
    ]  # the sum over a constant is none
    assert "gave False" in info.assumptions[0].what


class Conditional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Linear(4, 8), nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x):
        h = torch.cond(x.sum() > 0, lambda y: self.a(y).relu(), lambda y: self.b(y), (x,))
        return self.out(h)


def test_torch_cond_is_a_branch_on_data() -> None:
    model, x = Conditional(), torch.ones(3, 4)
    cond = torch.cond
    bio = biofx.transform(model, example_inputs=x)
    assert torch.cond is cond
    [assumption] = biofx.info(bio).assumptions
    assert assumption.kind == "data"
    assert assumption.where.startswith("test_capture.py:")
    reasons = {name: layer.reason for name, layer in biofx.info(bio).layers.items()}
    assert reasons == {"a": None, "out": None, "b": "nothing calls it in training mode"}
    assert biofx.verify(bio, model, x).graph == "equal in train mode"
    with torch.no_grad():
        assert torch.equal(bio(-x), model(-x))


def test_nodes_know_where_they_come_from() -> None:
    bio = biofx.transform(nn.Sequential(Branches(), nn.ReLU()), example_inputs=torch.randn(3, 4))
    node = next(node for node in bio.graph.nodes if node.target == "0.fc")
    assert list(node.meta["nn_module_stack"]) == ["", "0", "0.fc"]
    assert node.meta["nn_module_stack"]["0"][1].endswith("test_capture.Branches")
    assert "test_capture.py" in node.meta["stack_trace"]
    assert node.meta["stack_trace"].endswith("h = self.fc(x)")
    assert node.meta["tensor_meta"].shape == (3, 8)
    assert node.meta["biofx"].status == "replaced"


def test_an_argument_that_was_not_given_is_an_assumption() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x, mask=None):
            return self.fc(x) if mask is None else self.fc(x) * mask

    bio = biofx.transform(Masked())
    assert [str(a) for a in biofx.info(bio).assumptions] == ["called with mask=None"]
    bio.recompile()
    x, mask = torch.randn(2, 4), torch.ones(4)
    assert torch.equal(bio(x), bio.fc(x))
    with pytest.raises(ModelError, match="captured for mask = None, and is called with"):
        bio(x, mask=mask)


class Kind(enum.Enum):
    ONE, TWO = 1, 2


@dataclasses.dataclass
class Settings:
    scale: float = 2.0


class ObjectsAsDefaults(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x, kind=Kind.ONE, act=torch.tanh, settings=Settings()):  # noqa: B008
        y = act(self.fc(x)) * settings.scale
        return y if kind is Kind.ONE else -y


def test_a_graph_is_called_without_defaults_that_are_objects() -> None:
    model, x = ObjectsAsDefaults(), torch.randn(2, 4)
    bio = biofx.transform(model, example_inputs=x)
    assert biofx.verify(bio, model, x).graph == "equal in train mode"
    bio.recompile()
    assert torch.equal(bio(x), model(x))
    assert torch.equal(copy.deepcopy(bio)(x, Kind.ONE), model(x))
    with pytest.raises(ModelError, match=r"captured for kind = <Kind.ONE: 1>, and is called with"):
        bio(x, Kind.TWO)
    bio = biofx.transform(model, example_inputs=(x, Kind.TWO))
    assert biofx.verify(bio, model, (x, Kind.TWO)).graph == "equal in train mode"
    bio.recompile()
    with pytest.raises(ModelError, match=r"captured for kind = <Kind.TWO: 2>, and is called with"):
        bio(x)


def test_modes_that_a_forward_switches_are_in_the_graph_without_example_inputs() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 2)

        def forward(self, x):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                h = self.a(x)
            with torch.no_grad():
                scale = self.a(x).mean()
            return self.b(h.float() * scale)

    model, x = Mixed(), torch.randn(3, 8)
    bio = biofx.transform(model)
    bio.recompile()
    results = [m(x) for m in (model, bio)]
    assert difference(*results) is None
    grads = [torch.autograd.grad(y.sum(), model.a.weight)[0] for y in results]
    assert torch.equal(*grads)


@pytest.mark.parametrize(
    ("start", "draw", "name"),
    [
        (random.seed, random.random, "python"),
        (numpy.random.seed, lambda: numpy.random.rand(), "numpy"),
    ],
    ids=["python", "numpy"],
)
@pytest.mark.parametrize("inputs", [None, torch.ones(3, 2)], ids=["", "with example"])
def test_numbers_drawn_in_python_are_an_assumption(
    start: Callable[[int], None],
    draw: Callable[[], float],
    name: str,
    inputs: torch.Tensor | None,
) -> None:
    class Jitter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Sequential(nn.Linear(2, 2), nn.ReLU())

        def forward(self, x):
            return self.inner(x) * draw()

    start(0)
    expected = draw()
    start(0)
    bio = biofx.transform(nn.Sequential(nn.Linear(2, 2), Jitter()), example_inputs=inputs)
    assert draw() == expected  # the generator is where it was
    assert any(f"generator of {name}" in a.what for a in biofx.info(bio).assumptions)


class Noisy(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + torch.randn(2) * torch.ones(2)


@pytest.mark.parametrize("inputs", [None, torch.ones(3, 2)], ids=["", "with example"])
def test_noise_that_a_graph_repeats_is_an_assumption(inputs: torch.Tensor | None) -> None:
    bio = biofx.transform(Noisy(nn.Linear(2, 2)), example_inputs=inputs)
    expected = [] if inputs is not None else ["numbers were drawn from the generator of torch"]
    assert [a.what for a in biofx.info(bio).assumptions] == expected


# --- what a forward rests on may change: it is the user's own forward that runs

SCALE = 2.0


def scaled(x, *, box={"scale": 2.0}):  # noqa: B006
    return x * box["scale"]


def counter() -> tuple[Callable, Callable]:
    scale = 2.0

    def get() -> float:
        return scale

    def put(value: float) -> None:
        nonlocal scale
        scale = value

    return get, put


GET, PUT = counter()


class Changes(nn.Module):
    k = 2.0

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.items, self.own = nn.Linear(4, 4), [2], 2.0

    def forward(self, x):
        y = scaled(self.fc(x)) * SCALE * GET() * type(self).k * self.__class__.k
        return y * object.__getattribute__(self, "own") * self.items[0]


@pytest.mark.parametrize("inputs", [None, torch.ones(2, 4)], ids=["", "with example"])
@pytest.mark.parametrize(
    "change",
    [
        lambda model: globals().update(SCALE=3.0),
        lambda model: scaled.__kwdefaults__["box"].update(scale=3.0),
        lambda model: PUT(3.0),
        lambda model: setattr(Changes, "k", 3.0),
        lambda model: model.__dict__.update(own=3.0),
        lambda model: object.__setattr__(model, "own", 3.0),
        lambda model: model.items.__setitem__(0, 2.5),
        lambda model: setattr(model, "items", [7]),
        lambda model: setattr(model, "fc", nn.Identity()),
    ],
    ids=["global", "default", "nonlocal", "class", "dict", "object", "list", "attribute", "child"],
)
def test_no_change_after_capture_is_missed(
    change: Callable[[nn.Module], object],
    inputs: torch.Tensor | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(globals(), "SCALE", 2.0)
    monkeypatch.setattr(Changes, "k", 2.0)
    monkeypatch.setitem(scaled.__kwdefaults__, "box", {"scale": 2.0})
    PUT(2.0)
    twin, model = (make(Architecture(name="", make=Changes, inputs=lambda: None)) for _ in "ab")
    bio, x = biofx.transform(model, example_inputs=inputs), torch.randn(3, 4)
    assert torch.equal(twin(x), bio(x))
    before = bio(x)
    change(twin)
    change(bio)
    assert torch.equal(twin(x), bio(x))
    assert not torch.equal(before, bio(x))


def test_lines_of_packages_beside_torch_are_the_users() -> None:
    file = f"{Path(torch.__file__).parent}vision/models.py"
    names: dict = {"nn": nn}
    code = "class Net(nn.Sequential):\n  def forward(self, x):\n    return self[0](x).relu()"
    exec(compile(code, file, "exec"), names)
    bio = biofx.transform(names["Net"](nn.Linear(4, 2)), example_inputs=torch.ones(1, 4))
    assert all(f'"{file}", line 3' in n.meta["stack_trace"] for n in list(bio.graph.nodes)[1:-1])


# --- standard FX


@pytest.mark.parametrize("architecture", with_tags("hooks"), ids=str)
@pytest.mark.parametrize("train", [True, False], ids=["train", "eval"])
def test_interpreters_run_each_hook_once(architecture: Architecture, train: bool) -> None:
    _, bio, inputs = recorded(architecture, train=train)
    args, kwargs = inputs()
    assert not kwargs
    state = {key: value.clone() for key, value in bio.state_dict().items()}
    results = []
    for call in (
        lambda: torch.fx.Interpreter(bio).run(*args),
        lambda: torch.fx.Transformer(bio).transform()(*args),
        lambda: recompile(bio) and type(bio).forward(bio, *args),  # hooks of the root run outside
    ):
        seed(2)
        results.append(call())
        bio.load_state_dict(state)
    assert difference(results[2], results[0]) is None
    assert difference(results[2], results[1]) is None


@pytest.mark.parametrize("inputs", [None, torch.ones(2, 4)], ids=["", "with example"])
@pytest.mark.parametrize("gamma", [1, 2])
def test_the_graph_is_standard_fx(inputs: torch.Tensor | None, gamma: int) -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 8), nn.Linear(8, 2))
    config = biofx.BioConfig(weight_splitting_Gamma=gamma)
    bio, x = biofx.transform(model, config, example_inputs=inputs), torch.randn(2, 4)
    for built in (
        torch.fx.Transformer(bio).transform(),
        torch.fx.GraphModule(bio, bio.graph),
        torch.fx.GraphModule(bio, copy.deepcopy(bio.graph)),
        copy.deepcopy(bio),
        pickle.loads(pickle.dumps(bio)),
        torch.fx.symbolic_trace(bio),
    ):
        assert torch.equal(built(x), bio(x))
    assert torch.equal(torch.fx.Interpreter(bio).run(x), bio(x))
    expected = bio(x)
    bio.graph.eliminate_dead_code()
    assert "def forward(self, input" in bio.code
    bio.recompile()
    assert torch.equal(bio(x), expected)
    for built in (copy.deepcopy(bio), pickle.loads(pickle.dumps(bio)), copy.copy(bio)):
        assert torch.equal(built(x), expected)
    node = next(node for node in bio.graph.nodes if node.target == "1")
    with bio.graph.inserting_after(node):
        fresh = bio.graph.call_function(torch.neg, (node,))
    node.replace_all_uses_with(fresh, delete_user_cb=lambda user: user is not fresh)
    assert torch.equal(bio(x), expected)  # as in FX, an edited graph runs once it is compiled
    bio.recompile()
    assert not torch.equal(bio(x), expected)


def test_a_recompiled_graph_refuses_what_it_was_not_captured_for() -> None:
    bio = biofx.transform(nn.Linear(4, 2), example_inputs=torch.ones(3, 4))
    bio.recompile()
    bio(torch.ones(3, 4))
    with pytest.raises(ModelError, match=r"float32 tensor of shape \(3, 4\), and is called with"):
        bio(torch.ones(2, 4))


class DropsHalf(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.dropout(self.fc(x), 0.5, self.training)


@pytest.mark.parametrize("training", [True, False])
def test_a_recompiled_graph_refuses_the_other_mode(training: bool) -> None:
    bio = biofx.transform(DropsHalf().train(training), example_inputs=torch.ones(3, 4))
    bio.recompile()
    bio(torch.ones(3, 4))
    bio.train(not training)
    with pytest.raises(ModelError, match=r"was captured in \w+ mode, and is called in \w+ mode"):
        bio(torch.ones(3, 4))


def test_graphs_hold_custom_operators() -> None:
    @torch.library.custom_op("biofx_tests::scale", mutates_args=())
    def scale(x: torch.Tensor, k: float) -> torch.Tensor:
        return x * k

    @scale.register_fake
    def _(x, k):
        return torch.empty_like(x)

    x = torch.randn(2, 4)
    for inputs in (None, x):
        bio = biofx.transform(Scales(), example_inputs=inputs)
        again = pickle.loads(pickle.dumps(bio))
        assert torch.equal(again(x), bio(x))
        assert [n.target for n in again.graph.nodes] == [n.target for n in bio.graph.nodes]


class Scales(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x):
        return torch.ops.biofx_tests.scale(self.fc(x), 2.0)


class GraphNet(nn.Module):
    """The class has uses of its own for the names of a GraphModule."""

    def __init__(self) -> None:
        super().__init__()
        self.graph, self.fc = [(0, 1)], nn.Linear(4, 4)

    def code(self) -> str:
        return "mine"

    def forward(self, x):
        return self.fc(x) * len(self.graph)


def test_a_class_with_a_graph_of_its_own_keeps_it() -> None:
    bio = biofx.transform(GraphNet(), example_inputs=torch.ones(2, 4))
    assert not isinstance(bio, torch.fx.GraphModule)
    assert bio.graph == [(0, 1)]
    assert bio.code() == "mine"
    assert any(node.target == "fc" for node in biofx.info(bio).graph.nodes)
    for again in (copy.deepcopy(bio), pickle.loads(pickle.dumps(bio))):
        assert len(biofx.info(again).graph.nodes) == len(biofx.info(bio).graph.nodes)


NAMES = [
    'a"), getattr(__import__("os"), "system")("false"), getattr(self, "a', "back\\slash",
    "line\nbreak", "nul\0", "\udcff", "µ", "ﬁ", "None", "class", "5\" pipe", "\x1b[31m",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES, ids=ascii)
@pytest.mark.parametrize("inputs", [None, torch.ones(2, 4)], ids=["", "with example"])
def test_any_name_makes_valid_code(
    name: str, inputs: torch.Tensor | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[str] = []
    monkeypatch.setattr("os.system", ran.append)
    model = nn.ModuleDict({name: nn.Linear(4, 4), "a": nn.Linear(4, 4), "μ": nn.Linear(4, 4)})
    net = Named(model)
    x = torch.randn(2, 4)
    bio = biofx.transform(net, example_inputs=inputs)
    assert torch.equal(bio(x), net(x))
    built = torch.fx.GraphModule(bio, bio.graph) if "." not in name else bio
    bio.recompile()
    assert torch.equal(bio(x), net(x))
    assert torch.equal(built(x), net(x))
    assert torch.equal(copy.deepcopy(bio)(x), net(x))
    assert ran == []


class Named(nn.Module):
    def __init__(self, heads: nn.ModuleDict) -> None:
        super().__init__()
        self.heads = heads

    def forward(self, x):
        for head in self.heads.values():
            x = head(x)
        return x


# --- promise 4: the original is untouched


def snapshot(model: nn.Module) -> list:
    """Everything of a model that a transformation might touch."""
    seen = []
    for name, module in model.named_modules():
        held = {key: value for key, value in vars(module).items() if not key.startswith("_")}
        registries = [
            [(key, id(value)) for key, value in vars(module).get(registry, {}).items()]
            for registry in ("_parameters", "_buffers", "_modules", "_forward_hooks",
                             "_forward_pre_hooks", "_backward_hooks", "_state_dict_hooks")
        ]  # fmt: skip
        plain = {
            key: copy.copy(value) for key, value in held.items() if isinstance(value, list | dict)
        }
        ids = {key: id(value) for key, value in held.items()}
        seen.append((name, type(module), list(vars(module)), ids, plain, registries))
    return seen


@ALL
def test_original_is_untouched_and_shares_its_tensors(architecture: Architecture) -> None:
    model = make(architecture)
    before = snapshot(model)
    values = {name: buffer.clone() for name, buffer in model.named_buffers()}
    classes = {type(m): dict(vars(type(m))) for m in model.modules()}
    seed(3)
    inputs = architecture.inputs()
    state = torch.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        bio = biofx.transform(model, example_inputs=inputs)
    assert torch.equal(state, torch.get_rng_state())
    assert snapshot(model) == before
    assert {type(m): dict(vars(type(m))) for m in model.modules()} == classes
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, values[name]), name
    mine, theirs = dict(model.named_parameters()), dict(bio.named_parameters())
    assert list(mine) == list(theirs)
    assert all(mine[name] is theirs[name] for name in mine)
    shared = dict(bio.named_buffers())
    assert all(buffer is shared[name] for name, buffer in model.named_buffers())
    assert_same(
        run(make(architecture), architecture, train=True), run(model, architecture, train=True)
    )


@ALL
def test_in_place_is_the_same_object(architecture: Architecture) -> None:
    model = make(architecture)
    expected = run(make(architecture), architecture, train=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        bio = biofx.transform(model, inplace=True)
    assert bio is model
    assert_same(expected, run(bio, architecture, train=True))


def test_a_global_container_is_left_as_it_was() -> None:
    before = list(OrderedDict.items(ACTIVATIONS))
    biofx.transform(make(BY_NAME["global_factories"]))
    assert list(OrderedDict.items(ACTIVATIONS)) == before


class Settings:
    """Holds a module as an attribute."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module


# How to hide a module, and how to find it again.
HIDDEN: dict[str, tuple[Callable[[nn.Module], Any], Callable[[Any], Any]]] = {
    "list": (lambda teacher: [teacher], lambda held: held[0]),
    "tuple": (lambda teacher: (teacher,), lambda held: held[0]),
    "dict": (lambda teacher: {"ema": teacher}, lambda held: held["ema"]),
    "deque": (lambda teacher: deque([teacher]), lambda held: held[0]),
    "attribute": (lambda teacher: teacher, lambda held: held),
    "object": (Settings, lambda held: held.module),
    "method": (lambda teacher: teacher.forward, lambda held: held),
    "partial": (functools.partial, lambda held: held),
    "function": (lambda teacher: lambda x: teacher(x), lambda held: held),
}


class Hidden(nn.Module):
    """A teacher that `parameters()` does not show."""

    def __init__(self, way: str, teacher: nn.Module) -> None:
        super().__init__()
        self.student = nn.Linear(4, 2)
        hide, self.find = HIDDEN[way]
        object.__setattr__(self, "held", hide(teacher))

    def forward(self, x):
        return (self.student(x) - self.find(self.held)(x)).pow(2).mean()


def teacher_and_model(way: str) -> tuple[nn.Module, nn.Module]:
    teacher = nn.Sequential(nn.Linear(4, 2), nn.BatchNorm1d(2))
    return teacher, Hidden(way, teacher)


@pytest.mark.parametrize("inplace", [False, True], ids=["copy", "in place"])
@pytest.mark.parametrize("way", HIDDEN)
def test_modules_that_are_not_registered_share_their_tensors(way: str, inplace: bool) -> None:
    (teacher, model), x = teacher_and_model(way), torch.randn(3, 4)
    before = copy.deepcopy(teacher.state_dict())
    bio = biofx.transform(model, example_inputs=x, inplace=inplace)
    assert_equal_tensors(teacher.state_dict(), before)  # the run did not reach its statistics
    plain = biofx.plain(bio)
    with torch.no_grad():
        teacher[1].weight.mul_(0.5)
    expected = model(x)
    assert torch.equal(bio(x), expected)
    assert torch.equal(plain(x), expected)
    teacher.zero_grad()
    bio(x).backward()
    assert all(parameter.grad is not None for parameter in teacher.parameters())
    bio.recompile()
    assert torch.equal(bio(x), expected)


# A function that holds none of the registered modules is shared, as `copy.deepcopy` does.
@pytest.mark.parametrize("way", sorted(HIDDEN.keys() - {"function"}))
def test_a_deep_copy_has_hidden_modules_of_its_own(way: str) -> None:
    (teacher, model), x = teacher_and_model(way), torch.randn(3, 4)
    twin = copy.deepcopy(biofx.transform(model, example_inputs=x))
    expected = twin(x)
    with torch.no_grad():
        teacher[1].weight.mul_(0.5)
    assert torch.equal(twin(x), expected)


def assert_equal_tensors(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert list(found) == list(expected)
    assert all(torch.equal(value, expected[key]) for key, value in found.items())


# --- classes of every kind, and functions that hold modules


class Abstract(ABC, nn.Module):
    def __init__(self) -> None:
        super().__init__()
        nn.Module.__init__(self)
        self.f = nn.Linear(4, 4)

    def forward(self, x):
        return self.f(x).tanh()


T = TypeVar("T")


class Parametric(Generic[T], nn.Module):
    forward = Abstract.forward

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.f = nn.Linear(4, 4)


class Slotted:
    __slots__ = ()


class WithSlots(Slotted, nn.Module):
    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.f = nn.Linear(4, 4)

    forward = Abstract.forward


@pytest.mark.parametrize("kind", [Abstract, Parametric, WithSlots])
@pytest.mark.parametrize("inputs", [None, torch.ones(2, 4)], ids=["", "with example"])
def test_any_class_is_transformed(kind: type, inputs: torch.Tensor | None) -> None:
    for model in (kind(), nn.Sequential(kind(), nn.Linear(4, 2))):
        bio, x = biofx.transform(model, example_inputs=inputs), torch.randn(2, 4)
        assert isinstance(bio, type(model))
        assert torch.equal(bio(x), model(x))
        assert torch.equal(pickle.loads(pickle.dumps(bio))(x), model(x))
        assert torch.equal(copy.deepcopy(bio)(x), model(x))


def test_blocks_keep_their_class() -> None:
    bio = biofx.transform(nn.Sequential(*(Branches() for _ in range(4))))
    assert {type(block) for block in bio} == {Branches}
    assert len({type(block.fc) for block in bio}) == 1


class Holder(nn.Module):
    """Functions on the model hold its children."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.body = nn.ModuleDict({"up": nn.Linear(4, 8), "drop": nn.Dropout(0.5)})
        self.body["down"] = nn.Linear(8, 4)
        self.feats, body = {}, self.body
        run = lambda x: body["down"](body["drop"](body["up"](x).relu()))  # noqa: E731
        self.plain = [body["up"]]
        self.f = {
            "lambda": run,
            "default": lambda x, b=body: b["down"](b["drop"](b["up"](x).relu())),
            "partial": functools.partial(through, body),
            "nested": {"fs": [(run,)]},
            "method": body["up"].forward,
            "wrapper": logged(run),
        }[how]
        body["up"].register_forward_hook(lambda m, a, out: self.feats.update(up=out))

    def forward(self, x):
        f = self.f["fs"][0][0] if isinstance(self.f, dict) else self.f
        y = f(x)
        return y.mean() + self.feats.get("up", self.plain[0](x)).sum()


def through(body, x):
    return body["down"](body["drop"](body["up"](x).relu()))


def logged(function):
    @functools.wraps(function)
    def inner(*args):
        return function(*args)

    return inner


HELD = ["lambda", "default", "partial", "nested", "method", "wrapper"]


@pytest.mark.parametrize("how", HELD)
@pytest.mark.parametrize("copies", [1, 2])
def test_functions_on_a_copy_hold_the_copys_modules(how: str, copies: int) -> None:
    model, x = Holder(how), torch.randn(3, 4)
    expand = biofx.BioConfig(weight_splitting_Gamma=2, weight_splitting_mode="expand")
    bio = biofx.transform(model, expand, example_inputs=x)
    for _ in range(copies - 1):
        bio = copy.deepcopy(bio)
    bio.eval()
    assert torch.equal(bio(x), bio(x))  # its own dropout is off
    used = []
    bio.body["up"].register_forward_hook(lambda *_: used.append(1))
    bio(x).backward()
    assert how == "method" or used
    ids = {id(parameter) for parameter in bio.parameters()}
    assert [n for n, p in bio.named_parameters() if p.grad is None] == (
        ["body.down.weight", "body.down.bias"] if how == "method" else []
    )
    assert all(p.grad is None for p in model.parameters() if id(p) not in ids)
    if copies == 1:
        biofx.verify(bio, model, (x,))


HELD_GLOBALLY: nn.Module | None = None


def test_what_cannot_be_rebound_is_refused_by_name() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    model.f = functools.lru_cache(lambda: model[0])
    with pytest.raises(ModelError, match=r"attribute 'f' is a .* inplace=True"):
        biofx.transform(model)
    biofx.transform(model, inplace=True)
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    globals()["HELD_GLOBALLY"] = model[0]
    model.g = lambda x: HELD_GLOBALLY(x)
    with pytest.raises(ModelError, match=r"'g' .* global variable 'HELD_GLOBALLY'.*inplace=True"):
        biofx.transform(model)


def test_a_counter_in_a_closure_is_shared_as_before() -> None:
    model = nn.Sequential(nn.Linear(4, 2))
    model.get, model.put = counter()
    bio = biofx.transform(model)
    bio.put(5.0)
    assert model.get() == bio.get() == 5.0


@pytest.mark.parametrize("make_input", [torch.fx.symbolic_trace, "export"])
def test_graph_modules_are_transformed(make_input) -> None:
    model, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(3, 4)
    if make_input == "export":
        graph_module = torch.export.export(model, (x,)).module()
    else:
        graph_module = make_input(model)
    for inputs in (None, x):
        bio = biofx.transform(graph_module, example_inputs=inputs)
        assert torch.equal(bio(x), model(x))
        assert sorted(s.kind for s in biofx.info(bio).synapses.values()) == ["linear", "linear"]
        assert bio.graph is biofx.info(bio).graph
        assert "graph" not in biofx.plain(bio).__dict__
        assert biofx.plain(bio).graph is graph_module.graph
        for result in (bio, copy.deepcopy(bio)):
            result.recompile()
            result.recompile()
            assert torch.equal(result(x), model(x))
        again = biofx.transform(graph_module, example_inputs=inputs)
        assert torch.equal(again(x), graph_module(x))
        if make_input != "export":  # `torch.export` gives modules that cannot be pickled
            for result in (bio, again):
                once = pickle.loads(pickle.dumps(result))
                assert torch.equal(pickle.loads(pickle.dumps(once))(x), model(x))


def test_a_run_on_example_inputs_leaves_no_trace() -> None:
    class Counts(nn.Module):
        total = 0

        def __init__(self) -> None:
            super().__init__()
            self.fc, self.calls, self.cache = nn.Linear(4, 4), 0, []
            self.register_buffer("mean", torch.zeros(4))

        def forward(self, x):
            type(self).total += 1
            self.calls += 1
            y = self.fc(x)
            self.cache.append(y)
            self.mean.lerp_(y.detach().mean(0), 0.1)
            x.add_(1)
            if y.sum() > 1e9:
                raise ValueError
            print("never seen")  # noqa: T201
            return y

    model, x = Counts(), torch.randn(3, 4)
    before = x.clone()
    dtype = torch.get_default_dtype()
    biofx.transform(model, example_inputs=x)
    assert (Counts.total, model.calls, model.cache) == (0, 0, [])
    assert torch.equal(model.mean, torch.zeros(4))
    assert torch.equal(x, before)
    assert torch.get_default_dtype() is dtype
    assert torch.is_grad_enabled()


SEEN: list[Any] = []
SEEN_BY_NAME: dict[str, list[Any]] = {"here": []}
NORM = nn.BatchNorm1d(4)


class Seeing(nn.Linear):
    """Its class keeps what it has seen."""

    seen: ClassVar[deque[Any]] = deque(maxlen=3)


def closure() -> tuple[Callable[..., None], Callable[[], Any]]:
    seen: list[Any] = []
    return lambda *args: seen.append(args), lambda: seen


def variable() -> tuple[Callable[..., None], Callable[[], Any]]:
    count = 0

    def add(*_: Any) -> None:
        nonlocal count
        count += 1

    return add, lambda: count


def default() -> tuple[Callable[..., None], Callable[[], Any]]:
    seen: list[Any] = []

    def add(*args: Any, into: list[Any] = seen) -> None:
        into.append(args)

    return add, lambda: seen


def attribute() -> tuple[Callable[..., None], Callable[[], Any]]:
    def add(*_: Any) -> None:
        add.count += 1

    add.count = 0
    return add, lambda: add.count


def method() -> tuple[Callable[..., None], Callable[[], Any]]:
    class Keeper:
        def __init__(self) -> None:
            self.seen: deque[Any] = deque()

        def add(self, *args: Any) -> None:
            self.seen.append(args)

    keeper = Keeper()
    return keeper.add, lambda: keeper.seen


def statistics() -> tuple[Callable[..., None], Callable[[], Any]]:
    norm = nn.BatchNorm1d(4)
    return lambda module, args, output: norm(output), lambda: norm.num_batches_tracked.item()


KEEPERS: dict[str, Callable[[], tuple[Callable[..., Any], Callable[[], Any]]]] = {
    "closure": closure,
    "variable": variable,
    "default": default,
    "attribute": attribute,
    "method": method,
    "statistics": statistics,
    "global": lambda: (lambda *args: SEEN.append(args), lambda: SEEN),
    "nested": lambda: (lambda *args: SEEN_BY_NAME["here"].append(1), SEEN_BY_NAME["here"].copy),
    "class": lambda: (lambda module, *_: module.seen.append(1), Seeing.seen.copy),
    "global module": lambda: (
        lambda module, args, output: NORM(output),
        NORM.num_batches_tracked.item,
    ),
}


@pytest.mark.parametrize("inputs", [None, torch.ones(3, 4)], ids=["traced", "run"])
@pytest.mark.parametrize("where", KEEPERS)
def test_what_hooks_keep_is_left_as_it_was(where: str, inputs: Tensor | None) -> None:
    model = nn.Sequential(Seeing(4, 4), nn.Linear(4, 2))
    hook, kept = KEEPERS[where]()
    model[0].register_forward_hook(hook)
    before = copy.copy(kept())
    bio = biofx.transform(model, example_inputs=inputs)
    assert kept() == before
    bio(torch.ones(3, 4))  # the hook is the same on both
    assert kept() != before or where == "method"
    now = copy.copy(kept())
    if where in ("closure", "variable", "default", "attribute", "method", "statistics"):
        biofx.verify(bio, model, torch.ones(3, 4))
        assert kept() == now


class Remembers(nn.Module):
    """Keeps what it has computed."""

    def __init__(self, past: Any) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 2)
        self.past = past

    def forward(self, x: Tensor) -> Tensor:
        past = self.past["h"] if isinstance(self.past, dict) else self.past
        past.append(self.first(x).relu())
        return self.last(sum(past))


class Locked(list):  # type: ignore[type-arg]
    """Cannot be copied."""

    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()


@pytest.mark.parametrize("inputs", [None, torch.ones(3, 4)], ids=["traced", "run"])
@pytest.mark.parametrize(
    "make_past",
    [
        lambda: deque(maxlen=3),
        lambda: defaultdict(list),
        lambda: {"h": [], "lock": threading.Lock()},
    ],
    ids=["deque", "defaultdict", "dict with a lock"],
)
def test_containers_are_the_models_own(make_past: Callable[[], Any], inputs: Tensor | None) -> None:
    model = Remembers(make_past())
    model(torch.ones(3, 4))  # what it keeps is no leaf of autograd's
    bio = biofx.transform(model, example_inputs=inputs)
    assert torch.equal(bio(torch.ones(3, 4)), model(torch.ones(3, 4)))
    past, own = ((m.past["h"] if isinstance(m.past, dict) else m.past) for m in (model, bio))
    assert len(past) == len(own) == 2
    assert past is not own


@pytest.mark.parametrize("inputs", [None, torch.ones(3, 4)], ids=["traced", "run"])
def test_what_cannot_be_copied_is_an_assumption(inputs: Tensor | None) -> None:
    bio = biofx.transform(Remembers(Locked()), example_inputs=inputs)
    assert [a.what for a in biofx.info(bio).assumptions if a.kind == "shared"] == [
        "past is or holds a Locked, which cannot be copied"
    ]
    assert "cannot be copied" in str(biofx.diff(bio))


def test_capture_needs_no_memory_for_weights() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(10**5, 10**5), nn.Linear(10**5, 10**5))
    info = biofx.info(biofx.transform(model, example_inputs=torch.ones(2, 10**5)))
    assert info.whole
    assert info.wiring.outputs == ("1",)


@pytest.mark.parametrize("enabled", [True, False])
def test_garbage_collection_is_left_as_it_was(enabled: bool) -> None:
    (gc.enable if enabled else gc.disable)()
    try:
        biofx.transform(nn.Linear(2, 2))
        assert gc.isenabled() is enabled
        with pytest.raises(ModelError, match="no weight layer"):
            biofx.transform(nn.ReLU())
        assert gc.isenabled() is enabled
    finally:
        gc.enable()


def test_classes_of_graphs_go_with_their_models() -> None:
    class Own(nn.Sequential):
        pass

    bio = biofx.transform(Own(nn.Linear(2, 2)))
    bio.recompile()
    kinds = [weakref.ref(type(bio)), weakref.ref(Own)]
    del bio, Own
    gc.collect()
    assert [kind() for kind in kinds] == [None, None]


class Memory:
    """A cache: empty at first, filled by the run."""

    def __init__(self) -> None:
        self.seen: list[Tensor] = []


class Places(nn.Embedding):
    def forward(self, length: int, memory: Memory) -> Tensor:  # type: ignore[override]
        start = sum(part.shape[1] for part in memory.seen)
        return super().forward(torch.arange(start, start + length))


class Remembering(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.places = Places(20, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        memory = Memory()
        first = self.places(x.shape[1], memory)
        memory.seen.append(x)
        return self.head(x + first + self.places(x.shape[1], memory))


def test_an_object_is_recorded_as_it_was_when_it_was_used() -> None:
    model, x = Remembering(), torch.randn(2, 5, 4)
    bio = biofx.transform(model, example_inputs=x)
    expected = model(x)
    bio.recompile()
    assert torch.equal(bio(x), expected)


class Wrapped(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: nn.Module) -> Tensor:  # type: ignore[override]
        return layer(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return gradient, None


class Passing(nn.Module):
    """Hands a layer of its own to a function, as reversible networks do."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(Wrapped.apply(x, self.inner))


def test_a_module_as_an_argument_is_the_models_own() -> None:
    model, x = Passing(), torch.randn(2, 4)
    bio = biofx.transform(model, example_inputs=x)
    bio.recompile()
    with torch.no_grad():
        model.inner.weight.fill_(0.5)  # shared: a copy would not see it
        assert torch.equal(bio(x), model(x))
    bio.graph.lint()


class Filling(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, memory: Memory) -> Tensor:  # type: ignore[override]
        memory.seen.append(2 * x)
        return x + len(memory.seen)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return gradient, None


class Filled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(Filling.apply(x, Memory()))


def test_an_object_that_a_function_fills_is_recorded_as_it_was_before() -> None:
    model, x = Filled(), torch.randn(2, 4)
    bio = biofx.transform(model, example_inputs=x)
    bio.recompile()
    for _ in range(2):  # the first run fills an object of its own
        assert torch.equal(bio(x), model(x))


class Skipping(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(6))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            if not self.training or torch.rand(()) < 0.5:
                x = layer(x)
        return x


def test_branches_on_random_numbers_are_no_error_of_the_graph() -> None:
    model, x = Skipping(), torch.randn(2, 4)
    graphs = set()
    for start in range(4):
        torch.manual_seed(start)
        bio = biofx.transform(model, example_inputs=x)
        torch.manual_seed(9)
        graphs.add(biofx.verify(bio, model, x).graph)
    assert "not compared: with other random numbers the forward takes other branches" in graphs


class Counts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.calls = nn.Linear(4, 2), 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return self.fc(x) * self.calls


def test_a_counter_is_an_assumption() -> None:
    model = Counts()
    bio = biofx.transform(model, example_inputs=torch.ones(3, 4))
    (found,) = biofx.info(bio).assumptions
    assert (found.kind, found.what) == ("state", "the forward assigns calls; the graph does not")
    assert model.calls == 0


class Holds(nn.Module):
    """Keeps what its layer gives in an attribute of some kind."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.fc, self.kind, self.kept = nn.Linear(4, 2), kind, None
        self.past: Any = {"dict": {}, "list": [], "object": SimpleNamespace(h=None)}.get(kind)
        self.log = logging.getLogger(__name__)  # whose cache is no state of the model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.log.info("called")
        y = self.fc(x)
        if self.kind == "tensor":
            self.past = y
        elif self.kind == "tuple":
            self.past = (y, y + 1)
        elif self.kind == "dict":
            self.past["h"] = y
        elif self.kind == "list":
            self.past.append(y)
        elif self.kind == "object":
            self.past.h = y
        return y


@pytest.mark.parametrize("inputs", [torch.ones(3, 4), None], ids=["recorded", "traced"])
@pytest.mark.parametrize("kind", ["nothing", "tensor", "tuple", "dict", "list", "object"])
def test_what_the_forward_keeps_is_an_assumption(kind: str, inputs: Tensor | None) -> None:
    found = biofx.info(biofx.transform(Holds(kind), example_inputs=inputs)).assumptions
    expected = ["the forward assigns past; the graph does not"] if kind != "nothing" else []
    assert [a.what for a in found if a.kind == "state"] == expected


class BothEnds(nn.Module):
    """Holds the first and the last weight itself."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Parameter(torch.randn(8, 6)), nn.Parameter(torch.randn(3, 8))
        self.one, self.two = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        linear = nn.functional.linear
        return linear(self.two(self.one(linear(x, self.first).relu()).relu()).relu(), self.last)


def test_the_output_is_where_the_result_comes_from() -> None:
    found = biofx.info(biofx.transform(BothEnds(), example_inputs=torch.randn(4, 6)))
    assert found.wiring.outputs == ("",)
    assert found.synapses["last"].output
    assert not found.synapses["two.weight"].output


class Copies:
    """An object that says itself how it is copied."""

    def __init__(self) -> None:
        self.held = [1.0, [2.0]]

    def __deepcopy__(self, memo: dict[int, Any]) -> "Copies":
        fresh = Copies()
        fresh.held = copy.deepcopy(self.held, memo)
        return fresh


def test_what_is_freed_while_copying_leaves_no_copy_to_another_object() -> None:
    """An object that came to lie at its address would be taken for copied."""
    memo: dict[int, Any] = {}
    rebinder = Rebinder(memo, module=lambda m, _: m, tensor=lambda t: t, strict=True, apart=False)
    original = Copies()
    assert rebinder.copied(original, "state").held is not original.held
    alive = {id(value): value for value in memo[id(memo)]}
    assert set(memo) <= {id(memo), id(original), *alive}


def test_data_in_globals_are_no_burden(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are not the model's, but stand beside it in a script or a notebook."""
    deep: list[Any] = []
    inner = deep
    for _ in range(10_000):
        inner.append([])
        inner = inner[0]
    module = sys.modules[__name__]
    monkeypatch.setattr(module, "DEEP", deep, raising=False)
    monkeypatch.setattr(module, "LARGE", [[0.0] * 1000] * 2_000_000, raising=False)
    other = nn.Linear(2, 2)
    other.register_buffer("heads", torch.eye(3).to_sparse())
    with torch.inference_mode():
        other.register_buffer("frozen", torch.ones(3))
    monkeypatch.setattr(module, "OTHER", other, raising=False)
    model = nn.Sequential(Seeing(4, 4), nn.Linear(4, 2))
    model[0].register_forward_hook(lambda *args: SEEN.append(args))
    before = list(SEEN)
    tracemalloc.start()
    try:
        biofx.transform(model, example_inputs=torch.ones(3, 4))
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()
    assert before == SEEN


class Meeting(nn.Module):
    """Its forward waits until another thread is in one, too, or has given up."""

    def __init__(self, barrier: threading.Barrier) -> None:
        super().__init__()
        self.fc, self.barrier = nn.Linear(2, 2), [barrier]

    def forward(self, x: Tensor) -> Tensor:
        print("in the model")  # noqa: T201
        with contextlib.suppress(threading.BrokenBarrierError):
            self.barrier[0].wait(0.5)
        return self.fc(x)


def test_threads_that_capture_leave_the_streams_alone(capfd: pytest.CaptureFixture[str]) -> None:
    barrier = threading.Barrier(2)
    streams = sys.stdout, sys.stderr
    first, second = (
        threading.Thread(target=biofx.transform, args=(Meeting(barrier),)) for _ in range(2)
    )
    first.start()
    second.start()
    printed = 0
    while first.is_alive() or second.is_alive():
        print("beside it")  # noqa: T201
        printed += 1
        first.join(0.02)
    assert (sys.stdout, sys.stderr) == streams
    said = capfd.readouterr().out
    assert said.count("beside it") == printed > 2
    assert "in the model" not in said


class Cast(Tensor):
    """A class of tensors, as libraries have them to tell images from masks."""


class Casting(nn.Module):
    """Its activations are of another class for a while."""

    def __init__(self, cast: Callable[[Tensor, Any], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.cast = nn.Linear(4, 6), nn.Linear(6, 3), [cast]

    def forward(self, x: Tensor) -> Tensor:
        (cast,) = self.cast
        return cast(self.b(cast(self.a(x).relu(), Cast)), Tensor)


def test_casts_to_other_classes_of_tensors_are_recorded() -> None:
    model, x = Casting(lambda tensor, kind: tensor.as_subclass(kind)), torch.randn(2, 4)
    bio = biofx.transform(model, example_inputs=(x,))
    found = biofx.info(bio)
    assert (found.wiring.outputs, list(found.wiring.edges)) == (("b",), [("a", "b")])
    assert [unit.reason for unit in found.wiring.units] == [None, "they are a result of the model"]
    biofx.verify(bio, model, (x,))
    assert "as_subclass" not in vars(Tensor)


def test_what_was_computed_unseen_may_come_from_anywhere() -> None:
    """Under whatever name, the base class's own method is shown to nobody."""
    model, x = Casting(torch._C.TensorBase.as_subclass), torch.randn(2, 4)
    found = biofx.info(biofx.transform(model, example_inputs=(x,)))
    assert set(found.wiring.unknown) == {"a", "b"}
    assert all("unseen" in reason for reason in found.wiring.unknown.values())
    assert all(unit.reason for unit in found.wiring.units)
