"""What an optimizer keeps for each weight: its entries, and the tensors in them."""

from collections import deque
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def is_near(value: Tensor, weight: Tensor) -> bool:
    """Whether a state's values are places of the weights: nearer to them than 0 is, by far."""
    weight = weight.reshape(-1).double()
    distance = torch.linalg.vector_norm(value.reshape(-1).double() - weight)
    return bool(distance < 0.5 * torch.linalg.vector_norm(weight))


def per_synapse(state: Mapping[str, Any], size: torch.Size) -> dict[str, list[Tensor]]:
    """Entries of an optimizer's state that hold a floating-point number for each weight.

    One may hold several: a queue of past gradients, or a momentum for each of some rates.
    """
    found: dict[str, list[Tensor]] = {}
    for name, value in state.items():
        held = [t for t in tensors_in(value) if t.is_floating_point() and fits(t, size)]
        if held:
            found[name] = held
    return found


def tensors_in(value: Any) -> list[Tensor]:
    """The tensors that an entry of an optimizer's state consists of."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        value = value.values()
    elif not isinstance(value, list | tuple | deque):
        return []
    return [one for one in value if isinstance(one, Tensor)]


def fits(value: Tensor, size: torch.Size) -> bool:
    """Whether a tensor has a number for each weight, in the weight's shape or in one line."""
    return bool(value.dim()) and (value.shape == size or value.shape == (size.numel(),))
