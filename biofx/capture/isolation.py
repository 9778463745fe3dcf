"""Leaves the process as it was: what running a model once may move besides the model."""

import contextlib
import random
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import _disable_current_modes

from biofx.capture.namespaces import namespaces_kept
from biofx.quiet import quietly


@contextlib.contextmanager
def isolated(model: nn.Module) -> Iterator[None]:
    """Put back what code of a model may change while it runs for a capture.

    Random generators, global modes of PyTorch, and what the model's code keeps in globals and class
    attributes. Nothing is printed or warned.
    """
    # What is printed and warned of belongs to the user's own runs.
    with quietly(), _modes_kept(), namespaces_kept(model), generators_kept():
        yield


@contextlib.contextmanager
def _modes_kept() -> Iterator[None]:
    """Leaves PyTorch's global modes as they were."""
    default, gradients = torch.get_default_dtype(), torch.is_grad_enabled()
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    try:
        yield
    finally:
        torch.set_default_dtype(default)
        torch.set_grad_enabled(gradients)
        if (deterministic, warn_only) != (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
        ):  # setting it loads the compiler, which takes seconds
            torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)


def generator_state() -> dict[str, Any]:
    """State of every generator that a model may draw from."""
    state: dict[str, Any] = {"python": random.getstate(), "torch": torch.get_rng_state()}
    if torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state_all()
    if "numpy.random" in sys.modules:  # NumPy loads it when it is first used
        state["numpy"] = sys.modules["numpy"].random.get_state()
    return state


def same_state(one: Any, other: Any) -> bool:
    """Whether two states of a generator of the processor are the same."""
    if isinstance(one, torch.Tensor):
        with _disable_current_modes():  # of fake tensors: these are none
            return torch.equal(one, other)
    if isinstance(one[1], tuple):
        return bool(one == other)
    return bool((one[1] == other[1]).all()) and one[2:] == other[2:]


def restore_generators(state: Mapping[str, Any]) -> None:
    """Put the generators back to a state that `generator_state` gave."""
    random.setstate(state["python"])
    torch.set_rng_state(state["torch"])
    if "cuda" in state:
        torch.cuda.set_rng_state_all(state["cuda"])
    if "numpy" in state:
        sys.modules["numpy"].random.set_state(state["numpy"])


@contextlib.contextmanager
def generators_kept() -> Iterator[None]:
    """Leaves the generators as they were."""
    with _disable_current_modes():  # fake tensors, say: the states themselves are real
        state = generator_state()
    try:
        yield
    finally:
        with _disable_current_modes():
            restore_generators(state)
