"""In-place operators and item assignment as calls that a graph can hold.

FX prints `operator.iadd` as the statement `a += b`, which rebinds the name `a` when it holds an
immutable such as a size; a call keeps tensors in place and leaves numbers alone.
"""

from typing import Any


def setitem(target: Any, index: Any, value: Any) -> Any:
    target[index] = value
    return target


def iadd(a: Any, b: Any) -> Any:
    a += b
    return a


def isub(a: Any, b: Any) -> Any:
    a -= b
    return a


def imul(a: Any, b: Any) -> Any:
    a *= b
    return a


def itruediv(a: Any, b: Any) -> Any:
    a /= b
    return a


def ifloordiv(a: Any, b: Any) -> Any:
    a //= b
    return a


def imod(a: Any, b: Any) -> Any:
    a %= b
    return a


def ipow(a: Any, b: Any) -> Any:
    a **= b
    return a


def imatmul(a: Any, b: Any) -> Any:
    a @= b
    return a


def iand(a: Any, b: Any) -> Any:
    a &= b
    return a


def ior(a: Any, b: Any) -> Any:
    a |= b
    return a


def ixor(a: Any, b: Any) -> Any:
    a ^= b
    return a


OPERATORS = (
    iadd, isub, imul, itruediv, ifloordiv, imod, ipow, imatmul, iand, ior, ixor
)  # fmt: skip
