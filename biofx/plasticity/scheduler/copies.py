"""Copies of weights and states before a step, in memory that is kept where that is worth it."""

import torch
from torch import Tensor


class Copies:
    """Makes copies of tensors; each name has one at a time."""

    def __init__(self) -> None:
        self.kept: dict[str, Tensor] = {}

    def __call__(self, name: str, tensor: Tensor) -> Tensor:
        """A copy of the tensor, in place of the last one of this name."""
        return self._room(name, tensor, then=None).copy_(tensor)

    def other(self, name: str, tensor: Tensor) -> Tensor:
        """Memory for what comes in place of a tensor, whose own will be that of the next."""
        return self._room(name, tensor, then=tensor)

    def _room(self, name: str, tensor: Tensor, then: Tensor | None) -> Tensor:
        room = self.kept.get(name)
        if room is None or not _alike(room, tensor):
            room = torch.empty_like(tensor)
        # Fresh memory of this size costs a processor five times what the copying does.
        if tensor.device.type == "cpu":
            self.kept[name] = room if then is None else then
        return room


def _alike(first: Tensor, second: Tensor) -> bool:
    """Whether one tensor can be copied into the other's memory as it lies there."""
    return (
        first.shape == second.shape
        and first.dtype == second.dtype
        and first.device == second.device
        and first.stride() == second.stride()
    )
