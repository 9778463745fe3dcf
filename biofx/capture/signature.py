"""What a graph assumes of its arguments, and the check in front of it.

A graph is traced for one pattern of arguments: which are tensors, which are constants (None, a
flag, a number), which are tuples or dicts of those. The generated forward checks the pattern; any
other call runs the module's own Python forward. Nothing is assumed silently.
"""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.fx.graph import CodeGen

from biofx.capture.pattern import CONSTANTS, Pattern, Unpatterned, pattern_of

# Names that the generated forward uses in front of the graph, for itself and in its check.
_NEEDED = frozenset({
    "self", "torch", "isinstance", "type", "len", "bool", "int", "float", "complex", "str", "tuple",
    "list", "dict",
})  # fmt: skip


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
            if parameter.name in _NEEDED:
                raise Unpatterned(f"it has an argument named {parameter.name!r}")
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
        cls,
        signature: inspect.Signature,
        arguments: tuple[tuple[Any, ...], Mapping[str, Any]] | None,
    ) -> "Call":
        """The call of a forward with this signature and with these (args, kwargs).

        Without arguments, required parameters are taken for tensors and optional ones for their
        defaults.

        Raises:
            Unpatterned: no graph can be called like that.
        """
        parameters = signature.parameters.values()
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


def signature_of(cls: type[nn.Module]) -> inspect.Signature:
    """What a class's forward takes besides `self`.

    Raises:
        Unpatterned: nothing says so.
    """
    try:
        signature = inspect.signature(cls.forward)
    except (TypeError, ValueError):
        raise Unpatterned("its forward has no readable signature") from None
    return signature.replace(parameters=list(signature.parameters.values())[1:])


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
        kinds = [parameter.kind.name for parameter in self.call.parameters]
        if "KEYWORD_ONLY" in kinds and "VAR_POSITIONAL" not in kinds:
            free_vars.insert(kinds.index("KEYWORD_ONLY"), "*")
        head = super().gen_fn_def(free_vars, maybe_return_annotation, expanded_def=expanded_def)
        world = "self._world.moved() or " if self.world else ""
        return (
            f"{head}\n"
            f"    if self._cell.stale or {world}not ({self.call.guard()}):\n"
            f"        return self._own_forward({self.call.forwarded()})"
        )

    def additional_globals(self) -> list[tuple[str, Any]]:
        return [("torch", torch)]


def new_graph() -> fx.Graph:
    """An empty graph. No value in it takes a name that the generated forward needs."""
    graph = fx.Graph()
    for name in ("self", "torch"):
        graph._graph_namespace.create_name(name, None)
    return graph


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
