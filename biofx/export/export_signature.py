"""The parameters of what is exported: typed ones of a graph, those that are tensors of a trace."""

import inspect
import keyword
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import GenericAlias
from typing import Any, Optional

from torch import Tensor, fx, nn

from biofx.capture import Arguments, signature_of
from biofx.capture.call import Call
from biofx.copying.clone import REGISTRIES
from biofx.copying.nested import leaves, parts
from biofx.copying.template import Template, rebuild
from biofx.export.attempt import Impossible

# Names that generated code uses for other things.
_TAKEN = frozenset((
    "self", "torch", "getattr", "setattr", "len", "slice", "int", "float", "bool", "type", "device",
    "inf", "nan", "math", "operator"
))  # fmt: skip
_NUMBERS = (bool, int, float, complex, str)


# --- of a graph that was traced without example inputs ------------------------------------------


def give_types(
    graph: fx.Graph, call: Call, arguments: Arguments | None, hints: Mapping[str, Any]
) -> tuple[str, ...]:
    """Give the required parameters of a graph types; those with defaults go, as it holds these.

    Args:
        graph: changed in place.
        call: that it was captured for.
        arguments: example inputs.
        hints: {parameter name: annotation} of the user's forward.

    Returns:
        Names of the parameters that stay.

    Raises:
        Impossible: the example inputs give a parameter another value than its default, or one that
            has no type in TorchScript.
    """
    try:
        given = {} if arguments is None else call.bind(arguments.args, arguments.kwargs)
    except TypeError as error:  # a decorator takes them, and the graph is for those that it shows
        raise Impossible(f"the graph of the model takes other arguments: {error}") from error
    kept = []
    for node in list(graph.find_nodes(op="placeholder")):
        name = str(node.target).lstrip("*")
        parameter = next(p for p in call.parameters if p.name == name)
        star = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        if star or parameter.default is not parameter.empty:
            if given and not _is_default(given[name], parameter):
                raise Impossible(f"the graph of the model is for calls without {name!r}")
            if not node.users:
                graph.erase_node(node)
                continue
        if name in _TAKEN:
            raise Impossible(f"a parameter of the model has the name {name!r}")
        kept.append(name)
        node.args = ()
        node.type = _type_of(given[name], name) if given else hints.get(name)
    return tuple(kept)


def _is_default(value: Any, parameter: inspect.Parameter) -> bool:
    default = parameter.default
    if default is parameter.empty:  # *args, **kwargs
        return not value
    if value is default:
        return True
    return type(value) is type(default) and isinstance(value, _NUMBERS) and value == default


def _type_of(value: Any, name: str) -> Any:
    """The TorchScript type of a value."""
    if isinstance(value, Tensor):
        return Tensor
    if value is None:
        return Optional[Tensor]  # noqa: UP045
    if type(value) in _NUMBERS:
        return type(value)
    if type(value) is tuple:
        return GenericAlias(tuple, tuple(_type_of(item, name) for item in value))
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)
    if type(value) in (list, dict):
        items = list(value.values()) if type(value) is dict else value
        kinds = [_type_of(item, name) for item in items] or [Tensor]
        keys = type(value) is list or all(isinstance(key, str) for key in value)
        if keys and all(kind == kinds[0] for kind in kinds):
            if type(value) is list:
                return GenericAlias(list, (kinds[0],))
            return GenericAlias(dict, (str, kinds[0]))
    raise Impossible(f"TorchScript has no type for the {type(value).__name__} given as {name!r}")


# --- of a call that is traced -------------------------------------------------------------------


@dataclass(frozen=True)
class TensorCall:
    """A model as a function of the tensors among its arguments; the others are fixed.

    Attributes:
        module: what to trace; has the parameters and children of the model, under their names.
        values: {parameter name: tensor, or tuple, list or dict of tensors}.
        by_place: how many of these, the first ones, were given by place.
        fixed: names of the arguments that are no tensors and became constants.
    """

    module: nn.Module
    values: Mapping[str, Any]
    by_place: int
    fixed: tuple[str, ...]

    @property
    def arguments(self) -> Arguments:
        """The values as the arguments of a call of `module`."""
        items = list(self.values.items())
        args = tuple(value for _, value in items[: self.by_place])
        return Arguments(args, dict(items[self.by_place :]))


def tensor_call(model: nn.Module, arguments: Arguments) -> TensorCall:
    """The call of a model with these arguments, as a function of tensors that gives such."""
    signature = signature_of(model, arguments)
    by_place = signature.bind_partial(*arguments.args).arguments
    values: dict[str, Any] = {}
    fixed: list[str] = []

    def parameter(name: str, value: Any) -> Callable[[Mapping[str, Any]], Any]:
        name = name if name.isidentifier() and not keyword.iskeyword(name) else "argument"
        while name in values or name in _TAKEN:
            name += "_"
        held = [leaf for _, leaf in leaves(value) if isinstance(leaf, Tensor)]
        if not held:
            if value is not None:
                fixed.append(name)
            return lambda _: value
        if _is_plain(value):
            values[name] = value
            return lambda given: given[name]
        template = Template(value)  # an object, or tensors beside other things
        names = [f"{name}_{place}" for place in range(len(template.slots))]
        values.update(zip(names, template.tensors(value), strict=True))
        return lambda given: rebuild(template, [given[key] for key in names])

    positional: list[Any] = []
    for name, value in by_place.items():
        if signature.parameters[name].kind is inspect.Parameter.VAR_POSITIONAL:
            positional += [parameter(f"{name}_{i}", item) for i, item in enumerate(value)]
        else:
            positional.append(parameter(name, value))
    placed = len(values)
    named = {name: parameter(name, value) for name, value in arguments.kwargs.items()}

    def call(given: Mapping[str, Any]) -> Any:
        args = [make(given) for make in positional]
        return plain_result(model(*args, **{key: make(given) for key, make in named.items()}))

    names = list(values)
    pairs = ", ".join(f"{name!r}: {name}" for name in names)
    space = {"_call": call}
    exec(f"def forward(self, {', '.join(names)}):\n    return _call({{{pairs}}})", space)
    holder: nn.Module = type(type(model).__name__, (nn.Module,), {"forward": space["forward"]})()
    for registry in REGISTRIES:
        holder.__dict__[registry] = model.__dict__[registry]
    return TensorCall(holder.eval(), values, placed, tuple(fixed))


def _is_plain(value: Any) -> bool:
    """Whether a value is a tensor, or a tuple, list or dict of such."""
    if isinstance(value, Tensor):
        return True
    if type(value) in (tuple, list):
        return all(map(_is_plain, value))
    return type(value) is dict and all(
        isinstance(key, str) and isinstance(item, Tensor) for key, item in value.items()
    )


def plain_result(value: Any) -> Any:
    """A result as tensors, tuples and dicts of tensors: what every format can give.

    What is no tensor is left out.
    """
    if isinstance(value, Tensor):
        return value
    held = parts(value)
    if held is None:
        return ()
    if isinstance(value, Mapping):
        items = {str(key): item for key, item in value.items() if item is not None}
        if items and all(isinstance(item, Tensor) for item in items.values()):
            return items
    found = (plain_result(item) for _, item in held)
    return tuple(item for item in found if isinstance(item, Tensor) or item)
