"""Structural clone: new module objects over the same tensors, or over tensors of their own."""

import copy
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from biofx.copying.nested import tensors
from biofx.copying.rebind import Rebinder
from biofx.synapses.classes import REPLACED, slots_of

REGISTRIES = ("_modules", "_parameters", "_buffers")
# What every module has: dicts of hooks and a set of names, nearly always empty.
_BARE = vars(nn.Module())
_USUAL = frozenset(name for name, value in _BARE.items() if type(value) in (OrderedDict, set))
_ATOMS = frozenset({type(None), bool, int, float, str})  # the most frequent ones
# What biofx keeps on a module and never changes in place.
_RECORDS = frozenset(
    {"_biofx", "_synapses", "_graph", "_layer_graph", "_layer_forward", "_tracer_cls", REPLACED}
)


def clone(
    model: nn.Module, *, tensor: Callable[[Tensor], Tensor] | None = None, strict: bool = True
) -> nn.Module:
    """Copy a model's modules and Python attributes, and share its parameters and buffers.

    References between modules (lists of modules, bound methods, partials, closures of functions on
    the model and of its hooks) point into the copy. An attribute that cannot be copied (a lock, an
    open file) is shared. A `ScriptModule` is shared whole: its tensors live outside Python.

    Args:
        model: the model to copy.
        tensor: makes the copy's tensor of each of the model's, once for each; `own_tensors()`
            gives the copy tensors of its own. Without it, both share theirs.
        strict: refuse a function on the model that would go on working on the model's modules;
            otherwise it is shared.

    Returns:
        A module of the same class as `model`.

    Raises:
        ModelError: something on the model holds its modules in a way that cannot be told to hold
            the copy's; the message names it.
    """
    memo: dict[int, Any] = {}
    held = list(model.modules())
    modules = [module for module in held if not isinstance(module, torch.jit.ScriptModule)]
    for module in modules:
        memo[id(module)] = fresh = object.__new__(type(module))
        _copy_references(module, fresh, memo)
        for name in REGISTRIES:
            memo[id(module.__dict__[name])] = fresh.__dict__[name] = {}
    for module in held:
        if isinstance(module, torch.jit.ScriptModule):
            memo.setdefault(id(module), module if tensor is None else copy.deepcopy(module))
            continue
        for value in _tensors_of(module):
            if id(value) not in memo:
                memo[id(value)] = value if tensor is None else tensor(value)
    rebinder = Rebinder(
        memo, strict=strict, names={id(module): name for name, module in model.named_modules()}
    )
    slots = {cls: tuple(slots_of(cls)) for cls in set(map(type, modules))}
    for module in modules:
        fresh = memo[id(module)].__dict__
        rebinder.place = module
        for name, value in module.__dict__.items():  # the most frequent kinds first
            kind = type(value)
            if name in _USUAL and not value:
                fresh[name] = kind()
            elif kind in _ATOMS or name in _RECORDS:
                fresh[name] = value
            elif name in REGISTRIES:
                fresh[name].update([(key, memo.get(id(item), item)) for key, item in value.items()])
            else:
                fresh[name] = rebinder.copied(value, name)
        for slot in slots[type(module)]:
            if hasattr(module, slot):
                value = rebinder.copied(getattr(module, slot), slot)
                object.__setattr__(memo[id(module)], slot, value)
    result: nn.Module = memo[id(model)]
    return result


def _tensors_of(module: nn.Module) -> Iterator[Tensor]:
    """The tensors that a module holds itself, in whatever structure."""
    for name, value in module.__dict__.items():
        if name in _USUAL or type(value) in _ATOMS:
            continue
        if name in REGISTRIES:
            yield from [item for item in value.values() if isinstance(item, Tensor)]
        elif type(value) is not tuple or not _ATOMS.issuperset(map(type, value)):
            yield from tensors(value)


def _copy_references(module: nn.Module, fresh: nn.Module, memo: dict[int, Any]) -> None:
    """Let the copies of weak references to a module refer to its copy."""
    for reference in weakref.getweakrefs(module):
        if type(reference) is weakref.ref and reference.__callback__ is None:
            memo[id(reference)] = weakref.ref(fresh)
            memo.setdefault(id(memo), []).append(reference)  # alive, so that its id stays its own


def own_tensors(share: Callable[[Tensor], bool] = lambda _: False) -> Callable[[Tensor], Tensor]:
    """Makes tensors of their own that are related as the model's are.

    Tied parameters stay tied, views of one storage stay views of one; hooks on tensors stay behind.

    Args:
        share: whether a tensor's memory is shared instead of copied; ordinary tensors are asked.
    """
    storages: dict[int, torch.UntypedStorage] = {}
    return lambda tensor: _copy_tensor(tensor, storages, share)


def _copy_tensor(
    tensor: Tensor, storages: dict[int, torch.UntypedStorage], share: Callable[[Tensor], bool]
) -> Tensor:
    plain = type(tensor) in (Tensor, nn.Parameter)
    lazy = tensor.is_conj() or tensor.is_neg() or tensor.is_quantized
    with torch.no_grad():
        if plain and tensor.layout is torch.strided and not lazy:
            storage = tensor.untyped_storage()
            if storage._cdata not in storages:
                storages[storage._cdata] = storage if share(tensor) else storage.clone()
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
