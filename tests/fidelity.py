"""Runs a model and keeps what came of it, to be compared bit for bit. Knows nothing of biofx."""

import warnings
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from tests.architectures import Architecture, loss_of, seed, tensors_in


@dataclass
class Outcome:
    """What one run gave and left behind."""

    output: Any
    inputs: list[Tensor] = field(default_factory=list)
    input_gradients: list[Tensor | None] = field(default_factory=list)
    gradients: dict[str, Tensor | None] = field(default_factory=dict)
    buffers: dict[str, Tensor] = field(default_factory=dict)
    random: Tensor = field(default_factory=lambda: torch.empty(0))


def run(model: nn.Module, architecture: Architecture, *, train: bool, draw: int = 1) -> Outcome:
    """One forward and backward in a mode, from a fixed state of the generators."""
    seed(draw)
    args, kwargs = architecture.inputs()
    model.train(train)
    return run_on(model, args, kwargs)


def run_on(model: nn.Module, args: Any, kwargs: Any) -> Outcome:
    """One forward and backward in the mode that the model is in."""
    inputs = tensors_in((args, kwargs))
    model.zero_grad()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        output = model(*args, **kwargs)
        loss = loss_of(output)
        if loss.requires_grad:
            loss.backward()
    return Outcome(
        output=output,
        inputs=[t.detach().clone() for t in inputs],
        input_gradients=[t.grad for t in inputs],
        gradients={n: None if p.grad is None else p.grad.clone() for n, p in _named(model)},
        buffers={name: buffer.clone() for name, buffer in model.named_buffers()},
        random=torch.get_rng_state(),
    )


def _named(model: nn.Module):
    return model.named_parameters(remove_duplicate=False)


def assert_same(expected: Outcome, found: Outcome, why: str = "") -> None:
    """All of the two outcomes is equal, bit for bit."""
    assert_equal(expected.output, found.output, f"{why} output")
    assert_equal(expected.inputs, found.inputs, f"{why} inputs afterwards")
    assert_equal(expected.input_gradients, found.input_gradients, f"{why} input gradients")
    assert_equal(expected.gradients, found.gradients, f"{why} gradients")
    assert_equal(expected.buffers, found.buffers, f"{why} buffers")
    assert_equal(expected.random, found.random, f"{why} random state")


def assert_equal(expected: Any, found: Any, why: str) -> None:
    """Nested values of one structure with equal tensors."""
    if isinstance(expected, Tensor):
        assert isinstance(found, Tensor), why
        assert expected.dtype == found.dtype, why
        assert expected.shape == found.shape, why
        assert expected.requires_grad == found.requires_grad, why
        same = torch.allclose(expected, found, rtol=0, atol=0, equal_nan=True)
        assert same, f"{why}: {(expected != found).sum()} of {expected.numel()} elements differ"
        return
    assert type(expected) is type(found), why
    if isinstance(expected, dict):
        assert list(expected) == list(found), why
        expected, found = list(expected.values()), list(found.values())
    if isinstance(expected, list | tuple):
        assert len(expected) == len(found), why
        for i, (mine, theirs) in enumerate(zip(expected, found, strict=True)):
            assert_equal(mine, theirs, f"{why}[{i}]")
        return
    mine, theirs = tensors_in(expected), tensors_in(found)
    assert len(mine) == len(theirs), why
    if mine:
        assert_equal(mine, theirs, why)
    elif type(expected).__eq__ is not object.__eq__:
        assert expected == found, why
