"""Changes that nothing sees while a function runs, told by its byte code.

A class has no hook that notices an assignment to it, `object.__setattr__` passes by those that a
module has, and noticing deleted attributes would cost every capture a tenth of its time.
"""

import dis
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from types import CodeType, FunctionType, ModuleType
from typing import Any

from biofx.capture.code import ATTRIBUTES, chains, operand
from biofx.capture.effects import CHANGES

_OUTER = ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_DEREF")
_ITEM_METHODS = frozenset({"pop", "popitem", "clear", "insert", "update", "setdefault"})


@dataclass(frozen=True)
class Changes:
    """What a function may change that outlives its call; functions inside it included.

    Attributes:
        certain: a change that can be told from the code alone, or None.
        assigned: chains of names that start at a variable of the module or of an enclosing
            function and end with an attribute that is assigned, e.g. ``("Options", "scale")``.
        methods: chains of names that end with that of a method of `nn.Module` that changes it.
        items: whether it may set or delete an item of a container.
    """

    certain: str | None
    assigned: tuple[tuple[str, ...], ...]
    methods: tuple[tuple[str, ...], ...]
    items: bool

    def refusal(self, function: FunctionType) -> str | None:
        """What this function changes, or None."""
        if self.certain is not None:
            return self.certain
        names = {**function.__globals__, **enclosing(function)}
        for *chain, name in self.assigned:
            owner = at_end(names, chain)
            if isinstance(owner, type | ModuleType):
                of = "class" if isinstance(owner, type) else "Python module"
                return f"assigns {name!r} of a {of}"
        for *chain, name in self.methods:
            if isinstance(at_end(names, chain), type):
                return f"calls {name}() of a module"
        return None


@cache
def changes_of(code: CodeType) -> Changes | None:
    """What a function with this code may change; None if it is nothing of the kind."""
    instructions = list(dis.get_instructions(code))
    inner = [changes_of(part) for part in code.co_consts if isinstance(part, CodeType)]
    parts = [part for part in inner if part is not None]
    named = list(chains(instructions))
    certain = [*_certain(code, instructions, named), *(part.certain for part in parts)]
    found = Changes(
        certain=next((what for what in certain if what), None),
        assigned=tuple(
            (base.argval, *chain, name)
            for base, chain, name in _assigned(instructions)
            if base.opname in _OUTER
        )
        + tuple(chain for part in parts for chain in part.assigned),
        methods=tuple(chain for chain in named if len(chain) > 1 and chain[-1] in CHANGES)
        + tuple(chain for part in parts for chain in part.methods),
        items=any(map(_sets_item, instructions)) or any(part.items for part in parts),
    )
    harmful = found.certain or found.assigned or found.methods or found.items
    return found if harmful else None


def _sets_item(instruction: dis.Instruction) -> bool:
    called = instruction.opname in ATTRIBUTES and instruction.argval in _ITEM_METHODS
    return called or instruction.opname in ("STORE_SUBSCR", "DELETE_SUBSCR")


def _certain(
    code: CodeType, instructions: list[dis.Instruction], named: list[tuple[str, ...]]
) -> Iterator[str]:
    for instruction in instructions:
        if instruction.opname == "DELETE_ATTR":
            yield f"deletes the attribute {instruction.argval!r}"
        elif instruction.opname in ATTRIBUTES and instruction.argval == "__delattr__":
            yield "calls __delattr__()"
    for chain in named:
        if len(chain) > 1 and chain[-1] == "__setattr__":
            yield f"calls {'.'.join(chain)}()"
    for name in _inherited(instructions):
        if name in CHANGES:
            yield f"calls {name}() of a module"
    # `type(x)`, `x.__class__`, or a variable that may hold it
    asks = any(i.argval in ("type", "__class__") for i in instructions)
    arguments = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    for base, through, name in _assigned(instructions):
        held = base.argval[-1] if isinstance(base.argval, tuple) else base.argval
        local = base.opname.startswith("LOAD_FAST") and held not in arguments
        computed = local or base.opname.startswith("CALL")
        if "__class__" in (*through, held) or held == "cls" or (asks and computed):
            yield f"assigns {name!r} of a class"


def _assigned(
    instructions: list[dis.Instruction],
) -> Iterator[tuple[dis.Instruction, list[str], str]]:
    """For each attribute that is assigned: what it is loaded from, through what, its name."""
    for position, instruction in enumerate(instructions):
        if instruction.opname != "STORE_ATTR":
            continue
        name, before = str(instruction.argval), position - 1
        if instructions[before].opname == "SWAP":  # `a.b += 1` reads a.b first, from a copy of a
            while before and not (
                instructions[before].opname == "COPY" and instructions[before + 1].argval == name
            ):
                before -= 1
            before -= 1
        yield *operand(instructions, before), name


def _inherited(instructions: list[dis.Instruction]) -> Iterator[str]:
    """What is taken from `super()`."""
    taken = False
    for instruction in instructions:
        if instruction.opname == "LOAD_GLOBAL" and instruction.argval == "super":
            taken = True
        elif taken and instruction.opname in (*ATTRIBUTES, "LOAD_SUPER_ATTR"):
            yield str(instruction.argval)
            taken = False


def enclosing(function: FunctionType) -> dict[str, Any]:
    """The variables of enclosing functions that a function uses."""
    found = {}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            found[name] = cell.cell_contents
        except ValueError:  # not assigned yet
            continue
    return found


def at_end(names: dict[str, Any], chain: Sequence[str]) -> Any:
    """What a chain of names leads to, through modules and classes only."""
    value: Any = names.get(chain[0])
    for name in chain[1:]:
        if not isinstance(value, ModuleType | type):
            return None
        value = vars(value).get(name)
    return value
