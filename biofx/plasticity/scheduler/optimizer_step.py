"""`OptimizerStep`: one step of an optimizer, while it is under way."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import FrameType

from torch import Tensor

from biofx.plasticity.scheduler.binding import ParameterStep
from biofx.plasticity.scheduler.undo import Undo


@dataclass(slots=True)
class OptimizerStep:
    """What the pre-hook leaves for the post-hook.

    Attributes:
        frame, thread: that call the step; when it is not on the thread's stack any more, the step
            has raised.
        depth: steps of base classes within it that have not ended.
        skipped: whether it is none, as far as the rules are concerned.
        closure: whether the optimizer calls one.
        observed: whether the rules have seen the gradients.
        sites: the parameters at this step.
        before: {name: weights before the step} of those whose moves are to be scaled.
        undo: what the rules have changed.
    """

    frame: FrameType
    thread: int = field(default_factory=threading.get_ident)
    depth: int = 0
    skipped: bool = False
    closure: bool = False
    observed: bool = False
    sites: Sequence[ParameterStep] = ()
    before: dict[str, Tensor] | None = None
    undo: Undo | None = None
