"""`Observer`: watches a scheduler; and the observers of one scheduler."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from biofx.errors import PlasticityError


class Observer:
    """Watches a `GradScheduler`, which calls it with gradients switched off.

    Attributes:
        key: what checkpoints call it; one observer of a key watches a scheduler.
    """

    key: str

    def stepped(self) -> None:
        """A step is over: weights have moved, the rules have acted, `.grad` is still there."""

    def replaced(self, name: str, fresh: Tensor) -> None:
        """Synapses of a parameter were replaced by new ones: a mask of its local shape."""

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must hold: plain values, few of them."""
        return {}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from a checkpoint."""


class Observers:
    """The observers of one scheduler, and the states of those that have not come yet."""

    def __init__(self) -> None:
        self._present: tuple[Observer, ...] = ()
        self._waiting: dict[str, Any] = {}

    def add(self, observer: Observer) -> None:
        """Tell an observer of each step; one that comes after its checkpoint gets its state now.

        Raises:
            PlasticityError: another observer of the same key watches already.
        """
        if any(other.key == observer.key for other in self._present):
            raise PlasticityError(
                f"a {observer.key} watches this scheduler already; detach() it first"
            )
        if observer.key in self._waiting:
            observer.load_state_dict(self._waiting[observer.key])
            del self._waiting[observer.key]
        self._present = (*self._present, observer)

    def remove(self, observer: Observer) -> None:
        """Tell an observer nothing more. Doing it again does nothing."""
        self._present = tuple(one for one in self._present if one is not observer)

    def __len__(self) -> int:
        return len(self._present)

    def stepped(self) -> None:
        """Tell all: a step is over."""
        for observer in self._present:
            observer.stepped()

    def replaced(self, name: str, fresh: Tensor) -> None:
        """Tell all: synapses were replaced."""
        for observer in self._present:
            observer.replaced(name, fresh)

    def state_dict(self) -> dict[str, Any]:
        """{"observers": {key: state}}, or nothing if nobody watches."""
        states = {**self._waiting, **{one.key: one.state_dict() for one in self._present}}
        return {"observers": states} if states else {}

    def load_state_dict(self, states: Mapping[str, Mapping[str, Any]]) -> None:
        """Give {key: state} to the observers; states of those who have not come yet wait."""
        self._waiting = dict(states)
        for observer in self._present:
            if observer.key in self._waiting:
                observer.load_state_dict(self._waiting[observer.key])
                del self._waiting[observer.key]
