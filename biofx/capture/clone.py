"""Structural clone: new module objects over the same tensors."""

import copy
import weakref
from collections import ChainMap, OrderedDict
from collections.abc import Iterator
from enum import Enum
from types import BuiltinFunctionType, FunctionType
from typing import Any

import torch
from torch import nn

from biofx.capture.effects import HOOKS, REGISTRIES
from biofx.synapses.classes import slots_of

# Values that a copy may share because nothing can change them.
_IMMUTABLE = (
    type(None), bool, int, float, complex, str, bytes, type, FunctionType, BuiltinFunctionType,
    torch.dtype, torch.device, torch.layout, torch.Size, Enum, slice, range,
)  # fmt: skip
_ATOMS = frozenset({type(None), bool, int, float, str})  # the most frequent ones
_PLAIN = frozenset({dict, list, tuple, set, OrderedDict})


def clone(model: nn.Module, *, share: bool = True) -> nn.Module:
    """Copy a model's modules and Python attributes, and share its parameters and buffers.

    References between modules (lists of modules, bound methods, partials) point into the copy.
    An attribute that cannot be copied (a lock, an open file) is shared. A `ScriptModule` is
    shared whole: its tensors live outside Python.

    Args:
        model: the model to copy.
        share: False gives the copy tensors of its own, which are related as the model's are
            (tied parameters, views of one storage); hooks on tensors stay behind.

    Returns:
        A module of the same class as `model`, whose parameters and buffers are `model`'s.
    """
    memo: dict[int, Any] = {}
    storages: dict[int, torch.UntypedStorage] = {}
    held = list(model.modules())
    modules = [module for module in held if not isinstance(module, torch.jit.ScriptModule)]
    for module in modules:
        memo[id(module)] = fresh = object.__new__(type(module))
        _copy_references(module, fresh, memo)
        for name in REGISTRIES:
            memo[id(module.__dict__[name])] = fresh.__dict__[name] = {}
    for module in held:
        memo.setdefault(id(module), module)
        if isinstance(module, torch.jit.ScriptModule):
            if not share:
                memo[id(module)] = _copied(module, {})
            continue
        for tensor in _tensors(module.__dict__):
            if share:
                memo[id(tensor)] = tensor
            elif id(tensor) not in memo:
                memo[id(tensor)] = _copy_tensor(tensor, storages)
    slots = {cls: tuple(slots_of(cls)) for cls in set(map(type, modules))}
    for module in modules:
        fresh = memo[id(module)].__dict__
        for name, value in module.__dict__.items():
            if name in REGISTRIES:
                fresh[name].update((key, memo.get(id(item), item)) for key, item in value.items())
            elif type(value) in _ATOMS:
                fresh[name] = value
            elif name in HOOKS and not value:
                fresh[name] = type(value)()
            else:
                fresh[name] = _copied(value, memo)
        for slot in slots[type(module)]:
            if hasattr(module, slot):
                object.__setattr__(memo[id(module)], slot, _copied(getattr(module, slot), memo))
    result: nn.Module = memo[id(model)]
    return result


def _copy_references(module: nn.Module, fresh: nn.Module, memo: dict[int, Any]) -> None:
    """Let the copies of weak references to a module refer to its copy."""
    for reference in weakref.getweakrefs(module):
        if type(reference) is weakref.ref and reference.__callback__ is None:
            memo[id(reference)] = weakref.ref(fresh)
            memo.setdefault(id(memo), []).append(reference)  # alive, so that its id stays its own


def _copied(value: Any, memo: dict[int, Any]) -> Any:
    if type(value) is tuple:
        if _ATOMS.issuperset(map(type, value)) or all(isinstance(x, _IMMUTABLE) for x in value):
            return value
    elif type(value) in _ATOMS or isinstance(value, _IMMUTABLE):
        return value
    if type(value) in (dict, list, set, OrderedDict) and not value and id(value) not in memo:
        memo[id(value)] = fresh = type(value)()
        # keep the original alive for as long as its id is a key
        memo.setdefault(id(memo), []).append(value)
        return fresh
    # A failed attempt must leave no half-made copies in the memo.
    attempt: ChainMap[int, Any] = ChainMap({}, memo)
    try:
        fresh = copy.deepcopy(value, attempt)  # type: ignore[arg-type]
    except Exception:
        return value
    memo.update(attempt.maps[0])
    return fresh


def _copy_tensor(tensor: torch.Tensor, storages: dict[int, torch.UntypedStorage]) -> torch.Tensor:
    """A leaf with the same values; copies of views of one storage view one storage again."""
    plain = type(tensor) in (torch.Tensor, nn.Parameter)
    lazy = tensor.is_conj() or tensor.is_neg() or tensor.is_quantized
    with torch.no_grad():
        if plain and tensor.layout is torch.strided and not lazy:
            storage = tensor.untyped_storage()
            if storage._cdata not in storages:
                storages[storage._cdata] = storage.clone()
            fresh = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
            fresh.set_(
                storages[storage._cdata], tensor.storage_offset(), tensor.size(), tensor.stride()
            )
        else:
            fresh = tensor.detach().clone()
    if isinstance(tensor, nn.Parameter) and not isinstance(fresh, nn.Parameter):
        fresh = nn.Parameter(fresh, requires_grad=tensor.requires_grad)
    if fresh.is_floating_point() or fresh.is_complex():
        fresh.requires_grad_(tensor.requires_grad)
    if plain:
        fresh.__dict__.update(tensor.__dict__)
    return fresh


def _tensors(value: Any, depth: int = 0) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif depth < 6 and isinstance(value, dict | list | tuple | set):
        for item in value.values() if isinstance(value, dict) else value:
            if type(item) not in _ATOMS and not (type(item) in _PLAIN and not item):
                yield from _tensors(item, depth + 1)
