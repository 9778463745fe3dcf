"""Values compared bit for bit, however they are nested."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from biofx.copying.nested import SHARED, parts, written


def _listed(value: Any, path: str = "", above: frozenset[int] = frozenset()) -> Iterator[Any]:
    """(path, leaf) of a nested value; containers tell their type (path:) and length (path#)."""
    held = None if id(value) in above else parts(value)
    if held is None:
        yield path, value
        return
    yield f"{path}:", type(value)
    yield f"{path}#", len(held)
    for step, item in held:
        yield from _listed(item, path + written((step,)), above | {id(value)})


def difference(expected: Any, found: Any, tolerance: float = 0) -> str | None:
    """Where and how two values differ first; None if they are the same.

    Tensors are the same if their dtypes, shapes and bits are; with a tolerance, if they differ by
    at most that share of the largest absolute value. Other leaves are compared with ``==``, those
    that two models cannot have in common (functions, objects without attributes) by their type.
    """
    mine, theirs = dict(_listed(expected)), dict(_listed(found))
    for path, leaf in mine.items():
        where = path.rstrip(":#")
        if path not in theirs:
            return f"{where or 'the value'} is missing"
        problem: str | None = None
        if path.endswith(":") and leaf is not theirs[path]:
            problem = f"a {leaf.__name__} became a {theirs[path].__name__}"
        else:
            problem = _leaf_difference(leaf, theirs[path], tolerance)
        if problem is not None:
            return f"{where}: {problem}" if where else problem
    extra = next((path for path in theirs if path not in mine), None)
    return None if extra is None else f"{extra.rstrip(':#')} is new"


def _leaf_difference(expected: Any, found: Any, tolerance: float) -> str | None:
    if isinstance(expected, Tensor) and isinstance(found, Tensor):
        return _tensor_difference(expected, found, tolerance)
    if isinstance(expected, SHARED):
        return None if isinstance(found, SHARED) else f"a {type(found).__name__} is new"
    if type(expected) is not type(found):
        return f"a {type(expected).__name__} became a {type(found).__name__}"
    try:
        same = bool(expected == found) or (expected != expected and found != found)
    except Exception:
        return None
    compares_by_identity = type(expected).__eq__ is object.__eq__  # type: ignore[comparison-overlap]
    if same or compares_by_identity:
        return None
    return f"{expected!r} became {found!r}"[:200]


def _tensor_difference(expected: Tensor, found: Tensor, tolerance: float) -> str | None:
    for what in ("dtype", "shape", "device", "layout"):
        mine, theirs = getattr(expected, what), getattr(found, what)
        if mine != theirs:
            if what == "shape":
                mine, theirs = tuple(mine), tuple(theirs)
            return f"{what} {mine} became {theirs}"
    if expected.requires_grad != found.requires_grad:
        return "gradients flow in only one of the two"
    expected, found = expected.detach(), found.detach()
    if expected.is_meta:
        return None
    if expected.layout is not torch.strided:
        if expected.is_quantized or expected.layout is torch._mkldnn:  # type: ignore[attr-defined]
            expected, found = expected.to_dense(), found.to_dense()
        return _sparse_difference(expected, found, tolerance)
    if same_bits(expected, found):
        return None
    if not (expected.is_floating_point() or expected.is_complex()):
        return f"{int((expected != found).sum())} of {expected.numel()} elements differ"
    wide = torch.complex128 if expected.is_complex() else torch.float64
    mine, theirs = expected.to(wide), found.to(wide)
    gap = (mine - theirs).abs().nan_to_num(nan=float("inf"), posinf=float("inf"))
    gap[mine.isnan() & theirs.isnan() | (mine == theirs)] = 0
    scale = mine.abs().nan_to_num(nan=0, posinf=0).amax() if mine.numel() else mine.abs().sum()
    if tolerance and float(gap.amax()) <= tolerance * float(scale):
        return None
    count = int((gap > 0).sum())
    if not count:
        return "the signs of zeros differ"
    return f"{count} of {gap.numel()} elements differ, by up to {float(gap.amax()):.3g}"


def _sparse_difference(expected: Tensor, found: Tensor, tolerance: float) -> str | None:
    """Of two sparse tensors: their indices, then their values."""
    if expected.layout is torch.sparse_coo:
        expected, found = expected.coalesce(), found.coalesce()
        pairs = {
            "indices": (expected.indices(), found.indices()),
            "values": (expected.values(), found.values()),
        }
    else:
        rows = expected.layout in (torch.sparse_csr, torch.sparse_bsr)
        names = ("crow_indices", "col_indices") if rows else ("ccol_indices", "row_indices")
        pairs = {n: (getattr(expected, n)(), getattr(found, n)()) for n in (*names, "values")}
    for name, (mine, theirs) in pairs.items():
        problem = _tensor_difference(mine, theirs, tolerance)
        if problem is not None:
            return f"its {name}: {problem}"
    return None


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors of one dtype and shape hold the same bits (NaNs included)."""
    if torch.equal(a, b):
        return not a.is_floating_point() or _same_zeros(a, b)
    if a.is_quantized or a.dtype is torch.bool:
        return False
    if a.is_conj() or b.is_conj() or a.is_neg() or b.is_neg():
        a, b = a.resolve_conj().resolve_neg(), b.resolve_conj().resolve_neg()
    return torch.equal(_bytes(a), _bytes(b))


def _same_zeros(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.signbit(), b.signbit())


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.contiguous().flatten().view(torch.uint8)
