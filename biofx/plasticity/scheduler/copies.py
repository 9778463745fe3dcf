"""Copies of weights and states before a step, in memory that is kept where that is worth it."""

import torch
from torch import Tensor


class Copies:
    """Makes copies of tensors; each name has one at a time."""

    def __init__(self) -> None:
        self.kept: dict[str, Tensor] = {}

    def __call__(self, name: str, tensor: Tensor) -> Tensor:
        """A copy of the tensor, in place of the last one of this name."""
        return self._keep(name, self._room(name, tensor)).copy_(tensor)

    def other(self, name: str, tensor: Tensor) -> Tensor:
        """Memory for what comes in place of a tensor, whose own will be that of the next."""
        room = self._room(name, tensor)
        self._keep(name, tensor)
        return room

    def _room(self, name: str, tensor: Tensor) -> Tensor:
        kept = self.kept.get(name)
        return kept if kept is not None and _alike(kept, tensor) else torch.empty_like(tensor)

    def _keep(self, name: str, tensor: Tensor) -> Tensor:
        # Fresh memory of this size costs a processor five times what the copying does.
        if tensor.device.type == "cpu":
            self.kept[name] = tensor
        return tensor


def _alike(first: Tensor, second: Tensor) -> bool:
    """Whether one tensor can be copied into the other's memory as it lies there."""
    return (
        first.shape == second.shape
        and first.dtype == second.dtype
        and first.device == second.device
        and first.stride() == second.stride()
    )
