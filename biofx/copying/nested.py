"""Nested values: tensors in tuples, dicts, dataclasses and other objects, walked in one place."""

import copy
import dataclasses
import enum
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

from torch import Tensor, nn

# One step into a value: ("item", key) is value[key], ("attr", name) is value.name.
Step = tuple[str, Any]
# What is looked at from outside only.
SHARED = (type, FunctionType, BuiltinFunctionType, MethodType, ModuleType, nn.Module)


def is_proxy(value: Any) -> bool:
    """Whether it is a weak proxy: passes for what it refers to, and raises where that is gone."""
    return type(value) in weakref.ProxyTypes


def parts(value: Any) -> list[tuple[Step, Any]] | None:
    """What a container or object holds, one level down; None for a plain value."""
    if is_proxy(value):
        return []  # it holds nothing of what it refers to
    if isinstance(value, (Tensor, enum.Enum, *SHARED)):
        return None
    if isinstance(value, Mapping):
        return [(("item", key), item) for key, item in value.items()]
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        named = zip(value._fields, value, strict=True)
        return [(("attr", name), item) for name, item in named]
    if isinstance(value, list | tuple | deque):
        return [(("item", place), item) for place, item in enumerate(value)]
    if dataclasses.is_dataclass(value):
        names = [field.name for field in dataclasses.fields(value)]
        return [(("attr", name), getattr(value, name, None)) for name in names]
    held = getattr(value, "__dict__", None)
    if held and not isinstance(value, int | float | complex | str | bytes):
        return [(("attr", name), item) for name, item in held.items()]
    return None


def written(steps: tuple[Step, ...]) -> str:
    """Steps as one would write them: ``.logits[0]``."""
    return "".join(f"[{key!r}]" if kind == "item" else f".{key}" for kind, key in steps)


def leaves(
    value: Any, steps: tuple[Step, ...] = (), above: frozenset[int] = frozenset()
) -> Iterator[tuple[tuple[Step, ...], Any]]:
    """(steps, leaf) of a nested value: tensors, and whatever holds nothing else."""
    held = None if id(value) in above else parts(value)
    if held is None:
        yield steps, value
        return
    for step, item in held:
        yield from leaves(item, (*steps, step), above | {id(value)})


def put(value: Any, steps: tuple[Step, ...], leaf: Any) -> None:
    """Assign what the steps into a value lead to."""
    *before, (kind, key) = steps
    for inner, name in before:
        value = value[name] if inner == "item" else getattr(value, name)
    if kind == "item":
        value[key] = leaf
    else:
        setattr(value, key, leaf)


def tensors(value: Any) -> list[Tensor]:
    """The tensors in a nested value, in order."""
    return [leaf for _, leaf in leaves(value) if isinstance(leaf, Tensor)]


def replaced(
    value: Any, change: Callable[[Any], Any], kind: type = Tensor, *, strict: bool = False
) -> Any:
    """A deep copy of a nested value in which `change` has been applied to every tensor.

    What cannot be copied (an open file, a lock) is shared.

    Args:
        value: any value.
        change: called once for each object of `kind`.
        kind: what is changed.
        strict: raise if something cannot be copied.
    """
    if isinstance(value, kind):
        return change(value)
    memo: dict[int, Any] = {}
    for _, leaf in leaves(value):
        if isinstance(leaf, kind) and id(leaf) not in memo:
            memo[id(leaf)] = change(leaf)
    try:
        return copy.deepcopy(value, memo.copy())  # a copy that fails leaves parts in its memo
    except Exception:
        if strict:
            raise
        return _replaced_in_containers(value, memo)


def _replaced_in_containers(value: Any, memo: dict[int, Any]) -> Any:
    if id(value) in memo:
        return memo[id(value)]
    if type(value) is dict:
        return {key: _replaced_in_containers(item, memo) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_replaced_in_containers(item, memo) for item in value)
    return value


def own(tensor: Tensor) -> Tensor:
    """The same values in a tensor of its own, which takes part in no gradient."""
    return tensor.detach().clone()
