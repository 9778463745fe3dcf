"""What a graph rests on besides its modules' attributes, compared at every call.

An attribute of a module tells when it is assigned (see `biofx.synapses.Watched`). A field of a
configuration object, an element of a list or a global variable does not: a `World` remembers their
values, and the generated forward asks whether they still hold.
"""

import copy
import sys
from collections import OrderedDict, deque
from typing import Any

import torch

# Values that are the same if they are equal; others are the same if they are one object.
PLAIN = frozenset({
    bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.Size, slice, range,
})  # fmt: skip


class Missing:
    """Stands for the value of an attribute that is not there."""


class Globals:
    """The global variables of a Python module; not copied with a model."""

    def __init__(self, names: dict[str, Any]) -> None:
        self.names = names

    def __deepcopy__(self, memo: dict[int, Any]) -> "Globals":
        return self

    def __reduce__(self) -> Any:
        return _globals_of, (str(self.names.get("__name__")),)


def _globals_of(name: str) -> Globals:
    return Globals(vars(sys.modules[name]) if name in sys.modules else {})


class Values:
    """Attributes of objects and contents of containers, as a graph was traced with them."""

    def __init__(self) -> None:
        self.attributes: list[tuple[Any, str, Any]] = []
        self.contents: list[tuple[Any, tuple[Any, ...]]] = []
        self.registries: list[tuple[Any, tuple[Any, ...]]] = []

    def __bool__(self) -> bool:
        return bool(self.attributes or self.contents or self.registries)

    def moved(self) -> str | None:
        """What has changed since, or None."""
        for owner, name, value in self.attributes:
            now = getattr(owner, name, Missing)
            if now is not value and not same(now, value):
                return f"{name!r} of a {type(owner).__name__} changed after capture"
        for container, items in self.contents:
            now = items_of(container)
            if len(now) != len(items):
                return f"the length of a {type(container).__name__} changed after capture"
            for i in range(len(items)):
                if now[i] is not items[i] and not same(now[i], items[i]):
                    return f"the content of a {type(container).__name__} changed after capture"
        for registry, tensors in self.registries:
            if _described(registry) != tensors:
                return "the parameters or buffers of a module changed after capture"
        return None


class World:
    """Values that a graph was traced with and that may change without a word.

    Attributes:
        owned: values that are part of the model, and are copied and saved with it.
        outer: values that belong to global objects.
        globals: global variables.
        lost: whether something could not be saved with the model.
    """

    def __init__(self) -> None:
        self.owned = Values()
        self.outer = Values()
        self.globals: list[tuple[Globals, str, Any]] = []
        self.lost = False
        self._seen: set[Any] = set()

    def __bool__(self) -> bool:
        return bool(self.owned or self.outer or self.globals or self.lost)

    def attribute(self, owner: Any, name: str, value: Any, *, outer: bool = False) -> None:
        """The graph was traced with this attribute of an object."""
        if self._new((id(owner), name)):
            (self.outer if outer else self.owned).attributes.append((owner, name, value))

    def content(
        self, container: Any, items: tuple[Any, ...] | None = None, *, outer: bool = False
    ) -> None:
        """The graph was traced with what this list, dict, set, tuple or namespace holds."""
        if self._new((id(container),)):
            items = items_of(container) if items is None else items
            (self.outer if outer else self.owned).contents.append((container, items))

    def registry(self, tensors: dict[str, Any]) -> None:
        """The graph was traced with these parameters, or buffers, of a module.

        It reads the tensors themselves anew at every call, so that `.to()` may replace them.
        """
        if self._new((id(tensors),)):
            self.owned.registries.append((tensors, _described(tensors)))

    def variable(self, names: Globals, name: str, value: Any) -> None:
        """The graph was traced with this global variable."""
        if self._new((id(names.names), name)):
            self.globals.append((names, name, value))

    def _new(self, key: tuple[Any, ...]) -> bool:
        known = key in self._seen
        self._seen.add(key)
        return not known

    def include(self, other: "World") -> None:
        """Rest on whatever another graph rests on."""
        for values, outer in ((other.owned, False), (other.outer, True)):
            for owner, name, value in values.attributes:
                self.attribute(owner, name, value, outer=outer)
            for container, items in values.contents:
                self.content(container, items, outer=outer)
        for tensors, _ in other.owned.registries:
            self.registry(tensors)
        for names, name, value in other.globals:
            self.variable(names, name, value)

    def moved(self) -> str | None:
        """What has changed since, or None."""
        if self.lost:
            return "rests on global objects, which are not saved with the model"
        for names, name, value in self.globals:
            now = names.names.get(name, Missing)
            if now is not value and not same(now, value):
                return f"the global variable {name!r} changed after capture"
        return self.owned.moved() or self.outer.moved()

    def __getstate__(self) -> dict[str, Any]:
        plain = [entry for entry in self.globals if type(entry[2]) in PLAIN or entry[2] is None]
        lost = bool(self.outer) or len(plain) < len(self.globals)
        return {"owned": self.owned, "outer": Values(), "globals": plain, "lost": lost,
                "_seen": set()}  # fmt: skip

    def __deepcopy__(self, memo: dict[int, Any]) -> "World":
        fresh = World()
        memo[id(self)] = fresh
        fresh.owned = copy.deepcopy(self.owned, memo)
        fresh.outer, fresh.globals, fresh.lost = self.outer, self.globals, self.lost
        return fresh


def items_of(container: Any) -> tuple[Any, ...]:
    """What a container holds, in order; the keys of a dict are followed by its values.

    Asked of the built-in class: a class derived from it may make its values anew at each access.
    """
    content = content_of(container)
    if isinstance(content, dict):
        plain = _plain(content)
        return (*plain.keys(content), *plain.values(content))
    return tuple(content)


def content_of(container: Any) -> Any:
    """The container itself, or the fields of a namespace."""
    collection = isinstance(container, list | tuple | set | frozenset | deque | dict)
    return container if collection else vars(container)


def _described(tensors: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(
        (name, tensor if tensor is None else (tensor.shape, tensor.is_complex()))
        for name, tensor in tensors.items()
    )


def _plain(container: dict[Any, Any]) -> type[dict[Any, Any]]:
    return OrderedDict if isinstance(container, OrderedDict) else dict


def same(now: Any, then: Any) -> bool:
    """Whether two values are plain data of one type, and equal."""
    return type(now) is type(then) and type(then) in PLAIN and equal(now, then)


def equal(now: Any, then: Any) -> bool:
    """Whether two values of one type are equal, and zeros have the same sign."""
    return bool(now == then) and (type(now) is not float or str(now) == str(then))


class Snapshots:
    """Containers as they were, to notice and undo what a forward does to them."""

    def __init__(self) -> None:
        self._taken: list[tuple[Any, tuple[Any, ...]]] = []

    def take(self, value: Any, depth: int = 3) -> None:
        """Remember what is in a container, and in the containers in it."""
        if type(value) in (list, set, deque) or isinstance(value, dict):
            items = items_of(value)
            self._taken.append((value, items))
            if depth and len(items) < 1000:
                for item in items:
                    self.take(item, depth - 1)

    def restore(self) -> bool:
        """Put changed containers back; True if there were any."""
        changed = False
        for value, before in self._taken:
            now = items_of(value)
            if len(now) == len(before) and all(a is b for a, b in zip(now, before, strict=True)):
                continue
            if isinstance(value, set) and value == set(before):
                continue
            changed = True
            if isinstance(value, dict):
                plain = _plain(value)
                plain.clear(value)
                keys = len(before) // 2
                for key, item in zip(before[:keys], before[keys:], strict=True):
                    plain.__setitem__(value, key, item)
                continue
            value.clear()
            if isinstance(value, set):
                value.update(before)
            else:
                value.extend(before)
        return changed
