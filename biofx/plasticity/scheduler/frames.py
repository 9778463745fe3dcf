"""Frames of the stack: whether a step is under way."""

import sys
import threading
from types import FrameType

from biofx.errors import PlasticityError
from biofx.plasticity.numerics.uncompiled import WRAPPERS


def alive(frame: FrameType, thread: int) -> bool:
    """Whether a frame is still on a thread's stack."""
    if thread == threading.get_ident():
        current: FrameType | None = sys._getframe(1)
    else:
        current = sys._current_frames().get(thread)
    while current is not None and current is not frame:
        current = current.f_back
    return current is not None


def outside(frame: FrameType) -> FrameType:
    """The frame itself, or the nearest one around it that is not the compiler's."""
    while frame.f_back is not None and (
        frame.f_code in WRAPPERS or "_dynamo" in frame.f_code.co_filename
    ):
        frame = frame.f_back
    return frame


def refuse_threads(thread: int, optimizer: str) -> None:
    """Refuse that another thread than this one is in a step of the same optimizer.

    Raises:
        PlasticityError: one is.
    """
    if thread != threading.get_ident():
        raise PlasticityError(
            f"two threads are taking a step of one {optimizer} at the same time, and plasticity "
            "cannot tell their moves apart; let them take turns (a lock around backward and step)"
        )
