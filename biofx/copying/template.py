"""Objects with tensors in them, as arguments of graph nodes: made anew around other tensors."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from biofx.copying.nested import leaves, replaced


class Slot:
    """Where a tensor belongs in an object."""


class Template:
    """An object whose tensors a graph puts in."""

    def __init__(self, value: Any) -> None:
        self.slots: list[Slot] = []
        self.value = replaced(value, self._slot, strict=True)

    def _slot(self, _: Tensor) -> Slot:
        self.slots.append(Slot())
        return self.slots[-1]

    def tensors(self, value: Any) -> list[Tensor]:
        """The tensors of the object that the template was made of, each once, in their order."""
        return list({id(t): t for _, t in leaves(value) if isinstance(t, Tensor)}.values())


def rebuild(template: Template, tensors: Sequence[Tensor]) -> Any:
    """A copy of an object with these tensors in it."""
    fresh = {id(slot): tensor for slot, tensor in zip(template.slots, tensors, strict=True)}
    return replaced(template.value, lambda slot: fresh[id(slot)], kind=Slot)
