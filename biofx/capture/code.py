"""What the byte code of a function says about it, for what cannot be seen while it runs.

`is` and `except` cannot be intercepted, and a rebound global leaves no trace in a graph. The
answers err on the side of caution: "yes" where the code could be harmless.
"""

import dis
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from types import CodeType, FrameType
from typing import Any

ATTRIBUTES = ("LOAD_ATTR", "LOAD_METHOD")
# Attributes of a tensor that may be None.
MAYBE_NONE = frozenset({"grad", "grad_fn", "_base", "_grad", "_grad_fn", "_backward_hooks"})


@dataclass(frozen=True)
class Facts:
    """What a function's code does, functions and comprehensions inside it included.

    Attributes:
        names: chains of names that start at a global, e.g. ``("torch", "relu")``.
        rebinds: a variable that outlives the call and is assigned by it, or None.
        compares_values: whether two computed values are compared with ``is``.
        compares_with_none: whether something computed may be compared with None: anything but
            ``self.…`` and the function's own arguments. The gradient of a tensor is computed.
        compares_any_with_none: the same, arguments included.
        catches: whether it has `except` clauses.
    """

    names: frozenset[tuple[str, ...]]
    rebinds: str | None
    compares_values: bool
    compares_with_none: bool
    compares_any_with_none: bool
    catches: bool


@cache
def facts(code: CodeType) -> Facts:
    """Read the byte code of a function."""
    return _facts(code, frozenset())


def _facts(code: CodeType, enclosing: frozenset[str]) -> Facts:
    instructions = list(dis.get_instructions(code))
    inner = [
        _facts(constant, enclosing | set(code.co_cellvars))
        for constant in code.co_consts
        if isinstance(constant, CodeType)
    ]
    opnames = [instruction.opname for instruction in instructions]
    own = {*code.co_cellvars, *enclosing}
    rebound = [
        str(i.argval)
        for i in instructions
        if i.opname in ("STORE_GLOBAL", "DELETE_GLOBAL")
        or (i.opname in ("STORE_DEREF", "DELETE_DEREF") and i.argval not in own)
    ]
    return Facts(
        names=frozenset(chains(instructions)).union(*(part.names for part in inner)),
        rebinds=next((name for name in (*rebound, *(p.rebinds for p in inner)) if name), None),
        compares_values=_compares_values(instructions) or any(p.compares_values for p in inner),
        compares_with_none=_compares_with_none(code, instructions, arguments_are_safe=True)
        or any(part.compares_any_with_none for part in inner),
        compares_any_with_none=_compares_with_none(code, instructions, arguments_are_safe=False)
        or any(part.compares_any_with_none for part in inner),
        catches=opnames.count("PUSH_EXC_INFO") > opnames.count("WITH_EXCEPT_START")
        or any(part.catches for part in inner),
    )


def chains(instructions: list[dis.Instruction]) -> Iterator[tuple[str, ...]]:
    """Chains of names that start at a global, e.g. ``("torch", "relu")``."""
    chain: tuple[str, ...] = ()
    for instruction in (*instructions, None):
        if instruction is not None and chain and instruction.opname in ATTRIBUTES:
            chain += (str(instruction.argval),)
            continue
        if chain:
            yield chain
        known = instruction is not None and instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME")
        chain = (str(instruction.argval),) if instruction is not None and known else ()


def _compares_values(instructions: list[dis.Instruction]) -> bool:
    """`a is b` where b was computed, or `a is True` where a was: not a class, not an attribute."""
    for position, instruction in enumerate(instructions):
        if instruction.opname != "IS_OP":
            continue
        base, chain = operand(instructions, position - 1)
        if base.opname == "LOAD_CONST":
            base, chain = operand(instructions, position - 2)
            known = base.opname.startswith("LOAD_") and "training" not in chain
            if instructions[position - 1].argval is not None and not known:
                return True
        elif base.opname not in ("LOAD_GLOBAL", "LOAD_NAME"):
            return True
    return False


def _compares_with_none(
    code: CodeType, instructions: list[dis.Instruction], *, arguments_are_safe: bool
) -> bool:
    safe: set[str] = set()
    if arguments_are_safe:
        stored = {i.argval for i in instructions if i.opname == "STORE_FAST"}
        safe = set(code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]) - stored
    for position, instruction in enumerate(instructions):
        if instruction.opname == "IS_OP":  # the constant lies between operand and comparison
            if instructions[position - 1].opname != "LOAD_CONST":
                continue
            base, chain = operand(instructions, position - 2)
        elif instruction.opname.startswith("POP_JUMP") and instruction.opname.endswith("NONE"):
            base, chain = operand(instructions, position - 1)
        else:
            continue
        of_self = base.argval == "self" and chain and MAYBE_NONE.isdisjoint(chain)
        argument = base.argval in safe and not chain
        if not base.opname.startswith("LOAD_FAST") or not (of_self or argument):
            return True
    return False


def assigns(code: CodeType) -> Iterator[str]:
    """Names of the attributes of its first argument that a method assigns."""
    for before, instruction in pairwise(dis.get_instructions(code)):
        loaded = before.argval if isinstance(before.argval, tuple) else (before.argval,)
        if instruction.opname == "STORE_ATTR" and loaded[-1:] == code.co_varnames[:1]:
            yield str(instruction.argval)


def operand(
    instructions: list[dis.Instruction], position: int
) -> tuple[dis.Instruction, list[str]]:
    """The instruction that loads what attributes are then read from, and the attributes."""
    chain: list[str] = []
    while position > 0 and instructions[position].opname in ATTRIBUTES:
        chain.append(str(instructions[position].argval))
        position -= 1
    return instructions[position], chain


@cache
def _offsets(code: CodeType) -> dict[int, dis.Instruction]:
    return {instruction.offset: instruction for instruction in dis.get_instructions(code)}


def instruction_of(frame: FrameType) -> dis.Instruction | None:
    """The instruction that a frame executes."""
    return _offsets(frame.f_code).get(frame.f_lasti)


def calls(frame: FrameType) -> bool:
    """Whether a frame executes a call, rather than an attribute access."""
    instruction = instruction_of(frame)
    # PRECALL is where Python 3.11 runs a built-in that it has seen there before
    return instruction is not None and instruction.opname.startswith(("CALL", "PRECALL"))


_LOADS = ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_FAST", "LOAD_DEREF")


@cache
def _loads(code: CodeType) -> dict[tuple[int | None, int | None], str]:
    """Names by where in the source they stand."""
    return {
        (i.positions.lineno, i.positions.col_offset): str(i.argval)
        for i in dis.get_instructions(code)
        if i.positions is not None and i.opname.startswith(_LOADS)
    }


def called(frame: FrameType) -> Any:
    """What the name stands for at which the call begins that a frame executes.

    That of ``f(x)`` is `f`, of ``torch.f(x)`` it is `torch`; None where it cannot be told.
    """
    instruction = instruction_of(frame)
    where = None if instruction is None else instruction.positions
    if where is None or where.col_offset is None:
        return None
    name = _loads(frame.f_code).get((where.lineno, where.col_offset), "")
    for names in (frame.f_locals, frame.f_globals, frame.f_builtins):
        if name in names:
            return names[name]
    return None
