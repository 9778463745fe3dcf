"""What a graph takes for granted about the arguments of its module, in words."""

import inspect

from biofx.capture.pattern import Pattern
from biofx.capture.signature import Call


def assumptions(call: Call) -> tuple[str, ...]:
    """The arguments that a graph rests on, as one would write them: ``("mask=None",)``.

    A plain required tensor is no assumption. An optional one is: the graph was captured for
    calls that give it.
    """
    found = []
    for parameter in call.parameters:
        pattern = call.patterns[parameter.name]
        required = parameter.default is parameter.empty
        if required and pattern.form in ("tensor", "value", "unknown"):
            continue
        found.append(f"{_stars(parameter)}{parameter.name}={written(pattern)}")
    return tuple(found)


def _stars(parameter: inspect.Parameter) -> str:
    if parameter.kind is parameter.VAR_POSITIONAL:
        return "*"
    return "**" if parameter.kind is parameter.VAR_KEYWORD else ""


def written(pattern: Pattern) -> str:
    """A pattern as one would write the value: ``Tensor``, ``None``, ``[Tensor, 3]``."""
    if pattern.form == "constant":
        return repr(pattern.constant)
    if pattern.form == "tensor":
        return "Tensor"
    if pattern.form in ("value", "unknown"):
        return "…"
    items = [written(item) for item in pattern.items]
    if pattern.form == "tuple":
        return f"({', '.join(items)}{',' if len(items) == 1 else ''})"
    if pattern.form == "list":
        return f"[{', '.join(items)}]"
    if pattern.cls is not None:
        named = (f"{key}={item}" for key, item in zip(pattern.keys, items, strict=True))
        return f"{pattern.cls.__name__}({', '.join(named)})"
    return f"{{{', '.join(f'{k!r}: {v}' for k, v in zip(pattern.keys, items, strict=True))}}}"
