"""One way to write a model in a format."""

import contextlib
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from biofx.capture import Arguments


class Impossible(Exception):
    """This way does not work for this model; the message says why, in one line."""


class DataDependent(Impossible):
    """The model's code decides by a value that only a run knows."""


class Refused(Impossible):
    """What was made does not run on the inputs."""


@dataclass(frozen=True)
class Attempt:
    """One way to write a model in a format.

    Attributes:
        how: the way, for people.
        make: gives the file's content.
        load: gives what the content computes, as a function of arguments that may keep a state.
        exact: the same seed gives the same random numbers as in the model.
        branches: the file holds each way that the code can take.
        loose: another library computes, with functions of its own.
        notes: what whoever uses the file should know; complete once it is made.
    """

    how: str
    make: Callable[[], Any]
    load: Callable[[Any], Callable[[Arguments], Any]]
    exact: bool = False
    branches: bool = False
    loose: bool = False
    notes: Sequence[str] = ()


def doubled(given: Arguments, dim: int = 0) -> Arguments:
    """The same, and as many entries again, along a dimension of each tensor that has it."""

    def more(value: Any) -> Any:
        if not isinstance(value, Tensor) or value.dim() <= dim:
            return value
        # Other numbers, if they are no indices: a mean over copies would be the same.
        again = value / 2 if value.is_floating_point() else value
        return torch.cat([value, again], dim)

    return Arguments(*pytree.tree_map(more, (given.args, dict(given.kwargs))))


@contextlib.contextmanager
def without_logs() -> Iterator[None]:
    """Keeps PyTorch from logging what is about its own operators, or is said in the notes."""
    logger = logging.getLogger("torch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def one_line(error: BaseException, length: int = 300) -> str:
    """What an error says, in one line."""
    plain = re.sub(r"\x1b\[[\d;]*m", "", str(error))  # without colours
    lines = [line.strip() for line in plain.strip().splitlines() if line.strip()]
    text = " ".join(lines[:2]) if lines else ""
    return f"{type(error).__name__}: {text[:length]}".rstrip(":. ")
