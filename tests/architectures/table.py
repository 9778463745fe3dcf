"""The table of architectures: one entry a construct, filled by the `architecture` decorator."""

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

Inputs = Callable[[], tuple[tuple[Any, ...], dict[str, Any]]]


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """A small model with inputs that it accepts.

    `make()` builds a fresh module and `inputs()` gives fresh `(args, kwargs)`; both draw from the
    global generators, so call `seed` before each.
    """

    name: str
    make: Callable[[], nn.Module]
    inputs: Inputs
    tags: frozenset[str] = frozenset()

    def __str__(self) -> str:
        return self.name


ARCHITECTURES: list[Architecture] = []


def architecture(name: str, inputs: Inputs, *, tags: Iterable[str] = ()):
    """Register the decorated class, or function without arguments, as the `make` of an entry."""

    def register(make):
        if any(entry.name == name for entry in ARCHITECTURES):
            raise ValueError(f"two architectures are called {name!r}")
        entry = Architecture(name=name, make=make, inputs=inputs, tags=frozenset(tags))
        ARCHITECTURES.append(entry)
        return make

    return register


def seed(value: int = 0) -> None:
    """Seed the generators that the models draw from: torch's and Python's."""
    torch.manual_seed(value)
    random.seed(value)


def floats(*shapes: tuple[int, ...], grad: bool = True, **kwargs: Any) -> Inputs:
    """Inputs: one normal tensor a shape (the first requires grad if `grad`), and fixed kwargs."""

    def inputs():
        args = tuple(torch.randn(shape) for shape in shapes)
        args[0].requires_grad_(grad)
        return args, dict(kwargs)

    return inputs


def tokens(*shapes: tuple[int, ...], vocabulary: int = 16, **kwargs: Any) -> Inputs:
    """Inputs: one tensor of token ids a shape, and fixed kwargs."""
    return lambda: (tuple(torch.randint(vocabulary, shape) for shape in shapes), dict(kwargs))


def tensors_in(value: Any) -> list[Tensor]:
    """All tensors in nested tuples, lists, dicts, named tuples and dataclasses, in order."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    elif is_dataclass(value) and not isinstance(value, type):
        value = [getattr(value, field.name) for field in fields(value)]
    if isinstance(value, (tuple, list)):
        return [tensor for item in value for tensor in tensors_in(item)]
    return []


def loss_of(output: Any) -> Tensor:
    """Sum every floating tensor in `output`, weighted by a ramp.

    A plain sum would have no gradient behind a softmax or a normalisation.
    """
    total = torch.zeros((), dtype=torch.float64)
    for tensor in tensors_in(output):
        if tensor.is_complex():
            tensor = torch.view_as_real(tensor)
        if tensor.is_floating_point():
            ramp = torch.linspace(0.5, 1.5, tensor.numel(), dtype=total.dtype, device=tensor.device)
            total = total.to(tensor.device) + tensor.double().flatten() @ ramp
    return total
