"""The entrance of an exported graph: typed parameters, and checks of what it was captured for."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from types import GenericAlias
from typing import Any, Optional

import torch
from torch import fx
from torch.fx.graph import CodeGen

from biofx.capture.pattern import Pattern, pattern_of
from biofx.capture.signature import Call


@dataclass(frozen=True)
class Doors:
    """Placeholders of a flat graph.

    Attributes:
        values: {parameter name: node, or tuple or dict of nodes} for the captured graph.
        checks: (condition, message) pairs that the generated forward asserts.
    """

    values: Mapping[str, Any]
    checks: tuple[tuple[str, str], ...]


class Entrance(CodeGen):
    """Generates a forward that TorchScript can compile, which asserts the pattern it is for."""

    def __init__(self, checks: tuple[tuple[str, str], ...]) -> None:
        super().__init__()
        self.checks = checks

    def gen_fn_def(
        self, free_vars: list[str], maybe_return_annotation: str, *, expanded_def: bool = False
    ) -> str:
        """The head of `forward`, and the checks."""
        head = super().gen_fn_def(free_vars, maybe_return_annotation, expanded_def=expanded_def)
        lines = [f"\n    assert {condition}, {message!r}" for condition, message in self.checks]
        return head + "".join(lines)


@dataclass
class _Door:
    """One parameter of the entrance.

    Attributes:
        default: () or the one default; None stands for any argument that is left out.
        needed: the call must give it, although it may have a default for the sake of its place.
    """

    name: str
    pattern: Pattern
    kind: Any
    default: tuple[Any, ...] = ()
    needed: bool = True

    @property
    def may_be_absent(self) -> bool:
        return self.default == (None,) and not _is_none(self.pattern)


def entrance_of(call: Call, graph: fx.Graph) -> Doors:
    """Make one placeholder a parameter; `*args` and `**kwargs` become named parameters."""
    doors: list[_Door | None] = []

    def add(name: str, pattern: Pattern, own: Any = inspect.Parameter.empty) -> int:
        kind = _type_of(pattern)
        door = None if kind is None else _Door(name, pattern, kind)
        if door is not None:
            door.needed = not _is(own, pattern)
            # Generated code has no keyword-only parameters: one that must be given may yet need a
            # default, to stand behind those that need not.
            behind = any(earlier is not None and earlier.default for earlier in doors)
            if not door.needed and not _is_mutable(pattern):
                door.default = (_constant(pattern),)
            elif (behind or own is not inspect.Parameter.empty) and not _is_none(pattern):
                door.default = (None,)
        doors.append(door)
        return len(doors) - 1

    places: dict[str, Any] = {}
    for parameter in call.parameters:
        name, pattern = parameter.name, call.patterns[parameter.name]
        if parameter.kind is parameter.VAR_POSITIONAL:
            items = enumerate(pattern.items)
            places[name] = tuple(add(f"{name}_{i}", item) for i, item in items)
        elif parameter.kind is parameter.VAR_KEYWORD:
            named = zip(pattern.keys, pattern.items, strict=True)
            places[name] = {key: add(key, item) for key, item in named}
        else:
            places[name] = add(name, pattern, parameter.default)
    required = False
    for door in reversed(doors):
        if door is not None:  # a required parameter may not follow one with a default
            required = required or not door.default
            door.default = () if required else door.default
    checks: list[tuple[str, str]] = []
    nodes = [_place(door, graph, checks) if door is not None else None for door in doors]
    values = {
        name: tuple(nodes[i] for i in place)
        if isinstance(place, tuple)
        else {key: nodes[i] for key, i in place.items()}
        if isinstance(place, dict)
        else nodes[place]
        for name, place in places.items()
    }
    return Doors(values, tuple(checks))


def _place(door: _Door, graph: fx.Graph, checks: list[tuple[str, str]]) -> fx.Node:
    name, kind = door.name, door.kind
    found = _checks(name, door.pattern)
    if door.may_be_absent:
        kind = Optional[kind]  # noqa: UP045
        if door.needed:
            checks.append((f"{name} is not None", f"exported for calls that give {name!r}"))
        else:
            found = [(f"{name} is None or {condition}", message) for condition, message in found]
    checks.extend(found)
    node = graph.create_node("placeholder", name, door.default, name=name, type_expr=kind)
    node.meta["biofx_kind"] = "tensor" if door.pattern.form == "tensor" else "value"
    return node


def _is(own: Any, pattern: Pattern) -> bool:
    """Whether a parameter's own default is what the graph was captured for."""
    if own is inspect.Parameter.empty:
        return False
    default = pattern_of(own)
    return default.form == pattern.form and pattern.fits(default)


def _is_none(pattern: Pattern) -> bool:
    return pattern.form == "constant" and pattern.constant is None


def _is_mutable(pattern: Pattern) -> bool:
    """Whether a value is or holds a list or a dict, which TorchScript takes for no default."""
    return pattern.form in ("list", "dict") or any(map(_is_mutable, pattern.items))


def _constant(pattern: Pattern) -> Any:
    if pattern.form == "constant":
        return pattern.constant
    items = [_constant(item) for item in pattern.items]
    if pattern.form == "dict":
        return dict(zip(pattern.keys, items, strict=True))
    return tuple(items) if pattern.form == "tuple" else items


def _type_of(pattern: Pattern) -> Any:
    """The TorchScript type of a parameter; None for a constant whose type has no name there."""
    if pattern.form == "constant":
        if pattern.constant is None:
            return Optional[torch.Tensor]  # noqa: UP045
        kind = type(pattern.constant)
        return kind if kind in (bool, int, float, complex, str) else None
    if pattern.form == "tuple":
        return GenericAlias(tuple, tuple(_type_of(item) for item in pattern.items))
    if pattern.form == "list":
        return GenericAlias(list, (_type_of(pattern.items[0]) if pattern.items else torch.Tensor,))
    if pattern.form == "dict":
        item = _type_of(pattern.items[0]) if pattern.items else torch.Tensor
        return GenericAlias(dict, (str, item))
    return pattern.cls if pattern.form == "record" else torch.Tensor


def _checks(path: str, pattern: Pattern) -> list[tuple[str, str]]:
    """What a type alone does not say."""
    message = f"exported for the {path} that the model was captured with"
    if pattern.form == "constant":
        if pattern.constant is None:
            return [(f"{path} is None", message)]
        literal = repr(pattern.constant)
        if isinstance(pattern.constant, float):
            literal = f"float({str(pattern.constant)!r})"
        return [(f"{path} == {literal}", message)]
    found = []
    if pattern.form in ("list", "dict"):
        found.append((f"len({path}) == {len(pattern.items)}", message))
    for key, item in zip(pattern.keys or range(len(pattern.items)), pattern.items, strict=True):
        part = f"{path}.{key}" if pattern.form == "record" else f"{path}[{key!r}]"
        found += _checks(part, item)
    return found
