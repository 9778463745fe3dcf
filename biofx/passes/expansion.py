"""The operations that weight splitting puts into a graph."""

from torch import Tensor


def group_sum(x: Tensor, gamma: int, axis: int) -> Tensor:
    """Sum Γ neighbours along an axis: (…, N, …) becomes (…, N/Γ, …)."""
    if axis < 0:
        axis = x.dim() + axis
    total: Tensor = x.unflatten(axis, (-1, gamma)).sum(axis + 1)
    return total


def group_repeat(x: Tensor, gamma: int, axis: int) -> Tensor:
    """Repeat every element Γ times along an axis: (…, N/Γ, …) becomes (…, N, …)."""
    if axis < 0:
        axis = x.dim() + axis
    shape = list(x.shape)
    wide = shape[: axis + 1] + [gamma] + shape[axis + 1 :]  # noqa: RUF005 (TorchScript)
    shape[axis] = shape[axis] * gamma
    return x.unsqueeze(axis + 1).expand(wide).reshape(shape)
