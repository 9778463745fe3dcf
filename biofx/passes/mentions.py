"""What the Python code of a module mentions: a look at its code objects, without running it."""

from collections.abc import Iterator, Set
from types import CodeType, FunctionType, MethodType
from typing import Any

from torch import nn


def leads_to(module: nn.Module, words: Set[str]) -> bool:
    """Whether Python code that a module's forward leads to mentions one of some words.

    What its forward leads to are the methods and properties that it names, and those they name.
    Others (initialisation, tying, saving) do not run in a forward.
    """
    classes = [base for base in type(module).__mro__ if base not in (nn.Module, object)]
    seen = {"forward", "__call__"}
    waiting = list(seen)
    while waiting:
        name = waiting.pop()
        for place in (vars(module), *map(vars, classes)):
            for code in codes(place.get(name)):
                names = {*code.co_names, *(c for c in code.co_consts if isinstance(c, str))}
                if words & names:
                    return True
                waiting += names - seen
                seen |= names
    return False


def codes(value: Any) -> Iterator[CodeType]:
    """The code of a method or property, of what it wraps, and of the functions inside."""
    while isinstance(value, staticmethod | classmethod | MethodType):
        value = value.__func__
    if isinstance(value, property):
        value = value.fget
    while isinstance(value, FunctionType):
        waiting = [value.__code__]
        while waiting:
            code = waiting.pop()
            yield code
            waiting += [part for part in code.co_consts if isinstance(part, CodeType)]
        value = getattr(value, "__wrapped__", None)
