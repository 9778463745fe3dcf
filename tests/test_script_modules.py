"""Models that hold a part which TorchScript has compiled."""

import copy
import warnings

import pytest
import torch
from torch import Tensor, nn

import biofx


class Net(nn.Module):
    """The middle is compiled code, whose tensors live outside of Python."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 8)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=r"`torch\.jit\.\w+` is deprecated")
            self.middle = torch.jit.script(nn.Sequential(nn.Linear(8, 8), nn.ReLU()))
        self.out = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.middle(self.first(x)))


def gradients(model: nn.Module, x: Tensor) -> dict[str, Tensor | None]:
    model.zero_grad()
    model(x).square().sum().backward()
    return {name: p.grad for name, p in model.named_parameters()}


@pytest.fixture
def x() -> Tensor:
    return torch.randn(4, 8)


@pytest.mark.parametrize("given", [False, True])
def test_verify_takes_it(x: Tensor, given: bool) -> None:
    model = Net()
    biofx.verify(biofx.transform(model, example_inputs=x if given else None), model, x)


def test_it_is_one_node_of_the_graph(x: Tensor) -> None:
    model = Net()
    bio = biofx.transform(model, example_inputs=x)
    called = [node.target for node in bio.graph.find_nodes(op="call_module")]
    assert called == ["first", "middle", "out"]
    first = next(p for p in biofx.info(bio).wiring.units if p.layer == "first")
    assert not first.readers
    assert first.reason is not None


def test_the_graph_trains_it(x: Tensor) -> None:
    model = Net()
    expected = gradients(model, x)
    bio = biofx.transform(model, example_inputs=x)
    bio.recompile()
    torch.testing.assert_close(gradients(bio, x), expected)
    with torch.no_grad():
        for parameter in bio.parameters():
            parameter.mul_(2)
    assert torch.equal(bio(x), model(x))


def test_a_copy_is_apart(x: Tensor) -> None:
    bio = biofx.transform(Net(), example_inputs=x)
    expected = gradients(bio, x)
    bio.zero_grad()
    twin = copy.deepcopy(bio)
    torch.testing.assert_close(gradients(twin, x), expected)
    assert all(p.grad is None for p in bio.parameters())
