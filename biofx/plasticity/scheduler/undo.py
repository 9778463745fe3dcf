"""What rules have changed before the optimizer's step, for the case that the step raises."""

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from biofx.plasticity.rules.rule import Context
from biofx.plasticity.scheduler.copies import Copies


class Undo:
    """Puts the states of rules back as they were.

    Args:
        copy: makes copies of states.
        deferred: whether what rules leave for the pass that applies the factors is done after the
            optimizer's step, when nothing can be in vain any more.
    """

    def __init__(self, copy: Copies, *, deferred: bool = False) -> None:
        self.deferred = deferred
        self._copy = copy
        self._states: list[tuple[Context, dict[str, Any]]] = []
        self._counts: list[tuple[Tensor, Tensor]] = []
        self._values: list[tuple[Tensor, Tensor]] = []

    def keep(self, context: Context) -> None:
        """Remember the state of a rule for one parameter, as it is when first asked."""
        if any(known is context for known, _ in self._states):
            return
        whose = f"{context.rule} of {context.synapses.parameter}"
        copies = {
            name: self._copy(f"{whose}: {name}", value) if isinstance(value, Tensor) else value
            for name, value in context.state.items()
        }
        self._states.append((context, copies))

    def keep_count(self, tensor: Tensor) -> None:
        """Remember what has been counted in a tensor that is set to 0 now."""
        self._counts.append((tensor, tensor.clone()))

    def keep_values(self, tensors: Iterable[Tensor]) -> None:
        """Remember what is in tensors."""
        self._values += [(tensor, tensor.clone()) for tensor in tensors]

    def back(self) -> None:
        """Put everything back, once."""
        for context, copies in self._states:
            context.memo.clear()  # it may come from the state
            for name, value in copies.items():
                own = context.state.get(name)
                if isinstance(own, Tensor) and isinstance(value, Tensor):
                    own.copy_(value)
                else:
                    context.state[name] = value
        for tensor, value in self._counts:
            # What has been counted since then is not in vain.
            tensor += value
        for tensor, value in self._values:
            tensor.copy_(value)
        self._states.clear()
        self._counts.clear()
        self._values.clear()
