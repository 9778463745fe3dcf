"""One way to write a model in a format."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from biofx.capture import Arguments


class Impossible(Exception):
    """This way does not work for this model; the message says why, in one line."""


@dataclass(frozen=True)
class Attempt:
    """One way to write a model in a format.

    Attributes:
        how: the way, for people.
        make: gives the file's content.
        run: loads the content and runs it on arguments; gives its results.
        exact: the same seed gives the same random numbers as in the model.
        branches: the file holds each way that the code can take.
        loose: another library computes, with functions of its own.
        notes: what whoever uses the file should know; complete once it is made.
    """

    how: str
    make: Callable[[], Any]
    run: Callable[[Any, Arguments], Any]
    exact: bool = False
    branches: bool = False
    loose: bool = False
    notes: Sequence[str] = ()


def one_line(error: BaseException, length: int = 300) -> str:
    """What an error says, in one line."""
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    text = " ".join(lines[:2]) if lines else ""
    return f"{type(error).__name__}: {text[:length]}".rstrip(":. ")
