"""What the Python code of a module mentions: a look at its code objects, without running it."""

import dis
from collections.abc import Iterator, Set
from types import CodeType, FunctionType, MethodType
from typing import Any

from torch import nn

from biofx.capture.reads import is_library

# What code mentions that reads weights without calling their layer.
READ_WEIGHTS = frozenset({
    "weight", "bias", "parameters", "named_parameters", "_parameters", "state_dict",
    "update_parameters",
})  # fmt: skip
_KINDS = ("dtype", "device", "is_cuda")


def leads_to(module: nn.Module, words: Set[str]) -> bool:
    """Whether Python code that a module's forward leads to mentions one of some words.

    What its forward leads to are the methods, properties and functions that it names, and those
    they name. Others (initialisation, tying, saving) do not run in a forward.
    """
    classes = [base for base in type(module).__mro__ if base not in (nn.Module, object)]
    places: list[Any] = [vars(module), *map(vars, classes)]
    waiting = ["forward", "__call__"]
    # A property named like a kind may look at a weight, but reads no number of it.
    seen = {*waiting, *_KINDS}
    while waiting:
        name = waiting.pop()
        for value in [place.get(name) for place in places]:
            for function in _functions(value):
                if not (
                    is_library(function.__module__)
                    or any(function.__globals__ is place for place in places)
                ):
                    places.append(function.__globals__)
                for code in _codes(function):
                    names = {*code.co_names, *(c for c in code.co_consts if isinstance(c, str))}
                    if (words & names) - _harmless(code):
                        return True
                    waiting += names - seen
                    seen |= names
    return False


def _harmless(code: CodeType) -> frozenset[str]:
    """``{"parameters"}`` where that is no method, or only asked for a kind.

    As in `inspect.signature(f).parameters` and in `next(self.parameters()).dtype`.
    """
    instructions = [i for i in dis.get_instructions(code) if i.opname != "PRECALL"]
    for position, instruction in enumerate(instructions):
        if instruction.argval != "parameters":
            continue
        if instruction.opname == "LOAD_ATTR" and not instruction.argrepr.startswith("NULL"):
            continue  # from Python 3.12 on, methods are loaded with NULL
        following = [*instructions[position + 1 : position + 3]]
        asked = instructions[min(position + 3, len(instructions) - 1)]
        calls = all(i.opname.startswith("CALL") for i in following)
        if not calls or asked.argval not in _KINDS:
            return frozenset()
    return frozenset({"parameters"})


def codes(value: Any) -> Iterator[CodeType]:
    """The code of a method or property, of what it wraps, and of the functions inside."""
    for function in _functions(value):
        yield from _codes(function)


def _functions(value: Any) -> Iterator[FunctionType]:
    while isinstance(value, staticmethod | classmethod | MethodType):
        value = value.__func__
    if isinstance(value, property):
        value = value.fget
    while isinstance(value, FunctionType):
        yield value
        value = getattr(value, "__wrapped__", None)


def _codes(function: FunctionType) -> Iterator[CodeType]:
    waiting = [function.__code__]
    while waiting:
        code = waiting.pop()
        yield code
        waiting += [part for part in code.co_consts if isinstance(part, CodeType)]
