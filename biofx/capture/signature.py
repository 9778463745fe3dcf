"""What a graph assumes of its arguments, and the check in front of it.

A graph is traced for one pattern of arguments: which are tensors, which are constants (None, a
flag, a number), which are tuples or dicts of those. The generated forward checks the pattern; any
other call runs the module's own Python forward. Nothing is assumed silently.
"""

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import fx, nn
from torch.fx.graph import CodeGen

from biofx.capture.proxy import BioProxy, Kind

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
            return same and bool(self.constant == other.constant)
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
            return [f"type({path}) is {name}", f"{path} == {literal}"]
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
    if type(value) is dict and all(type(key) in (str, int, bool, type(None)) for key in value):
        items = tuple(pattern_of(item) for item in value.values())
        return Pattern("dict", items=items, keys=tuple(value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = tuple(field.name for field in dataclasses.fields(value))
        items = tuple(pattern_of(getattr(value, name)) for name in names)
        return Pattern("record", items=items, keys=names, cls=type(value))
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        items = tuple(pattern_of(item) for item in value)
        return Pattern("record", items=items, keys=tuple(value._fields), cls=type(value))
    raise Unpatterned(f"a {type(value).__module__}.{type(value).__qualname__}")


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


def _default_ok(value: Any) -> bool:
    if type(value) in (tuple, list):
        return all(_default_ok(item) for item in value)
    return type(value) in CONSTANTS


@dataclass(frozen=True)
class Call:
    """The arguments that a graph was traced for: {parameter name: Pattern}."""

    patterns: Mapping[str, Pattern]
    parameters: tuple[inspect.Parameter, ...]

    @classmethod
    def of(cls, signature: inspect.Signature, values: Mapping[str, Any]) -> "Call":
        """Patterns of bound arguments (without `self`).

        Raises:
            Unpatterned: an argument or a default that no graph can take.
        """
        parameters = tuple(signature.parameters.values())
        patterns = {}
        for parameter in parameters:
            default = parameter.default
            if default is not inspect.Parameter.empty and not _default_ok(default):
                raise Unpatterned(f"default of {parameter.name!r}: {type(default).__qualname__}")
            try:
                patterns[parameter.name] = pattern_of(values[parameter.name])
            except Unpatterned as error:
                raise Unpatterned(f"argument {parameter.name!r} is {error}") from None
        return cls(patterns, parameters)

    @classmethod
    def bind(
        cls, module: nn.Module, arguments: tuple[tuple[Any, ...], Mapping[str, Any]] | None
    ) -> "Call":
        """The call of a module's forward with these (args, kwargs).

        Without arguments, required parameters are taken for tensors and optional ones for their
        defaults.

        Raises:
            Unpatterned: no graph can be called like that.
        """
        try:
            signature = inspect.signature(type(module).forward)
        except (TypeError, ValueError):
            raise Unpatterned("its forward has no readable signature") from None
        parameters = list(signature.parameters.values())[1:]
        signature = signature.replace(parameters=parameters)
        if arguments is not None:
            try:
                bound = signature.bind(*arguments[0], **arguments[1])
            except TypeError as error:
                raise Unpatterned(f"called with arguments that do not bind: {error}") from None
            bound.apply_defaults()
            return cls.of(signature, bound.arguments)
        assumed: dict[str, Any] = {}
        for parameter in parameters:
            if parameter.kind is parameter.VAR_POSITIONAL:
                assumed[parameter.name] = ()
            elif parameter.kind is parameter.VAR_KEYWORD:
                assumed[parameter.name] = {}
            elif parameter.default is not parameter.empty:
                assumed[parameter.name] = parameter.default
            else:
                assumed[parameter.name] = torch.empty(0)
        return cls.of(signature, assumed)

    @property
    def unsure(self) -> bool:
        """Whether an argument of unknown origin may turn out not to fit."""
        return any(pattern.has_unknown() for pattern in self.patterns.values())

    def fits(self, other: "Call") -> bool:
        """Whether the other call may use a graph traced for this one."""
        return all(self.patterns[name].fits(other.patterns[name]) for name in self.patterns)

    def guard(self) -> str:
        conditions: list[str] = []
        for name, pattern in self.patterns.items():
            conditions += pattern.guard(name)
        return " and ".join(conditions) or "True"

    def forwarded(self) -> str:
        """The arguments as one passes them on: ``x, mask=mask, *args, **kwargs``."""
        parts = []
        for parameter in self.parameters:
            name = parameter.name
            if parameter.kind is parameter.VAR_POSITIONAL:
                parts.append(f"*{name}")
            elif parameter.kind is parameter.VAR_KEYWORD:
                parts.append(f"**{name}")
            elif parameter.kind is parameter.KEYWORD_ONLY:
                parts.append(f"{name}={name}")
            else:
                parts.append(name)
        return ", ".join(parts)


def split_inputs(example: Any) -> tuple[tuple[Any, ...], Mapping[str, Any]] | None:
    """(args, kwargs) of the forms in which example inputs may be given."""
    if example is None:
        return None
    if isinstance(example, dict):
        return (), example
    if (
        isinstance(example, tuple)
        and len(example) == 2
        and isinstance(example[0], tuple | list)
        and isinstance(example[1], dict)
    ):
        return tuple(example[0]), example[1]
    if isinstance(example, tuple | list):
        return tuple(example), {}
    return (example,), {}


class GuardedCodeGen(CodeGen):
    """Generates a forward with the user's own signature and the guard in front."""

    def __init__(self, call: Call, *, world: bool = False) -> None:
        super().__init__()
        self.call = call
        self.world = world

    def gen_fn_def(
        self, free_vars: list[str], maybe_return_annotation: str, *, expanded_def: bool = False
    ) -> str:
        head = super().gen_fn_def(free_vars, maybe_return_annotation, expanded_def=expanded_def)
        world = "self._world.moved() or " if self.world else ""
        return (
            f"{head}\n"
            f"    if self._cell.stale or {world}not ({self.call.guard()}):\n"
            f"        return self._own_forward({self.call.forwarded()})"
        )

    def additional_globals(self) -> list[tuple[str, Any]]:
        return [("torch", torch)]


def placeholders(call: Call, graph: fx.Graph) -> dict[str, fx.Node]:
    """One placeholder per parameter, in order, with its default."""
    nodes = {}
    for parameter in call.parameters:
        stars: dict[Any, str] = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}
        target = stars.get(parameter.kind, "") + parameter.name
        default = parameter.default
        args = () if default is inspect.Parameter.empty else (default,)
        node = graph.create_node("placeholder", target, args=args, name=parameter.name)
        nodes[parameter.name] = node
    return nodes
