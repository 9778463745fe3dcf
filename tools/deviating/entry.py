"""One deviation: what it is, and how it is measured in both packages."""

from collections.abc import Callable
from dataclasses import dataclass

SHOWN = 120  # characters of an error's message


@dataclass(frozen=True)
class Measured:
    """One line of Markdown for each of the two."""

    package: str
    biofx: str


@dataclass(frozen=True)
class Entry:
    name: str
    title: str
    what: str
    run: Callable[[], Measured]


def raised(call: Callable[[], object]) -> str:
    """The first line of what a call raises, as Markdown; "nothing" if it runs."""
    try:
        call()
    except Exception as error:
        message = (str(error).strip().splitlines() or [""])[0].rstrip(": ")
        shown = message if len(message) <= SHOWN else f"{message[:SHOWN]}…"
        return f"`{type(error).__name__}: {shown}`"
    return "nothing is raised"
