"""What rules have changed before the optimizer's step, for the case that the step raises."""

import functools
from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor

from biofx.plasticity.kernels.base import KernelCall, KernelSpec, Tensors, joined, kernel_spec
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
        self._states: list[tuple[Context, dict[str, Any], dict[str, Any]]] = []
        self._counts: list[tuple[Tensor, Tensor]] = []
        self._values: list[tuple[Tensor, Tensor]] = []
        self._apart: list[tuple[Tensor, Tensor]] = []

    def keep(self, context: Context) -> None:
        """Remember the state of a rule for one parameter, as it is when first asked."""
        if any(known is context for known, _, _ in self._states):
            return
        copies = {
            name: self._copy(_label(context, name), value) if isinstance(value, Tensor) else value
            for name, value in context.state.items()
        }
        self._states.append((context, copies, dict(context.memo)))

    def apart(self, works: Sequence[KernelCall], context: Context) -> KernelCall:
        """Calls yet to be made, as one that writes a rule's state to other memory than it reads.

        The state's tensors have that memory from now on. What was there before stays where it is,
        which takes no copy.
        """
        spec, leaves = joined(works)
        keys = {id(value): key for key, value in context.state.items()}
        written = [
            (name, leaf)
            for name, leaf in zip(spec.names, leaves, strict=True)
            if name in spec.writes and id(leaf) in keys
        ]
        before: dict[str, Tensor] = {}
        for name, tensor in written:
            before[name] = value = tensor.detach()
            tensor.set_(self._copy.other(_label(context, keys[id(tensor)]), value))  # type: ignore[call-overload]
            self._apart.append((tensor, value))
        # What reads the state under another name reads it as it was, too.
        old = {id(tensor): before[name] for name, tensor in written}
        parts = [
            leaf if name in before else old.get(id(leaf), leaf)
            for name, leaf in zip(spec.names, leaves, strict=True)
        ]
        return KernelCall(_apart(spec, tuple(before)), (*before.values(), *parts))

    def keep_count(self, tensor: Tensor) -> None:
        """Remember what has been counted in a tensor that is set to 0 now."""
        self._counts.append((tensor, tensor.clone()))

    def keep_values(self, tensors: Iterable[Tensor]) -> None:
        """Remember what is in tensors."""
        self._values += [(tensor, tensor.clone()) for tensor in tensors]

    def back(self) -> None:
        """Put everything back, once."""
        for context, copies, memo in self._states:
            context.memo = memo  # it may come from the state
            for name, value in copies.items():
                own = context.state.get(name)
                if isinstance(own, Tensor) and isinstance(value, Tensor):
                    own.copy_(value)
                else:
                    context.state[name] = value
        for tensor, value in self._apart:
            tensor.copy_(value)
        for tensor, value in self._counts:
            # What has been counted since then is not in vain.
            tensor += value
        for tensor, value in self._values:
            tensor.copy_(value)
        self._states.clear()
        self._counts.clear()
        self._values.clear()
        self._apart.clear()


def _label(context: Context, key: str) -> str:
    """Under which a copy of a rule's state is kept."""
    return f"{context.rule} of {context.first.parameter}: {key}"


@functools.cache
def _apart(spec: KernelSpec, names: tuple[str, ...]) -> KernelSpec:
    """What a spec does, where tensors of these names are read from others."""
    others = {name: f"{name} before" for name in names}

    def apart(index: Tensor, tensors: Tensors, inputs: Tensors) -> tuple[Tensor, ...]:
        own = {name: tensors[others.get(name, name)] for name in spec.tensors}
        return spec.function(index, own, inputs)

    tensors = (*others.values(), *spec.tensors)
    return kernel_spec(apart, tensors, spec.inputs, spec.writes, spec.rounded)
