"""Units that learn nothing: a metric, and one warning when they are the most of a layer."""

import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from biofx.plasticity.numerics.shards import local
from biofx.plasticity.scheduler.binding import Binding

EVERY = 100  # steps
IN_A_ROW = 3  # times that most units must be found silent before anybody is told


class Silence:
    """Looks, at each hundredth step, for units whose incoming weights have a gradient of 0.

    Behind a ReLU, such a unit was 0 for every input of the step. It needs no hooks on the model,
    for it looks at gradients that are there anyway.
    """

    def __init__(self) -> None:
        self._times: dict[str, int] = {}
        self._told = False

    def look(
        self,
        named: Iterable[tuple[str, Tensor, Any]],
        bindings: Mapping[str, Binding],
        step: int,
    ) -> None:
        """Note the share of silent units of each parameter at this step, if it is due.

        Args:
            named: names and parameters, each with its gradient, and their param groups.
            bindings: of the parameters, by name.
            step: counted from 1.

        Warns:
            UserWarning: once, when more than half of the units of a layer are silent.
        """
        if step % EVERY:
            return
        shares: dict[str, torch.Tensor] = {}
        for name, parameter, _ in named:
            binding = bindings.get(name)
            if parameter.grad is None or binding is None or not binding.pairs:
                continue
            grad, synapses = local(parameter.grad), binding.pairs[0][1].synapses
            if grad.is_sparse or not grad.numel() or synapses.kind == "embedding":
                continue
            axis = synapses.post_axis
            others = [place for place in range(grad.dim()) if place != axis]
            active = (grad != 0).any(others) if others else grad != 0
            shares[name] = binding.numbers["silent"] = 1 - active.float().mean()
        if not shares or self._told:
            return
        found = torch.stack(list(shares.values())).tolist()
        for name, share in zip(shares, found, strict=True):
            self._times[name] = self._times.get(name, 0) + 1 if share > 0.5 else 0
        silent = {
            name: share
            for name, share in zip(shares, found, strict=True)
            if self._times[name] >= IN_A_ROW
        }
        if silent:
            self._told = True
            some = ", ".join(f"{name} ({100 * share:.0f} %)" for name, share in silent.items())
            warnings.warn(
                f"most units of these layers got no gradient at steps {step - 2 * EVERY}, "
                f"{step - EVERY} and {step}: {some}. Units that are silent for every input learn "
                "nothing more: lower the learning rate, or renew them with "
                'UnitTurnover(utility="dormant")',
                UserWarning,
                stacklevel=4,
            )
