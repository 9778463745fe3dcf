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
from typing import Any, Literal

_TURN = threading.RLock()


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """One thread at a time; what it prints or warns of is dropped, what others print is not."""
    with _TURN, warnings.catch_warnings(), _OUT.instead("stdout"), _ERR.instead("stderr"):
        warnings.simplefilter("ignore")
        yield


class _Muted:
    """A stream that drops what one thread writes. Both of them last for as long as Python runs.

    `print` of another thread may hold one without counting as its owner, and would crash if it were
    gone by the time that it is written to.
    """

    def __init__(self) -> None:
        self._stream: Any = None
        self._thread: int | None = None

    @contextlib.contextmanager
    def instead(self, name: Literal["stdout", "stderr"]) -> Iterator[None]:
        """Stand for a stream of the process, and drop what this thread writes to it."""
        stream, thread = getattr(sys, name), self._thread
        if stream is not self:
            self._stream = stream
        self._thread = threading.get_ident()
        setattr(sys, name, self)
        try:
            yield
        finally:
            setattr(sys, name, stream)
            self._thread = thread

    def write(self, text: str) -> int:
        if self._stream is None or threading.get_ident() == self._thread:
            return len(text)
        return int(self._stream.write(text))

    def flush(self) -> None:
        if self._stream is not None:
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


_OUT, _ERR = _Muted(), _Muted()
