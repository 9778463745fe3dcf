"""Values compared bit for bit, however they are nested."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn

Path = str
_SHARED = (type, FunctionType, BuiltinFunctionType, MethodType, ModuleType, nn.Module)


def leaves(value: Any) -> Iterator[tuple[Path, Any]]:
    """(path, leaf) of a nested value: tensors, and whatever holds nothing else."""
    return _leaves(value, "", set())


def _leaves(value: Any, path: str, above: set[int]) -> Iterator[tuple[Path, Any]]:
    if isinstance(value, (Tensor, *_SHARED)) or id(value) in above:
        yield path, value
        return
    items = _items(value)
    if items is None:
        yield path, value
        return
    yield f"{path}:", type(value)
    yield f"{path}#", len(items)
    for key, item in items:
        yield from _leaves(item, f"{path}{key}", above | {id(value)})


def _items(value: Any) -> list[tuple[str, Any]] | None:
    """What a container or object holds, or None for a plain value."""
    if isinstance(value, Mapping):
        return [(f"[{key!r}]", item) for key, item in value.items()]
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return [(f".{name}", item) for name, item in zip(value._fields, value, strict=True)]
    if isinstance(value, list | tuple):
        return [(f"[{i}]", item) for i, item in enumerate(value)]
    if dataclasses.is_dataclass(value):
        return [(f".{f.name}", getattr(value, f.name, None)) for f in dataclasses.fields(value)]
    held = getattr(value, "__dict__", None)
    if held and not isinstance(value, int | float | complex | str | bytes):
        return [(f".{name}", item) for name, item in held.items()]
    return None


def tensors(value: Any) -> list[Tensor]:
    """The tensors in a nested value, in order."""
    return [leaf for _, leaf in leaves(value) if isinstance(leaf, Tensor)]


def rebuilt(value: Any, change: Callable[[Any], Any]) -> Any:
    """A nested value of plain containers with `change` applied to everything else."""
    if type(value) in (list, tuple):
        return type(value)(rebuilt(item, change) for item in value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(rebuilt(item, change) for item in value))
    if type(value) is dict:
        return {key: rebuilt(item, change) for key, item in value.items()}
    return change(value)


def copied(value: Any) -> Any:
    """A tensor's values in a tensor of their own; anything else as it is."""
    return value.detach().clone() if isinstance(value, Tensor) else value


def difference(expected: Any, found: Any, tolerance: float = 0) -> str | None:
    """Where and how two values differ first; None if they are the same.

    Tensors are the same if their dtypes, shapes and bits are; with a tolerance, if they differ by
    at most that share of the largest absolute value. Other leaves are compared with ``==``, those
    that two models cannot have in common (functions, objects without attributes) by their type.
    """
    mine, theirs = dict(leaves(expected)), dict(leaves(found))
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
    if isinstance(expected, _SHARED):
        return None if isinstance(found, _SHARED) else f"a {type(found).__name__} is new"
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
    if expected.is_meta or same_bits(expected, found):
        return None
    if not (expected.is_floating_point() or expected.is_complex()):
        return f"{int((expected != found).sum())} of {expected.numel()} elements differ"
    wide = torch.complex128 if expected.is_complex() else torch.float64
    mine, theirs = expected.to_dense().to(wide), found.to_dense().to(wide)
    gap = (mine - theirs).abs().nan_to_num(nan=float("inf"), posinf=float("inf"))
    gap[mine.isnan() & theirs.isnan() | (mine == theirs)] = 0
    scale = mine.abs().nan_to_num(nan=0, posinf=0).amax() if mine.numel() else mine.abs().sum()
    if tolerance and float(gap.amax()) <= tolerance * float(scale):
        return None
    count = int((gap > 0).sum())
    if not count:
        return "the signs of zeros differ"
    return f"{count} of {gap.numel()} elements differ, by up to {float(gap.amax()):.3g}"


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors of one dtype and shape hold the same bits (NaNs included)."""
    if torch.equal(a, b):
        return a.layout is not torch.strided or not a.is_floating_point() or _same_zeros(a, b)
    if a.layout is not torch.strided or a.is_quantized or a.dtype is torch.bool:
        return False
    if a.is_conj() or b.is_conj() or a.is_neg() or b.is_neg():
        a, b = a.resolve_conj().resolve_neg(), b.resolve_conj().resolve_neg()
    return torch.equal(_bytes(a), _bytes(b))


def _same_zeros(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.signbit(), b.signbit())


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.contiguous().flatten().view(torch.uint8)
