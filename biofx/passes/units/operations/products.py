"""Products that sum over an axis."""

from typing import Any

from torch import Tensor

from biofx.passes.units.ids import DATA, Ids, first, repeats
from biofx.passes.units.operations.table import follows
from biofx.passes.units.step import Step


@follows("matmul", "bmm", "mm", "__matmul__", "mv", "dot", "inner")
def matmul(step: Step, input: Any, other: Any, *_: Any, **__: Any) -> Ids:
    """Units are kept apart unless the product sums over them."""
    if step.name == "inner":
        return step.unknown()
    a, b = step.ids(input), step.ids(other)
    if isinstance(a, Tensor):
        a = a[None] if a.dim() == 1 else a
        a = first(a, [-1]) if repeats(a, [-1]) else step.flow.lose(a, f"{step.what} sums over them")
    if isinstance(b, Tensor):
        b = b[:, None] if b.dim() == 1 else b
        b = first(b, [-2]) if repeats(b, [-2]) else step.flow.lose(b, f"{step.what} sums over them")
    shape = list(step.shape())
    if step.rank(input) == 1:
        shape.insert(len(shape) - (step.rank(other) > 1), 1)
    if step.rank(other) == 1:
        shape.append(1)
    result = step.flow.combine([a, b], shape, step.what, added=False)
    return result.reshape(step.shape()) if isinstance(result, Tensor) else result


@follows("baddbmm", "addmm", "addbmm")
def _added_product(step: Step, input: Any, batch1: Any, batch2: Any, **_: Any) -> Ids:
    if step.name == "addbmm":
        return step.unknown()
    product = matmul(step, batch1, batch2)
    return step.flow.combine([step.ids(input), product], step.shape(), step.what, added=True)


@follows("einsum")
def _einsum(step: Step, equation: str, *operands: Any) -> Ids:
    if len(operands) == 1 and isinstance(operands[0], list | tuple):
        operands = tuple(operands[0])
    if not isinstance(equation, str):
        return step.unknown()
    inputs, arrow, output = equation.replace(" ", "").partition("->")
    terms = inputs.split(",")
    if not arrow:
        letters = "".join(terms).replace(".", "")
        output = "".join(sorted(c for c in set(letters) if letters.count(c) == 1))
        output = ("..." if "." in inputs else "") + output
    shape = step.shape()
    extra = len(shape) - len(output.replace("...", ""))
    final = output.replace("...", "".join(chr(0x2460 + k) for k in range(extra)))
    aligned: list[Ids] = []
    for term, operand in zip(terms, operands, strict=True):
        value = step.ids(operand)
        if not isinstance(value, Tensor):
            aligned.append(value)
            continue
        own = value.dim() - len(term.replace("...", ""))
        letters = term.replace("...", "".join(chr(0x2460 + k) for k in range(extra))[extra - own :])
        if len(set(letters)) < len(letters):
            return step.unknown()
        summed = [axis for axis, c in enumerate(letters) if c not in final]
        if not repeats(value, summed):
            aligned.append(step.flow.lose(value, f"{step.what} sums over them"))
            continue
        value = first(value, summed, keep=False)
        kept = [c for c in letters if c in final]
        value = value.permute([kept.index(c) for c in final if c in kept])
        for axis, c in enumerate(final):
            if c not in kept:
                value = value.unsqueeze(axis)
        aligned.append(value)
    return step.flow.combine(aligned, shape, step.what, added=False)


@follows("scaled_dot_product_attention")
def attention(step: Step, query: Any, key: Any, value: Any, *_: Any, **kwargs: Any) -> Ids:
    """Sums over the units of queries and keys; those of values stay apart."""
    for part in (query, key):
        step.flow.lose(step.ids(part), f"{step.what} sums over queries times keys")
    ids = step.ids(value)
    if not isinstance(ids, Tensor):
        return DATA
    if not repeats(ids, [-2]):
        return step.flow.lose(ids, f"{step.what} is over them")
    ids, shape = first(ids, [-2]), step.shape()
    if kwargs.get("enable_gqa") and ids.shape[-3] != shape[-3]:
        ids = ids.repeat_interleave(shape[-3] // ids.shape[-3], -3)
    return ids.expand(shape)
