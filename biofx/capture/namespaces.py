"""Puts back what code of a model keeps outside of it: globals, class attributes, what they hold."""

import contextlib
import functools
import sys
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Iterator, Sequence
from types import FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from biofx.synapses import original_class

_SIMPLE = (type(None), bool, int, float, complex, str, bytes, tuple, frozenset)
_DICTS = (dict, OrderedDict, defaultdict, Counter)
_CONTAINERS = (list, deque, set, *_DICTS)
_FUNCTIONS = frozenset({FunctionType, MethodType, functools.partial})
_HOOKS = tuple(name for name, value in vars(nn.Module()).items() if type(value) is OrderedDict)
_NOT_THE_USERS = frozenset({"torch", "builtins", "abc", "typing"})
# Items in all containers: whoever holds more of them holds data, and looking at it would take long.
_MOST = 100_000


@contextlib.contextmanager
def namespaces_kept(model: nn.Module) -> Iterator[None]:
    """Put back what code of a model may change outside of the model.

    That is in the Python modules of its classes and of functions on it, and in its classes: plain
    values, what containers of Python's hold, and buffers of modules.
    """
    saved = _Saved(model)
    before = set(sys.modules)
    try:
        yield
    finally:
        imported = {name.partition(".")[0] for name in sys.modules.keys() - before}
        # A Python module that is loaded for the first time may enter itself in a container.
        saved.put_back(containers=imported <= _NOT_THE_USERS)


class _Saved:
    """What the owners of a model's code hold."""

    def __init__(self, model: nn.Module) -> None:
        modules = list(model.modules())
        self._own = set(map(id, modules))
        self._values: list[tuple[Any, dict[str, Any]]] = []
        self._containers: dict[int, tuple[Any, Any]] = {}
        self._buffers: list[tuple[Tensor, int, Tensor]] = []
        self._left = _MOST
        waiting: list[Any] = []
        for owner in _owners(modules):
            held = [(n, v) for n, v in list(vars(owner).items()) if not n.startswith("__")]
            self._values.append((owner, {n: v for n, v in held if isinstance(v, _SIMPLE)}))
            waiting += [value for _, value in held]
        for value in waiting:  # which grows meanwhile
            waiting += self._save(value)

    def _save(self, value: Any) -> list[Any]:
        """Keep what a value holds; the items of a container."""
        kind = type(value)
        if kind in _CONTAINERS:
            if id(value) in self._containers or value is sys.modules or len(value) > self._left:
                return []
            self._left -= len(value)
            held = dict(value) if kind in _DICTS else list(value)
            self._containers[id(value)] = value, held
            return list(held.values()) if isinstance(held, dict) else held
        if isinstance(value, nn.Module) and id(value) not in self._own:
            plain = [b for b in value.buffers() if type(b) is Tensor and not b.is_inference()]
            self._buffers += [
                (buffer, buffer._version, buffer.detach().clone()) for buffer in plain
            ]
        return []

    def put_back(self, *, containers: bool) -> None:
        for owner, values in self._values:
            _put_back(owner, values)
        for buffer, version, value in self._buffers:
            if buffer._version != version:
                with torch.no_grad():
                    buffer.copy_(value)
        for container, held in self._containers.values() if containers else ():
            if _identities(container) != _identities(held):
                container.clear()
                (container.update if hasattr(container, "update") else container.extend)(held)


def _identities(container: Any) -> Any:
    if isinstance(container, dict):
        return [(id(key), id(value)) for key, value in container.items()]
    found = list(map(id, container))
    return sorted(found) if isinstance(container, set) else found


def _put_back(owner: Any, values: dict[str, Any]) -> None:
    now = vars(owner)
    for name, value in values.items():
        if now.get(name) is not value:
            if isinstance(owner, ModuleType):
                now[name] = value
            else:
                setattr(owner, name, value)


def _owners(modules: Sequence[nn.Module]) -> list[Any]:
    """The classes of modules, and the Python modules of these and of functions on them."""
    owners: dict[int, Any] = {}
    names: set[str | None] = set()
    for kind in set(map(original_class, modules)):
        for base in kind.__mro__:
            if base.__module__.partition(".")[0] not in _NOT_THE_USERS:
                owners[id(base)] = base
                names.add(base.__module__)
    for module in modules:
        held = vars(module)
        for hooks in filter(None, map(held.get, _HOOKS)):
            names.update(map(_module_of, hooks.values()))
        if not _FUNCTIONS.isdisjoint(map(type, held.values())):
            names.update(map(_module_of, held.values()))
    for name in names:
        if name in sys.modules and name.partition(".")[0] not in _NOT_THE_USERS:
            owners[id(sys.modules[name])] = sys.modules[name]
    return list(owners.values())


def _module_of(value: Any) -> str | None:
    """Name of the Python module that a function comes from; None for any other value."""
    while isinstance(value, functools.partial):
        value = value.func
    value = value.__func__ if isinstance(value, MethodType) else value
    return value.__module__ if isinstance(value, FunctionType) else None
