"""One model of the zoo."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Entry:
    """A model and what it is called with.

    Attributes:
        name: as the table shows it; unique within its library.
        make: gives the model with random weights.
        inputs: gives example inputs, in a form that `biofx.transform` takes.
        note: what the reader should know about the row.
    """

    name: str
    make: Callable[[], nn.Module]
    inputs: Callable[[], Any]
    note: str = ""


def images(size: int = 32, channels: int = 3, count: int = 2) -> Tensor:
    return torch.randn(count, channels, size, size)


def tokens(length: int = 12, vocabulary: int = 99, count: int = 2) -> Tensor:
    return torch.randint(3, vocabulary, (count, length))
