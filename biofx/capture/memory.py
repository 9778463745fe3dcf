"""What results share memory with, and what the model holds before a run and after it."""

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


def held(modules: Mapping[str, nn.Module]) -> dict[str, list[Any]]:
    """{qualified name of an attribute: the tensors, proxies and plain values that it holds}.

    Those in containers and other objects are among them, but for the plain values of objects that
    are no containers: what a logger or a library's cache counts is no state of the model.
    """
    seen: set[int] = set()
    found: dict[str, list[Any]] = {}
    for name, module in modules.items():
        if not isinstance(module, torch.jit.ScriptModule):
            for key, value in _held_by(module, seen):
                found.setdefault(f"{name}.{key}" if name else key, []).append(value)
    return found


def assigned(before: Mapping[str, list[Any]], after: Mapping[str, list[Any]]) -> Iterator[str]:
    """The attributes that hold other tensors than before, or other plain values."""
    for path in {**before, **after}:
        was, now = before.get(path, []), after.get(path, [])
        if len(was) != len(now) or not all(map(_is_same, was, now)):
            yield path


def _is_same(was: Any, now: Any) -> bool:
    return was is now or (type(was) is type(now) and type(was) in _PLAIN and was == now)


def _held_by(module: nn.Module, seen: set[int]) -> Iterator[tuple[str, Any]]:
    own = [(key, value) for key, value in vars(module).items() if key not in _REGISTRIES]
    own += [*module._parameters.items(), *module._buffers.items()]
    waiting = [(key, value, True) for key, value in own]
    while waiting:
        key, value, plain = waiting.pop()
        if is_proxy(value):
            continue
        if issubclass(type(value), (Tensor, fx.Proxy)) or (plain and type(value) in _PLAIN):
            yield key, value
        elif type(value) not in _PLAIN and id(value) not in seen:
            seen.add(id(value))
            if isinstance(value, set):
                value = list(value)
            inside = plain and isinstance(value, _CONTAINERS)
            waiting += [(key, item, inside) for _, item in parts(value) or ()]


_PLAIN = (bool, int, float, str, type(None))
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
