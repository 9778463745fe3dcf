"""What the command is doing, on a terminal's stderr, while it takes time."""

from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn


class Steps:
    """The steps of a command, shown one at a time."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task: Any = None

    def __call__(self, what: str) -> None:
        """Begin a step."""
        if self._task is None:
            self._task = self._progress.add_task(what, total=None)
        self._progress.update(self._task, description=what)


@contextmanager
def steps() -> Iterator[Steps]:
    """Show a spinner with the current step; nothing where stderr is no terminal.

    What the user's code prints meanwhile goes to stderr: stdout is for the result.
    """
    console = Console(stderr=True)
    progress = Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal or console.is_dumb_terminal,
    )
    with progress, redirect_stdout(_stderr()):
        yield Steps(progress)


def _stderr() -> Any:
    import sys

    return sys.stderr
