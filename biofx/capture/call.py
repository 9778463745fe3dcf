"""The call that a graph was captured for, and the check in front of a forward made of the graph."""

import enum
import inspect
import keyword
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.graph import CodeGen, PythonCode

from biofx.copying.nested import Step, leaves, tensors, written
from biofx.errors import ModelError

_EMPTY = inspect.Parameter.empty
_DEFAULTS = (type(None), bool, int, float, str, torch.dtype, torch.device)
_Kind = tuple[str, ...]


@dataclass(frozen=True)
class Call:
    """Arguments of a forward, by parameter name.

    Attributes:
        parameters: of the forward, without ``self``.
        expected: {parameter name: what each part of its value was}, for the check.
        free: whether tensors may have any shape and type (nothing was run).
        values: the arguments themselves; dropped when the graph is kept.
        objects: parameters that had their default, an object for which generated code has None.
    """

    parameters: tuple[inspect.Parameter, ...]
    expected: Mapping[str, tuple[tuple[tuple[Step, ...], Any], ...]]
    free: bool = False
    values: Mapping[str, Any] = field(default_factory=dict)
    objects: frozenset[str] = frozenset()

    @classmethod
    def of(
        cls, signature: inspect.Signature, args: Any, kwargs: Any, *, free: bool = False
    ) -> "Call":
        """The call with these arguments.

        Raises:
            TypeError: they do not bind.
        """
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        # A parameter may be called `self` if the module itself has another name.
        values = {_name(name): value for name, value in bound.arguments.items()}
        parameters = tuple(p.replace(name=_name(p.name)) for p in signature.parameters.values())
        expected = {
            name: tuple((steps, _seen(leaf)) for steps, leaf in leaves(value))
            for name, value in values.items()
        }
        objects = frozenset(
            p.name
            for p in parameters
            if p.default is not _EMPTY
            and values.get(p.name) is p.default
            and not _is_plain(p.default)
            and not tensors(p.default)
        )
        return cls(parameters, expected, free, values, objects)

    def placeholder(self, name: str) -> tuple[str, tuple[Any, ...]]:
        """(target, args) of the placeholder of a parameter."""
        parameter = next(p for p in self.parameters if p.name == name)
        stars = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}
        if parameter.kind in stars:
            return stars[parameter.kind] + name, ()
        if parameter.default is _EMPTY:
            return name, ()
        return name, (parameter.default if _is_plain(parameter.default) else None,)

    def bind(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments by parameter name, defaults included."""
        bound = inspect.Signature(list(self.parameters)).bind(*args, **kwargs)
        bound.apply_defaults()
        return bound.arguments

    def kept(self) -> "Call":
        """The same without the values."""
        return Call(self.parameters, self.expected, self.free, objects=self.objects)

    def describe(self) -> list[str]:
        """The arguments that are no plain required tensors, as one would write them."""
        found = []
        for parameter in self.parameters:
            parts = self.expected.get(parameter.name, ())
            simple = len(parts) == 1 and not parts[0][0]
            if simple and _is_tensor(parts[0][1]) and parameter.default is _EMPTY:
                continue
            if simple:
                found.append(f"{parameter.name}={_written(parts[0][1])}")
            elif parts:
                inner = ", ".join(
                    f"{written(steps)}: {_written(seen)}" for steps, seen in parts[:4]
                )
                found.append(f"{parameter.name}=({inner}{', …' if len(parts) > 4 else ''})")
        return found

    def check(self, given: Mapping[str, Any]) -> None:
        """Refuse arguments that the graph was not captured for.

        Raises:
            ModelError: naming the argument, what it was and what it is.
        """
        for name, expected in self.expected.items():
            if isinstance(given[name], fx.Proxy):
                continue  # it is being traced
            if given[name] is None and name in self.objects:
                continue  # it is not given
            found = dict(leaves(given[name]))
            for steps, seen in expected:
                now = _seen(found.pop(steps)) if steps in found else ("missing",)
                if not _fits(seen, now, self.free):
                    raise ModelError(
                        f"this graph was captured for {name}{written(steps)} = {_written(seen)}, "
                        f"and is called with {_written(now)}; capture it anew with "
                        "biofx.transform(model, example_inputs=…)"
                    )
            if found:
                extra = written(next(iter(found)))
                raise ModelError(f"this graph was captured for a {name} without {extra}")


def _name(name: str) -> str:
    return "self_" if name == "self" else name


def _is_plain(default: Any) -> bool:
    """Whether generated code can write a value: it knows no classes of the user's."""
    if type(default) is dict:
        return _is_plain([*default, *default.values()])
    if type(default) in (tuple, list):
        return all(map(_is_plain, default))
    return type(default) in _DEFAULTS


def _seen(leaf: Any) -> Any:
    if isinstance(leaf, Tensor):
        return ("tensor", tuple(leaf.shape), leaf.dtype)
    if isinstance(leaf, (*_DEFAULTS, complex, bytes, enum.Enum)):
        return ("constant", leaf)
    return ("object", type(leaf).__name__)


def _is_tensor(seen: Any) -> bool:
    return bool(seen[0] == "tensor")


def _fits(seen: Any, now: Any, free: bool) -> bool:
    if free and _is_tensor(seen):
        return _is_tensor(now)
    return type(seen[-1]) is type(now[-1]) and bool(seen == now)


def _written(seen: Any) -> str:
    if seen[0] == "tensor":
        if seen[1] is None:
            return "a tensor"
        kind = str(seen[2]).removeprefix("torch.")
        return f"{kind} tensor of shape {tuple(seen[1])}"
    return {"missing": "nothing"}.get(seen[0]) or (
        repr(seen[1]) if seen[0] == "constant" else f"a {seen[1]}"
    )


# Key of `node.meta`: what hooks of the module do stands in the graph, before and after the node.
FORWARD_ONLY = "biofx_forward_only"
# A part of a name that Python takes for an attribute as it stands. (`µ` it would change.)
_PLAIN = re.compile(r"[A-Za-z0-9_]+")


class CapturedCodeGen(CodeGen):
    """Generates a forward with the user's own signature and a check of the arguments.

    Args:
        call: what the graph was captured for.
        defaults_only: check only that what need not be given is not given: for layers, which are
            called often.
        training: the mode that it was captured in, to be checked too; None for a layer.

    Names of modules may be anything a `ModuleDict` takes for a key; here they are quoted.
    """

    def __init__(
        self, call: Call, *, defaults_only: bool = False, training: bool | None = None
    ) -> None:
        super().__init__()
        self.call = call
        self.defaults_only = defaults_only
        self.training = training

    def gen_fn_def(
        self, free_vars: list[str], maybe_return_annotation: str, *, expanded_def: bool = False
    ) -> str:
        """The head of the function, keyword-only parameters and the check included."""
        kinds = [parameter.kind.name for parameter in self.call.parameters]
        if "KEYWORD_ONLY" in kinds and "VAR_POSITIONAL" not in kinds:
            free_vars.insert(kinds.index("KEYWORD_ONLY"), "*")
        head = super().gen_fn_def(free_vars, maybe_return_annotation, expanded_def=expanded_def)
        names = ", ".join(f"{p.name!r}: {p.name}" for p in self.call.parameters)
        check = f"_check_call({{{names}}})"
        if self.training is not None:
            head = f"{head}\n    _check_mode(self.training)"
        if not self.defaults_only:
            return f"{head}\n    {check}"
        others = [p.name for p in self.call.parameters if p.default is None]
        given = " or ".join(f"{name} is not None" for name in others)
        return f"{head}\n    if {given}:\n        {check}" if others else head

    def additional_globals(self) -> list[tuple[str, Any]]:
        """The checks."""
        return [("_check_call", self.call.check), ("_check_mode", self.check_mode)]

    def check_mode(self, training: bool) -> None:
        """Refuse the mode that the graph was not captured in: `self.training` is a constant there.

        Raises:
            ModelError: naming both.
        """
        if training is not self.training:
            modes = {True: "training", False: "evaluation"}
            raise ModelError(
                f"this graph was captured in {modes[not training]} mode, and is called in "
                f"{modes[training]} mode; capture it anew in the mode that it is to run in"
            )

    def _gen_python_code(
        self, nodes: Any, root_module: str, namespace: Any, **more: Any
    ) -> PythonCode:
        unsafe = [node for node in nodes if _is_unsafe(node)]
        targets = {node: str(node.target) for node in unsafe}
        stand_ins = {node: f"_quoted_{place}_" for place, node in enumerate(unsafe)}
        for node in unsafe:
            node.target = stand_ins[node]
        try:
            code = super()._gen_python_code(nodes, root_module, namespace, **more)
        finally:
            for node in unsafe:
                node.target = targets[node]
        source = code.src
        for node, stand_in in stand_ins.items():
            value = root_module
            for part in targets[node].split("."):
                plain = (
                    _PLAIN.fullmatch(part) and not part[0].isdigit() and not keyword.iskeyword(part)
                )
                value = f"{value}.{part}" if plain else f"getattr({value}, {part!r})"
            source = source.replace(f"{root_module}.{stand_in}", value)
        code.src = source
        return code


def reserve(graph: fx.Graph) -> fx.Graph:
    """Let no value of a graph take a name that its generated forward needs."""
    for name in ("self", "torch", "_check_call", "_check_mode"):
        graph._graph_namespace.create_name(name, None)
    return graph


def _is_unsafe(node: fx.Node) -> bool:
    if node.op not in ("call_module", "get_attr"):
        return False
    parts: Sequence[str] = str(node.target).split(".")
    return not all(_PLAIN.fullmatch(part) and not keyword.iskeyword(part) for part in parts)
