"""The law that a layer's weights are drawn from when PyTorch makes it."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn


@dataclass(frozen=True)
class InitialLaw:
    """Weights of mean 0: uniform on [−scale, scale), or normal with the standard deviation scale.

    Attributes:
        kind: which of both.
        scale: in units of the weight.
    """

    kind: Literal["uniform", "normal"]
    scale: float

    @property
    def variance(self) -> float:
        """Mean square of the weights."""
        return self.scale**2 / 3 if self.kind == "uniform" else self.scale**2


def _by_inputs(module: Any, shape: tuple[int, ...]) -> InitialLaw:
    # kaiming_uniform_(a=√5); PyTorch counts the inputs of a transposed convolution by axis 1 too
    return InitialLaw("uniform", 1 / math.sqrt(max(math.prod(shape[1:]), 1)))


def _by_first_input(module: Any, shape: tuple[int, ...]) -> InitialLaw:
    return InitialLaw("uniform", 1 / math.sqrt(max(shape[1], 1)))


def _standard_normal(module: Any, shape: tuple[int, ...]) -> InitialLaw:
    return InitialLaw("normal", 1.0)


def _xavier(module: Any, shape: tuple[int, ...]) -> InitialLaw:
    return InitialLaw("uniform", math.sqrt(6 / max(shape[0] + shape[1], 1)))


def _by_hidden(module: Any, shape: tuple[int, ...]) -> InitialLaw:
    return InitialLaw("uniform", 1 / math.sqrt(max(module.hidden_size, 1)))


_LAWS: tuple[tuple[tuple[type[nn.Module], ...], Callable[..., InitialLaw]], ...] = (
    ((nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d), _by_inputs),
    ((nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d), _by_inputs),
    ((nn.Bilinear,), _by_first_input),
    ((nn.Embedding, nn.EmbeddingBag), _standard_normal),
    ((nn.MultiheadAttention,), _xavier),
    ((nn.RNNBase, nn.RNNCellBase), _by_hidden),
)


def initial_law(module: nn.Module, shape: tuple[int, ...]) -> InitialLaw | None:
    """What `reset_parameters` of PyTorch's own layer types draws a weight from.

    Args:
        module: a layer, of one of these types or a subclass.
        shape: of the weight.

    Returns:
        The law, or None for another type.
    """
    for types, law in _LAWS:
        if isinstance(module, types):
            return law(module, shape)
    return None
