"""`UnitActivity`: what a layer was given since the last step, per input unit."""

from typing import Any

import torch
from torch import Tensor, nn

from biofx.plasticity.numerics.shards import is_sharded
from biofx.synapses import Synapses


class UnitActivity:
    """Sums |x| and x of a layer's input, per column, over the forwards of a step in training mode.

    It is a forward pre-hook of the layer. A copy of the layer has a copy of it.

    Attributes:
        columns: number of columns.
        totals: Σ|x| of each column, Σx of each column, and the number of values that each sum has:
            float32 of shape (2·columns + 1,).
        seen: whether there was a forward since the last reset.
    """

    def __init__(self, module: nn.Module, columns: int, axis: int) -> None:
        self.columns = columns
        self._axis = axis
        device = next(module.parameters()).device
        self.totals = torch.zeros(2 * columns + 1, dtype=torch.float32, device=device)
        self.seen = False
        self._handle: Any = module.register_forward_pre_hook(self)

    @staticmethod
    def axis(synapses: Synapses) -> int:
        """The axis (negative) of a layer's input that runs over its columns; 0 if there is none."""
        if synapses.kind == "linear":
            return -1
        for spatial in (1, 2, 3):
            if synapses.kind in (f"conv{spatial}d", f"conv_transpose{spatial}d"):
                return -spatial - 1
        return 0

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        if not (module.training and torch.is_grad_enabled() and args):
            return
        x = args[0]
        if not isinstance(x, Tensor) or x.dim() < -self._axis or x.shape[self._axis] == 0:
            return
        with torch.no_grad():
            x = x.detach()
            if is_sharded(x):  # by tensor parallelism, whose processes all run this forward
                x = x.full_tensor()  # type: ignore[attr-defined]
            x = x.float() if x.dtype == torch.float64 else x
            if self.totals.device != x.device:
                self.totals = self.totals.to(x.device)
            axes = [axis for axis in range(x.dim()) if axis != x.dim() + self._axis]
            columns = self.columns
            sizes = (
                torch.linalg.vector_norm(x, 1, dim=axes, dtype=torch.float32) if axes else x.abs()
            )
            self.totals[:columns].add_(sizes)
            self.totals[columns:-1].add_(x.sum(axes, dtype=torch.float32) if axes else x)
            self.totals[-1:].add_(x.numel() // columns)
        self.seen = True

    def reset(self) -> None:
        """Begin a new step."""
        self.totals.zero_()
        self.seen = False

    def detach(self) -> None:
        """Remove the hook."""
        self._handle.remove()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_handle"}
