"""Promises 1 to 4 over the whole table: faithful, total, nothing silent, original untouched."""

import copy
import functools
import gc
import inspect
import random
import warnings
import weakref
from collections import OrderedDict
from collections.abc import Callable

import numpy
import pytest
import torch
from hypothesis import given, settings
from torch import nn

import biofx
from biofx.capture import Captured
from biofx.errors import ModelError
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


# --- promise 2: total


# Opaque for a reason that stands, though plain FX would trace through. FX inlines a child's code
# in its parent's graph; here each module has a graph of its own, under its own name.
STILL_PYTHON = {
    "instance_forward": "its forward is replaced on the instance",
    "weak_parent_reference": "calls a Linear that is not one of its submodules",
    "hidden_parent_reference": "calls a Linear that is not one of its submodules",
}
OUTSIDE_GRAPHS = {"unused_layers"}  # layers that nothing calls


@pytest.mark.parametrize(
    "architecture", with_tags("captured", without=("no_weights", "norms_only")), ids=str
)
def test_what_fx_alone_captures_has_no_opaque_module(architecture: Architecture) -> None:
    _, bio = once(architecture)
    info = biofx.info(bio)
    if architecture.name in STILL_PYTHON:
        assert STILL_PYTHON[architecture.name] in info.opaque.values()
        return
    assert info.opaque == {}
    assert isinstance(bio, torch.fx.GraphModule)
    assert info.weights_in_graphs == 1 or architecture.name in OUTSIDE_GRAPHS


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
def test_every_module_without_a_graph_has_a_reason(architecture: Architecture) -> None:
    _, bio = once(architecture)
    opaque = biofx.info(bio).opaque
    assert all(reason.strip() for reason in opaque.values())
    for name, module in bio.named_modules():
        own = type(module).__module__.startswith("tests.")
        calls = vars(type(module)).get("forward", nn.Module.forward) is not nn.Module.forward
        if own and calls and not isinstance(module, Captured):
            assert name in opaque, f"{name} ({type(module).__name__}) is Python without a word"


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


@pytest.mark.parametrize("name", ["child_named_self", "dict_dataclass_output", "jit_isinstance"])
def test_what_fx_alone_gets_wrong_has_a_graph(name: str) -> None:
    _, bio = once(BY_NAME[name])
    assert biofx.info(bio).opaque == {}


def test_a_global_container_is_left_as_it_was() -> None:
    before = list(OrderedDict.items(ACTIVATIONS))
    biofx.transform(make(BY_NAME["global_factories"]))
    assert list(OrderedDict.items(ACTIVATIONS)) == before


class Jitter(nn.Module):
    """Scales its output by a number from a generator of Python's."""

    def __init__(self, draw):
        super().__init__()
        self.inner, self.draw = nn.Sequential(nn.Linear(2, 2), nn.ReLU()), draw

    def forward(self, x):
        return self.inner(x) * self.draw()


@pytest.mark.parametrize(
    ("start", "draw"),
    [(random.seed, random.random), (numpy.random.seed, lambda: numpy.random.rand())],
    ids=["python", "numpy"],
)
@pytest.mark.parametrize("inputs", [None, torch.ones(3, 2)], ids=["", "with example"])
def test_only_who_draws_in_python_is_blamed(
    start: Callable[[int], None], draw: Callable[[], float], inputs: torch.Tensor | None
) -> None:
    model = nn.Sequential(nn.Linear(2, 2), Jitter(draw), nn.Sequential(nn.Linear(2, 2)))
    start(0)
    expected = draw()
    start(0)
    bio = biofx.transform(model, example_inputs=inputs)
    assert draw() == expected  # the generator is where it was
    assert biofx.info(bio).opaque == {"1": "draws random numbers in Python"}
    assert [isinstance(bio[place], Captured) for place in range(3)] == [False, False, True]
    assert isinstance(bio, Captured)
    assert isinstance(bio[1].inner, Captured)


def test_blocks_alike_have_code_of_their_own() -> None:
    """`torch.compile` keeps what it makes by code object, up to some limit for each."""
    bio = biofx.transform(nn.Sequential(*(nn.Sequential(nn.Linear(2, 2)) for _ in range(3))))
    codes = {id(type(block).forward.__code__): inspect.getsource(type(block).forward)
             for block in bio}  # fmt: skip
    assert len(codes) == 3
    assert set(codes.values()) == {bio[0].code.strip() + "\n"}


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
    bio = biofx.transform(nn.Sequential(nn.Sequential(nn.Linear(2, 2)), nn.Linear(2, 2)))
    kinds = [weakref.ref(type(module)) for module in (bio, bio[0])]
    del bio
    gc.collect()
    assert [kind() for kind in kinds] == [None, None]
