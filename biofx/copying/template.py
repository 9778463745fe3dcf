"""Objects with tensors in them, as arguments of graph nodes: made anew around other tensors."""

import copy
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from biofx.copying.nested import Step, leaves, put, replaced


class Slot:
    """Where a tensor belongs in an object."""


class Template:
    """An object whose tensors a graph puts in.

    Raises:
        Exception: it cannot be copied, or its tensors cannot be put in.
    """

    def __init__(self, value: Any) -> None:
        self.slots: list[Slot] = []
        self.places: list[tuple[Step, ...]] = []  # of its tensors, where copying it copies these
        self.value = replaced(value, self._slot, strict=True)
        if {id(leaf) for _, leaf in leaves(self.value)}.issuperset(map(id, self.slots)):
            return
        self.value = copy.deepcopy(value)
        self.places = [steps for steps, leaf in leaves(value) if isinstance(leaf, Tensor)]
        tensors = self.tensors(value)
        if list(map(id, self.tensors(rebuild(self, tensors)))) != list(map(id, tensors)):
            raise TypeError("other tensors cannot be put into it")

    def _slot(self, _: Tensor) -> Slot:
        self.slots.append(Slot())
        return self.slots[-1]

    def tensors(self, value: Any) -> list[Tensor]:
        """The tensors of the object that the template was made of, each once, in their order."""
        return list({id(t): t for _, t in leaves(value) if isinstance(t, Tensor)}.values())


def rebuild(template: Template, tensors: Sequence[Tensor]) -> Any:
    """A copy of an object with these tensors in it."""
    if template.places:
        made = copy.deepcopy(template.value)
        for place, tensor in zip(template.places, tensors, strict=True):
            put(made, place, tensor)
        return made
    fresh = {id(slot): tensor for slot, tensor in zip(template.slots, tensors, strict=True)}
    return replaced(template.value, lambda slot: fresh[id(slot)], kind=Slot)
