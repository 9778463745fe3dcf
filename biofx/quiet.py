"""Runs of foreign code that are to be neither seen nor disturbed: a capture, an optimizer's trial.

What they replace, the streams of the process and the filters of warnings among it, is there once
for all threads. So they take turns: two that overlap would each put back what the other has put
there, and the process would print into nowhere from then on.
"""

import contextlib
import sys
import threading
import warnings
from collections.abc import Iterator
from typing import Any

_TURN = threading.RLock()


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """One thread at a time; what it prints or warns of is dropped, what others print is not."""
    with (
        _TURN,
        warnings.catch_warnings(),
        contextlib.redirect_stdout(_Muted(sys.stdout)),
        contextlib.redirect_stderr(_Muted(sys.stderr)),
    ):
        warnings.simplefilter("ignore")
        yield


class _Muted:
    """A stream that drops what the thread writes that has made it."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._thread = threading.get_ident()

    def write(self, text: str) -> int:
        if self._stream is None or threading.get_ident() == self._thread:
            return len(text)
        return int(self._stream.write(text))

    def flush(self) -> None:
        if self._stream is not None:
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
