"""The pattern of a value: what in it is a tensor, and what a constant that a graph is made for."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch

from biofx.capture.proxy import BioProxy, Kind
from biofx.capture.world import equal, items_of

CONSTANTS = (type(None), bool, int, float, complex, str, torch.dtype, torch.device)


@dataclass(frozen=True)
class Pattern:
    """The shape of one value: a proxy of some kind, a constant, or a container of patterns."""

    form: Literal["tensor", "value", "unknown", "constant", "tuple", "list", "dict", "record"]
    constant: Any = None
    items: tuple["Pattern", ...] = ()
    keys: tuple[Any, ...] = ()
    cls: type | None = None

    def fits(self, other: "Pattern") -> bool:
        """Whether a call with pattern `other` may use a graph traced for this one."""
        if self.form == "constant":
            same = other.form == "constant" and type(self.constant) is type(other.constant)
            return same and equal(self.constant, other.constant)
        if self.items or other.items:
            return (
                (self.form, self.keys, self.cls, len(self.items))
                == (other.form, other.keys, other.cls, len(other.items))
            ) and all(
                mine.fits(theirs) for mine, theirs in zip(self.items, other.items, strict=True)
            )
        # a "value" may well be a tensor when the time comes: the guard will see
        return other.form != "constant" and bool(self.items) == bool(other.items)

    def has_unknown(self) -> bool:
        """Whether some part of it came out of Python code that was not traced."""
        return self.form == "unknown" or any(item.has_unknown() for item in self.items)

    def guard(self, path: str) -> list[str]:
        """Python conditions under which the value at `path` fits."""
        if self.form == "tensor":
            return [f"isinstance({path}, torch.Tensor)"]
        if self.form in ("value", "unknown"):
            return [f"{path} is not None"]
        if self.form == "constant":
            if self.constant is None or isinstance(self.constant, bool):
                return [f"{path} is {self.constant}"]
            literal = repr(self.constant)
            if isinstance(self.constant, torch.device):
                literal = f"torch.{literal}"
            elif isinstance(self.constant, float):
                literal = f"float({str(self.constant)!r})"
            kind = type(self.constant)
            name = kind.__name__ if kind.__module__ == "builtins" else f"torch.{kind.__name__}"
            signed = [f"str({path}) == {str(self.constant)!r}"]  # 0.0 == -0.0
            zero = kind is float and not self.constant
            return [f"type({path}) is {name}", f"{path} == {literal}", *(signed if zero else ())]
        if self.form == "record":
            assert self.cls is not None
            conditions = [
                f"type({path}).__qualname__ == {self.cls.__qualname__!r}",
                f"type({path}).__module__ == {self.cls.__module__!r}",
            ]
            for key, item in zip(self.keys, self.items, strict=True):
                conditions += item.guard(f"{path}.{key}")
            return conditions
        conditions = [f"type({path}) is {self.form}"]
        if self.form == "dict":
            conditions.append(f"list({path}) == {list(self.keys)!r}")
            keys = [repr(key) for key in self.keys]
        else:
            conditions.append(f"len({path}) == {len(self.items)}")
            keys = [str(i) for i in range(len(self.items))]
        for key, item in zip(keys, self.items, strict=True):
            conditions += item.guard(f"{path}[{key}]")
        return conditions


class Unpatterned(Exception):
    """A value of a type that no graph can take or give."""


def pattern_of(value: Any) -> Pattern:
    """The pattern of a value that is or holds proxies.

    Raises:
        Unpatterned: the value is neither a proxy nor a constant nor a plain container.
    """
    if isinstance(value, BioProxy):
        return Pattern("tensor" if value.static is not None else value.kind)
    if isinstance(value, torch.Tensor):
        return Pattern("tensor")
    if type(value) in CONSTANTS:
        return Pattern("constant", constant=value)
    if type(value) in (tuple, list):
        form: Any = type(value).__name__
        return Pattern(form, items=tuple(pattern_of(item) for item in value))
    if isinstance(value, type):
        raise Unpatterned(f"the class {value.__qualname__}")
    if type(value) is dict and all(type(key) in (str, int, bool, type(None)) for key in value):
        items = tuple(pattern_of(item) for item in value.values())
        return Pattern("dict", items=items, keys=tuple(value))
    if is_record(value) and not rebuilds(value):
        raise Unpatterned(f"a {type(value).__qualname__}, which is more than its fields")
    if dataclasses.is_dataclass(value):
        names = tuple(field.name for field in dataclasses.fields(value))
        items = tuple(pattern_of(getattr(value, name)) for name in names)
        return Pattern("record", items=items, keys=names, cls=type(value))
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        items = tuple(pattern_of(item) for item in value)
        return Pattern("record", items=items, keys=tuple(value._fields), cls=type(value))
    raise Unpatterned(f"a {type(value).__module__}.{type(value).__qualname__}")


def is_record(value: Any) -> bool:
    """Whether a value is a dataclass or a named tuple."""
    if dataclasses.is_dataclass(value):
        return not isinstance(value, type)
    return isinstance(value, tuple) and hasattr(value, "_fields")


def rebuilds(value: Any) -> bool:
    """Whether a dataclass or named tuple made anew of its fields is the same.

    It is not if its `__post_init__` computes something, or if it holds more than its fields.
    """
    try:
        if isinstance(value, tuple):
            fresh = type(value)(*value)
        else:
            names = [field.name for field in dataclasses.fields(value)]
            fresh = type(value)(**{name: getattr(value, name) for name in names})
        then, now = _content(value), _content(fresh)
    except Exception:
        return False
    return len(then) == len(now) and all(
        a is b or (type(a) in CONSTANTS and type(a) is type(b) and bool(a == b))
        for a, b in zip(then, now, strict=True)
    )


def _content(value: Any) -> list[Any]:
    content = list(items_of(value)) if isinstance(value, tuple | list | dict) else []
    if dataclasses.is_dataclass(value):
        content += [getattr(value, field.name) for field in dataclasses.fields(value)]
    return content + list(items_of(getattr(value, "__dict__", {})))


def value_of(
    pattern: Pattern, proxy: BioProxy, take: Callable[[str, BioProxy, Any, Kind], BioProxy]
) -> Any:
    """Rebuild a structured value from the one proxy that stands for all of it.

    `take(how, proxy, key, kind)` records `proxy[key]` ("item") or `proxy.key` ("attribute").
    """
    if pattern.form == "constant":
        return pattern.constant
    if pattern.form in ("tensor", "value", "unknown"):
        proxy.kind = pattern.form
        return proxy
    how = "attribute" if pattern.form == "record" else "item"
    keys = pattern.keys or range(len(pattern.items))
    parts = []
    for key, item in zip(keys, pattern.items, strict=True):
        if _all_constant(item):
            parts.append(value_of(item, proxy, take))
            continue
        kind: Kind = item.form if item.form in ("tensor", "unknown") else "value"
        parts.append(value_of(item, take(how, proxy, key, kind), take))
    if pattern.form == "tuple":
        return tuple(parts)
    if pattern.form == "list":
        return parts
    named = dict(zip(pattern.keys, parts, strict=True))
    return pattern.cls(**named) if pattern.cls is not None else named


def _all_constant(pattern: Pattern) -> bool:
    if pattern.form == "constant":
        return True
    return bool(pattern.items) and all(_all_constant(item) for item in pattern.items)
