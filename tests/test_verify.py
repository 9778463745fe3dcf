"""`verify` agrees where models agree, and names what differs first where they do not."""

import functools
import inspect
import os
import random
import re
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import biofx
from biofx.errors import ModelError, VerificationError
from biofx.verify.comparison import difference
from tests.architectures import Architecture, seed, with_tags
from tests.fidelity import assert_same, run

WEIGHTY = with_tags(without=("no_weights", "norms_only"))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x):
        return F.relu(self.fc(x)) * 2 + 1


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(), Block(), Block()])
        self.norm = nn.BatchNorm1d(8)
        self.drop = nn.Dropout(0.5)

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return self.drop(self.norm(x))


@pytest.fixture
def net() -> nn.Module:
    seed()
    return Net()


def x() -> torch.Tensor:
    seed(5)
    return torch.randn(4, 8)


@pytest.mark.parametrize("architecture", WEIGHTY[::3], ids=str)
def test_it_agrees_with_the_table(architecture: Architecture) -> None:
    seed()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = architecture.make()
        bio = biofx.transform(model)
        seed(1)
        found = biofx.verify(bio, model, architecture.inputs())
    assert found.exact
    assert found.outputs >= len(found.modes) >= 1


def test_the_report_counts_what_was_compared(net: nn.Module) -> None:
    found = biofx.verify(biofx.transform(net), net, x())
    assert found.modes == ("train", "eval")
    assert found.outputs == 2
    assert found.buffers == 6  # mean, variance and count, twice
    assert found.gradients == 2 * (8 + 1)  # parameters and the input
    assert found.graph == "not compared: it was captured without example inputs"
    assert str(found).startswith(
        "equal bit for bit in train and eval mode: 2 outputs, 18 gradients, 6 buffers"
    )


def test_it_leaves_everything_as_it_was(net: nn.Module) -> None:
    bio = biofx.transform(net)
    net.norm.eval()
    bio.blocks[1].eval()
    bio(x()).sum().backward()
    modes = [[m.training for m in model.modules()] for model in (net, bio)]
    grads = {name: (p.grad, p.grad.clone()) for name, p in net.named_parameters()}
    buffers = {name: (b, b.clone(), b._version) for name, b in net.named_buffers()}
    values = {name: (p, p.clone(), p._version) for name, p in net.named_parameters()}
    inputs = x()
    states = [random.getstate(), torch.get_rng_state(), [vars(m).keys() for m in bio.modules()]]
    numpy = sys.modules.get("numpy")
    drawn = numpy.random.get_state()[1].copy() if numpy else None
    with torch.no_grad():
        biofx.verify(bio, net, inputs)
    assert modes == [[m.training for m in model.modules()] for model in (net, bio)]
    for model in (net, bio):
        for name, p in model.named_parameters():
            grad, value = grads[name]
            assert p.grad is grad
            assert torch.equal(grad, value)
            assert p is values[name][0]
            assert p._version == values[name][2]
            assert torch.equal(p, values[name][1])
        for name, b in model.named_buffers():
            assert b is buffers[name][0]
            assert b._version == buffers[name][2]
            assert torch.equal(b, buffers[name][1])
    assert random.getstate() == states[0]
    assert torch.equal(torch.get_rng_state(), states[1])
    assert [vars(m).keys() for m in bio.modules()] == states[2]
    assert numpy is None or (numpy.random.get_state()[1] == drawn).all()
    assert inputs.grad is None
    assert not inputs.requires_grad


def test_the_first_differing_module_is_named(net: nn.Module) -> None:
    bio = biofx.transform(net)
    bio.blocks[1].forward = lambda value: F.gelu(bio.blocks[1].fc(value)) * 2 + 1
    with pytest.raises(VerificationError, match=r"in train mode, .*first at module 'blocks\.1'"):
        biofx.verify(bio, net, x())


def failing(value):
    raise RuntimeError("no")


def test_what_fails_is_told(net: nn.Module) -> None:
    bio = biofx.transform(net)
    bio.blocks[1].forward = failing
    with pytest.raises(
        VerificationError, match=r"it raises RuntimeError\('no'\); first at module 'blocks.1"
    ):
        biofx.verify(bio, net, x())


def test_a_wrong_graph_is_found(net: nn.Module) -> None:
    bio = biofx.transform(net, example_inputs=x())
    assert "graph: equal in train mode" in str(biofx.verify(bio, net, x()))
    next(node for node in bio.graph.nodes if node.target is F.relu).target = F.elu
    with pytest.raises(VerificationError, match="the graph does not compute what the forward"):
        biofx.verify(bio, net, x())
    bio = biofx.transform(net, example_inputs=x())
    assert "captured for x = float32 tensor of shape (4, 8)" in str(
        biofx.verify(bio, net, torch.randn(3, 8))
    )


def test_a_leaf_is_named(net: nn.Module) -> None:
    bio = biofx.transform(net)
    bio.drop.p = 0.25
    with pytest.raises(VerificationError, match="module 'drop'"):
        biofx.verify(bio, net, x())


def detached_relu(value, *args, **kwargs):
    return F.relu(value) + F.relu(value).detach() - F.relu(value).detach()


def halved_gradient(value, *args, **kwargs):
    return F.relu(value) * 0.5 + (F.relu(value) * 0.5).detach()


def test_a_wrong_gradient_is_found_where_it_arises(net: nn.Module) -> None:
    bio = biofx.transform(net)
    bio.blocks[1].forward = lambda value: halved_gradient(bio.blocks[1].fc(value)) * 2 + 1
    with pytest.raises(
        VerificationError, match=r"gradient of 'blocks\.1\.fc\.weight' \(and 3 more"
    ):
        biofx.verify(bio, net, x())


def test_a_wrong_buffer_is_found(net: nn.Module) -> None:
    bio = biofx.transform(net)
    bio.norm.momentum = 0.5
    with pytest.raises(VerificationError, match=r"buffers differ: \['norm.running_mean'\]"):
        biofx.verify(bio, net, x())


def test_a_difference_in_evaluation_mode_only(net: nn.Module) -> None:
    bio = biofx.transform(net)
    bio.norm.register_forward_hook(lambda m, a, out: out if m.training else out + 1e-6)
    with pytest.raises(VerificationError, match="in eval mode, outputs differ"):
        biofx.verify(bio, net, x())


def test_a_last_bit_is_a_difference() -> None:
    one = torch.tensor([1.0, 2.0])
    assert difference(one, one.clone()) is None
    assert difference(one, torch.nextafter(one, one + 1)) is not None
    assert difference(torch.tensor(0.0), torch.tensor(-0.0)) == "the signs of zeros differ"
    nan = torch.tensor([1.0, torch.nan])
    assert difference(nan, nan.clone()) is None
    assert "2 of 2" in str(difference({"a": (one, 3)}, {"a": (one + 1, 3)}))
    assert difference((one, 3), (one, 4)) == "[1]: 3 became 4"
    assert difference((one,), [one]) is not None
    assert difference(one, one.double()) == "dtype torch.float32 became torch.float64"
    assert difference(one, one.clone().requires_grad_()) is not None
    assert difference(torch.zeros(0), torch.zeros(0)) is None
    assert difference(one.to(torch.complex64), one.to(torch.complex64)) is None


def test_split_models() -> None:
    seed()
    model = nn.Sequential(nn.Linear(8, 12), nn.Tanh(), nn.Linear(12, 4))
    for mode, settings in (("group", {}), ("expand", {})):
        config = biofx.BioConfig(weight_splitting_Gamma=3, weight_splitting_mode=mode, **settings)
        bio = biofx.transform(model, config)
        if mode == "group":
            with pytest.raises(VerificationError, match=r"on purpose .*: 0; .*expand"):
                biofx.verify(bio, model, x())
        else:
            found = biofx.verify(bio, model, x())
            assert not found.exact
            assert 0 < found.tolerance < 0.01
            assert "to rounding" in str(found)
            with torch.no_grad():
                bio[0].weight[0, 0] += 0.5
            with pytest.raises(VerificationError, match=r"'0\.weight' .* not the same"):
                biofx.verify(bio, model, x())


def test_what_cannot_be_compared(net: nn.Module) -> None:
    bio = biofx.transform(net)
    with pytest.raises(ModelError, match="was not made by"):
        biofx.verify(net, net, x())
    with pytest.raises(ModelError, match="original, untransformed"):
        biofx.verify(bio, biofx.transform(net), x())
    with pytest.raises(ModelError, match="example_inputs"):
        biofx.verify(bio, net, None)
    with pytest.raises(ModelError, match="does not run on these inputs"):
        biofx.verify(bio, net, torch.randn(4, 9))
    inplace = biofx.transform(Net(), inplace=True)
    with pytest.raises(ModelError, match="in place"):
        biofx.verify(inplace, inplace, x())
    with pytest.raises(VerificationError, match=r"'blocks\.0\.fc\.weight' .* not the same"):
        biofx.verify(bio, Net(), x())


def test_a_graph_of_another_draw_is_not_compared() -> None:
    class Skips(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x):
            return self.fc(x) * random.random()

    model, inputs = Skips(), torch.randn(3, 4)
    random.seed(1)
    bio = biofx.transform(model, example_inputs=inputs)
    random.seed(2)
    report = biofx.verify(bio, model, inputs)
    assert report.graph == "not compared: numbers were drawn from the generator of python"


def test_wrapped_and_compiled_models_are_looked_through(net: nn.Module) -> None:
    bio = torch.compile(biofx.transform(net), backend="eager")
    assert biofx.verify(bio, net, x()).exact


class Twice(nn.Module):
    """Fails in evaluation mode."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x):
        if not self.training:
            raise NotImplementedError("training only")
        return self.fc(x)


def test_a_mode_in_which_the_original_fails_is_noted() -> None:
    model = Twice()
    found = biofx.verify(biofx.transform(model), model, x())
    assert found.modes == ("train",)
    assert "eval mode both raise" in str(found)


def test_inputs_changed_in_place_are_compared() -> None:
    class Adds(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(8, 8)

        def forward(self, x):
            x += 1
            return self.fc(x)

    model = Adds()
    bio = biofx.transform(model)
    assert biofx.verify(bio, model, x()).exact
    bio.forward = lambda value: bio.fc(value + 1)
    with pytest.raises(VerificationError, match="arguments"):
        biofx.verify(bio, model, x())


def test_it_runs_on_copies_that_work(net: nn.Module) -> None:
    """Verification tells nothing about the models if its copies behave otherwise."""
    architecture = Architecture(name="net", make=Net, inputs=lambda: ((x(),), {}))
    bio = biofx.transform(net)
    biofx.verify(bio, net, x())
    seed()
    assert_same(run(Net(), architecture, train=True), run(bio, architecture, train=True))


def test_a_mode_in_which_the_original_differs_from_itself_is_left_out() -> None:
    class Unsteady(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(8, 8)

        def forward(self, x):
            noise = int.from_bytes(os.urandom(4), "big") if self.training else 0
            return self.fc(x) * noise

    model = Unsteady()
    found = biofx.verify(biofx.transform(model), model, x())
    assert found.modes == ("eval",)
    assert found.notes == ("in train mode the original itself does not repeat its result",)


def test_drawing_other_random_numbers_is_a_difference(net: nn.Module) -> None:
    bio = biofx.transform(net)
    bio.register_forward_hook(lambda *_: torch.rand(1) and None)
    with pytest.raises(VerificationError, match="in train mode, it draws other random numbers"):
        biofx.verify(bio, net, x())


class Ensemble(nn.Module):
    """Its graph has a product of batches, which rounds otherwise."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.out = nn.Parameter(torch.randn(3, 8, 8)), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.vmap(lambda w: nn.functional.linear(x, w))(self.w).mean(0))


def test_a_graph_that_rounds_otherwise_is_said_to() -> None:
    torch.manual_seed(0)
    model, x = Ensemble(), torch.randn(64, 8)
    bio = biofx.transform(model, example_inputs=x)
    assert "graph: equal to rounding in train mode" in str(biofx.verify(bio, model, x))


def hooked(register: str) -> nn.Module:
    """A layer with a hook on its gradients that halves them."""
    seed()
    model = nn.Sequential(nn.Linear(8, 8), nn.Sequential(nn.Linear(8, 4), nn.Tanh()))
    hook = {
        "register_full_backward_hook": lambda module, inputs, outputs: (inputs[0] / 2,),
        "register_full_backward_pre_hook": lambda module, outputs: (outputs[0] / 2,),
    }[register]
    getattr(model[1][0], register)(hook)
    return model


HOOKS = ["register_full_backward_hook", "register_full_backward_pre_hook"]


def assert_same_gradients_recompiled(bio: nn.Module, model: nn.Module) -> None:
    model(x()).sum().backward()
    expected = [parameter.grad.clone() for parameter in model.parameters()]
    bio.zero_grad()
    bio.recompile()
    bio(x()).sum().backward()
    assert difference(expected, [parameter.grad for parameter in bio.parameters()]) is None


@pytest.mark.parametrize("register", HOOKS)
def test_the_graph_calls_the_backward_hooks_of_layers(register: str) -> None:
    model = hooked(register)
    bio = biofx.transform(model, example_inputs=x())
    assert biofx.verify(bio, model, x()).graph == "equal in train mode"
    assert_same_gradients_recompiled(bio, model)


@pytest.mark.parametrize("register", HOOKS)
def test_a_graph_without_the_hooks_of_a_module_is_not_made_the_forward(register: str) -> None:
    model = hooked(register)
    getattr(model[1], register)(lambda *_: None)
    bio = biofx.transform(model, example_inputs=x())
    found = biofx.verify(bio, model, x())
    assert found.graph.endswith("but for gradients: it does not call the backward hooks of '1'")
    with pytest.raises(ModelError, match="does not call the backward hooks of '1', so that"):
        bio.recompile()
    bio(x()).sum().backward()


class HooksTensor(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        if y.requires_grad:
            y.register_hook(torch.tanh)
        return self.last(y)


def test_a_hook_on_a_tensor_is_an_assumption() -> None:
    model = HooksTensor()
    bio = biofx.transform(model, example_inputs=x())
    [assumption] = biofx.info(bio).assumptions
    assert assumption.kind == "hook"
    assert "a hook on a tensor (test_verify.py:" in biofx.verify(bio, model, x()).graph
    with pytest.raises(ModelError, match="a hook on a tensor"):
        bio.recompile()


class Recomputing(HooksTensor):
    """Its checkpoint runs without gradients, and then again with them, in the backward pass."""

    def forward(self, x: Tensor) -> Tensor:
        def inside(y: Tensor) -> Tensor:
            with torch.no_grad():
                scale = y.square().mean()
            return self.last(y).tanh() / scale

        return checkpoint(inside, self.first(x), use_reentrant=True)


@pytest.mark.parametrize("inputs", [None, x()], ids=["", "with example"])
def test_a_graph_has_the_gradients_of_what_is_recomputed(inputs: Tensor | None) -> None:
    model = Recomputing()
    bio = biofx.transform(model, example_inputs=inputs)
    biofx.verify(bio, model, x())
    assert_same_gradients_recompiled(bio, model)


class StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.sign()

    @staticmethod
    def backward(ctx, gradient):
        return gradient


class Binary(HooksTensor):
    def forward(self, x: Tensor) -> Tensor:
        return self.last(StraightThrough.apply(self.first(x)))


def test_a_graph_without_a_backward_is_not_made_the_forward() -> None:
    model = Binary()
    bio = biofx.transform(model)
    [assumption] = biofx.info(bio).assumptions
    assert assumption.kind == "backward"
    assert re.fullmatch(r"test_verify.py:\d+: StraightThrough has a backward .*", str(assumption))
    with pytest.raises(ModelError, match="does not call the backward of an autograd function"):
        bio.recompile()
    bio = biofx.transform(model, example_inputs=x())
    assert biofx.verify(bio, model, x()).graph == "equal in train mode"
    assert not biofx.info(bio).assumptions
    bio.recompile()


class BinaryBefore(HooksTensor):
    """Holds the method that applies its function, as networks of spiking neurons do."""

    def __init__(self, apply: Any) -> None:
        super().__init__()
        self.binary = apply

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.binary(self.first(x)))


# What PyTorch 2.14 writes in C, and 2.13 calls from Python.
IN_C = vars(torch._C._FunctionBase)["apply"].__get__(None, StraightThrough)


@pytest.mark.parametrize("inputs", [None, x()], ids=["", "with example"])
@pytest.mark.parametrize("apply", [StraightThrough.apply, IN_C], ids=["Python", "C"])
def test_an_autograd_function_that_was_taken_hold_of_is_seen(
    apply: Any, inputs: Tensor | None
) -> None:
    if inputs is None and not inspect.ismethod(apply):
        pytest.skip("without a run, nothing shows what C calls")
    model = BinaryBefore(apply)
    bio = biofx.transform(model, example_inputs=inputs)
    biofx.verify(bio, model, x())
    if inputs is not None and inspect.ismethod(apply):
        assert_same_gradients_recompiled(bio, model)
    else:
        with pytest.raises(ModelError, match="does not call the backward of an autograd function"):
            bio.recompile()


class LinearOfBinary(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return IN_C(super().forward(x))


def test_the_graph_calls_layers_whose_forward_ends_in_an_autograd_function() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(LinearOfBinary(8, 8), nn.Linear(8, 4))
    bio = biofx.transform(model, example_inputs=x())
    assert biofx.verify(bio, model, x()).graph == "equal in train mode"
    assert_same_gradients_recompiled(bio, model)


class Iterated(torch.autograd.Function):
    """Calls a function some times, and keeps nothing for the backward pass but its last input."""

    @staticmethod
    def forward(ctx, function, x, *weights):
        ctx.function = function
        for _ in range(3):
            ctx.save_for_backward(x, *weights)
            x = function(x)
        return x

    @staticmethod
    def backward(ctx, gradient):
        x, *weights = ctx.saved_tensors
        with torch.enable_grad():
            last = ctx.function(x.detach().requires_grad_())
        return None, None, *torch.autograd.grad(last, weights, gradient)


class Iterates(nn.Module):
    def __init__(self, made: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.cell = nn.Sequential(nn.Linear(8, 8), nn.Tanh())
        self.last = nn.Linear(8, 4)
        self.made = made

    def forward(self, x: Tensor) -> Tensor:
        return self.last(Iterated.apply(self.made(self.cell), x, *self.cell.parameters()))


@pytest.mark.parametrize(
    "made",
    [
        lambda cell: lambda z: cell(z),
        lambda cell: cell.forward,
        lambda cell: functools.partial(nn.Module.__call__, cell),
        lambda cell: nn.Sequential(cell),
    ],
    ids=["closure", "method", "partial", "module"],
)
def test_the_graph_holds_no_function_of_one_run(made: Any) -> None:
    model = Iterates(made)
    bio = biofx.transform(model, example_inputs=x())
    assert [a.kind for a in biofx.info(bio).assumptions] == ["backward"]
    assert {node.target for node in bio.graph.find_nodes(op="call_module")} >= {"cell.0", "last"}
    biofx.verify(bio, model, x())
    with pytest.raises(ModelError, match="does not call the backward of an autograd function"):
        bio.recompile()


def test_an_autograd_function_that_is_given_a_module_of_the_model_is_called() -> None:
    model = Iterates(lambda cell: cell)
    bio = biofx.transform(model, example_inputs=x())
    assert not biofx.info(bio).assumptions
    assert_same_gradients_recompiled(bio, model)


class EndsInBinary(BinaryBefore):
    def forward(self, x: Tensor) -> Tensor:
        return self.binary(self.first(x))


def test_verify_agrees_where_the_graph_lets_no_gradient_pass() -> None:
    model = EndsInBinary(IN_C)
    bio = biofx.transform(model, example_inputs=x())
    found = biofx.verify(bio, model, x())
    assert "but for gradients: it does not call the backward of an autograd function" in found.graph


class Yields(HooksTensor):
    def forward(self, x: Tensor) -> Iterator[Tensor]:
        y = self.first(x)
        yield y
        yield self.last(y)


def test_what_only_an_iteration_runs_is_said_not_to_be_compared() -> None:
    model = Yields()
    [note] = biofx.verify(biofx.transform(model, example_inputs=x()), model, x()).notes
    assert note == "iterators in outputs are not compared: they run when iterated"


class Detaching(HooksTensor):
    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x))


def test_a_graph_with_other_gradients_is_found() -> None:
    model = Detaching()
    bio = biofx.transform(model, example_inputs=x())
    [node] = [node for node in bio.graph.nodes if node.target == "last"]
    with bio.graph.inserting_before(node):
        node.args = (bio.graph.call_method("detach", node.args),)
    with pytest.raises(VerificationError, match=r"graph does not compute .* gradient of 'first"):
        biofx.verify(bio, model, x())


def test_an_expanded_model_that_was_trained() -> None:
    """Its weights are no longer the original's, although the model is the right one."""
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    config = biofx.BioConfig(weight_splitting_Gamma=2, weight_splitting_mode="expand")
    bio = biofx.transform(model, config)
    x = torch.rand(3, 4)
    optimizer = torch.optim.SGD(bio.parameters(), lr=0.1)
    bio(x).sum().backward()
    optimizer.step()
    with pytest.raises(biofx.VerificationError, match="before training, which moves"):
        biofx.verify(bio, model, x)
    bio.load_state_dict(model.state_dict())  # as the message says
    biofx.verify(bio, model, x)
