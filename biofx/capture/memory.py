"""What results share memory with, and what the model holds before a run and after it."""

import operator
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from biofx.capture.private import memory_of
from biofx.copying.nested import is_proxy, leaves, parts

# Key of `node.meta`: which of its arguments the result shares memory with, by place; None for none.
SHARES = "biofx_shares_memory"
# Another: an object of the model that keeps the result when the run is over, by its attribute.
KEPT = "biofx_kept"


def tensor_ids(module: nn.Module) -> dict[str, int]:
    """{attribute: id of its tensor}."""
    if isinstance(module, torch.jit.ScriptModule):
        return {}
    registries = (module._parameters, module._buffers, module.__dict__)
    return {
        key: id(value)
        for registry in registries
        for key, value in registry.items()
        if isinstance(value, Tensor)
    }


def held(modules: Mapping[str, nn.Module]) -> dict[str, dict[str, Any]]:
    """{name of a module: {attribute: the tensor or plain value there}}.

    Where something else is there, a list of the tensors, proxies and plain values inside. The plain
    values of objects that are no containers are left out: what a logger or a library's cache counts
    is no state of the model.
    """
    seen: set[int] = set()
    found = {}
    for name, module in modules.items():
        if isinstance(module, torch.jit.ScriptModule):
            continue
        own = {key: value for key, value in vars(module).items() if key not in _REGISTRIES}
        own |= module._parameters
        own |= module._buffers
        if not _ONE_VALUE.issuperset(map(type, own.values())):
            for key, value in own.items():
                if type(value) not in _ONE_VALUE:
                    own[key] = _inside(value, seen)
        found[name] = own
    return found


def items(held: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, Any]]:
    """(qualified name of an attribute, what it holds) of all that is held, one by one."""
    for name, own in held.items():
        for key, value in own.items():
            for item in value if type(value) is list else (value,):
                yield _path(name, key), item


def assigned(
    before: Mapping[str, Mapping[str, Any]], after: Mapping[str, Mapping[str, Any]]
) -> Iterator[str]:
    """The attributes that hold other tensors than before, or other plain values."""
    for name, now in after.items():
        was = before[name]
        if len(was) != len(now) or not all(map(operator.is_, was.values(), now.values())):
            for key in {**was, **now}:
                if not _is_same(was.get(key, []), now.get(key, [])):
                    yield _path(name, key)


def _path(module: str, attribute: str) -> str:
    return f"{module}.{attribute}" if module else attribute


def _is_same(was: Any, now: Any) -> bool:
    if was is now or type(was) is not type(now):
        return was is now
    if type(was) is list:
        return len(was) == len(now) and all(map(_is_same, was, now))
    return type(was) in _PLAIN and bool(was == now)


def _inside(value: Any, seen: set[int]) -> list[Any]:
    found, waiting = [], [(value, True)]
    while waiting:
        value, plain = waiting.pop()
        if is_proxy(value):
            continue
        if issubclass(type(value), (Tensor, fx.Proxy)) or (plain and type(value) in _PLAIN):
            found.append(value)
        elif type(value) not in _PLAIN and id(value) not in seen:
            seen.add(id(value))
            if isinstance(value, set):
                value = list(value)
            inside = plain and isinstance(value, _CONTAINERS)
            waiting += [(item, inside) for _, item in parts(value) or ()]
    return found


_PLAIN = (bool, int, float, str, type(None))
_ONE_VALUE = frozenset((*_PLAIN, Tensor, nn.Parameter))
_CONTAINERS = (Mapping, list, tuple, deque)
_REGISTRIES = frozenset(vars(nn.Module()))


def note_memory(
    node: fx.Node, given: Any, result: Any, holders: Callable[[Any], Iterable[fx.Node | None]]
) -> None:
    """Note which argument a result shares memory with; nothing where that cannot be seen.

    Args:
        node: of the operation.
        given, result: the values themselves.
        holders: gives the nodes that a value may be an argument as.
    """
    made = {memory_of(leaf) for _, leaf in leaves(result) if isinstance(leaf, Tensor)}
    if None in made:
        return
    node.meta[SHARES] = None
    for _, leaf in leaves(given) if made else ():
        if isinstance(leaf, Tensor) and memory_of(leaf) in made:
            known = set(holders(leaf))
            places = [place for place, n in enumerate(node.all_input_nodes) if n in known]
            if places:
                node.meta[SHARES] = places[0]
                return
