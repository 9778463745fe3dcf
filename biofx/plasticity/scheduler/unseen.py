"""Notices that weights are moved without a step of the optimizer that a scheduler has hooked."""

import warnings
import weakref
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from biofx.plasticity.numerics.shards import local
from biofx.plasticity.numerics.uncompiled import uncompiled

SAMPLE = 64  # weights that are compared
PATIENCE = 2  # times that they must have moved


class UnseenSteps:
    """Warns, once, if gradients come and weights move, but no step is seen.

    `LOMO`'s fused backward, an ``optimizer.step`` that was replaced, or another optimizer of the
    same parameters never run the hooked step: plasticity would be off without a word. It looks
    until the first step is seen, and costs nothing after that.

    Args:
        parameters: {name: parameter} that the optimizer moves.
        optimizer: name of its class.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], optimizer: str) -> None:
        self.optimizer = optimizer
        self._handles: list[RemovableHandle] = []
        self._watched: weakref.ref[Tensor] | None = None
        self._last: Tensor | None = None
        self._moves = 0
        seen = weakref.WeakMethod(self._arrived)

        @uncompiled
        def arrived(parameter: Tensor) -> None:
            method = seen()
            if method is not None:
                method(parameter)

        for parameter in parameters:
            if parameter.requires_grad and parameter.is_leaf:
                handle = parameter.register_post_accumulate_grad_hook(arrived)
                self._handles.append(handle)

    def stop(self) -> None:
        """A step was seen, or nobody waits for one any more."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._last = None

    @torch.no_grad()
    def _arrived(self, parameter: Tensor) -> None:
        watched = self._watched() if self._watched is not None else None
        if watched is None:
            self._watched, self._last = weakref.ref(parameter), None
        elif watched is not parameter:
            return
        now = local(parameter).detach().reshape(-1)[:SAMPLE].clone()
        if self._last is not None and not torch.equal(now, self._last):
            self._moves += 1
        self._last = now
        if self._moves >= PATIENCE and self._handles:
            self.stop()
            warnings.warn(
                f"gradients came and weights moved, but {self.optimizer}.step was never called: "
                "plasticity has not acted. Something else moves the weights (a fused backward as "
                "LOMO's, a step that was replaced, first_step and second_step, another optimizer); "
                "pass to GradScheduler the optimizer whose step is called, or none and call "
                "GradScheduler.step() after each step",
                UserWarning,
                stacklevel=2,
            )
