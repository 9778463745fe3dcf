"""Structural clone: new module objects over the same tensors, or over tensors of their own."""

import copy
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, fx, nn

from biofx.copying.nested import is_proxy, leaves
from biofx.copying.rebind import Rebinder
from biofx.synapses.classes import REPLACED, slots_of

REGISTRIES = ("_modules", "_parameters", "_buffers")
# What every module has: dicts of hooks and a set of names, nearly always empty.
_BARE = vars(nn.Module())
_USUAL = frozenset(name for name, value in _BARE.items() if type(value) in (OrderedDict, set))
_REGULAR = _USUAL.union(REGISTRIES)
_ATOMS = frozenset({type(None), bool, int, float, str})  # the most frequent ones
# What biofx keeps on a module and never changes in place.
_RECORDS = frozenset({
    "_biofx", "_biofx_synapses", "_biofx_graph", "_biofx_layer_graph", "_biofx_forward", REPLACED
})  # fmt: skip


M = TypeVar("M", bound=nn.Module)


def clone(
    model: M,
    *,
    tensor: Callable[[Tensor], Tensor] | None = None,
    strict: bool = True,
    apart: bool = False,
    shared: dict[str, str] | None = None,
) -> M:
    """Copy a model's modules and Python attributes, and share its parameters and buffers.

    That holds for modules that are not registered, too: a list of layers, a teacher that is to stay
    out of `parameters()`. References between modules (lists of modules, bound methods, partials,
    closures of functions on the model and of its hooks) point into the copy. What cannot be copied
    (a lock, an open file) is shared. A `ScriptModule` is shared whole: its tensors live outside
    Python.

    Args:
        model: the model to copy.
        tensor: makes the copy's tensor of each of the model's, once for each; `own_tensors()`
            gives the copy tensors of its own. Without it, both share theirs.
        strict: refuse a function on the model that would go on working on the model's modules;
            otherwise it is shared.
        apart: copy what functions keep (the list that a hook appends to), too.
        shared: gets {attribute: type} of what cannot be copied.

    Returns:
        A module of the same class as `model`.

    Raises:
        ModelError: something on the model holds its modules in a way that cannot be told to hold
            the copy's; the message names it.
    """
    clones = _Clones(tensor, strict=strict, apart=apart)
    for module, name in {module: name for name, module in model.named_modules()}.items():
        clones.add(module, name)
    clones.fill()
    if shared is not None:
        shared.update(clones.shared)
    result: M = clones.memo[id(model)]
    return result


def separate(
    model: M,
    *,
    tensor: Callable[[Tensor], Tensor] | None = None,
    strict: bool = True,
    shared: dict[str, str] | None = None,
) -> M:
    """A copy for runs that are to leave no trace: with tensors and with all else of its own.

    The arguments are those of `clone`.
    """
    tensor = own_tensors() if tensor is None else tensor
    return clone(model, tensor=tensor, strict=strict, apart=True, shared=shared)


class _Clones:
    """The copies of a model's modules, registered or not, in the making.

    Attributes:
        memo: {id of a module or tensor of the model: its copy}, as for `copy.deepcopy`.
        shared: {attribute: type} of what could not be copied.
    """

    def __init__(
        self, tensor: Callable[[Tensor], Tensor] | None, *, strict: bool, apart: bool
    ) -> None:
        self.memo: dict[int, Any] = {}
        self._tensor = tensor
        self._rebinder = Rebinder(
            self.memo, module=self.add_all, tensor=self._found, strict=strict, apart=apart
        )
        self.shared = self._rebinder.shared
        self._waiting: list[nn.Module] = []  # copies that have no attributes yet
        self._searched = 0

    def add_all(self, module: nn.Module, name: str) -> nn.Module:
        """The copy of a module that may not be registered, of which nothing is known yet."""
        for inner, part in {inner: part for part, inner in module.named_modules()}.items():
            self.add(inner, f"{name}.{part}" if part else name, registered=False)
        self._search()
        copied: nn.Module = self.memo[id(module)]
        return copied

    def add(self, module: nn.Module, name: str, *, registered: bool = True) -> None:
        """Make an empty copy of a module."""
        if id(module) in self.memo:
            return
        if isinstance(module, torch.jit.ScriptModule):
            self.memo[id(module)] = module if self._tensor is None else _copy_script(module)
            return
        self._rebinder.note(module, name, registered=registered)
        self.memo[id(module)] = fresh = object.__new__(type(module))
        _copy_references(module, fresh, self.memo)
        for registry in REGISTRIES:
            self.memo[id(module.__dict__[registry])] = fresh.__dict__[registry] = {}
        self._waiting.append(module)

    def add_tensor(self, tensor: Tensor) -> None:
        """Make the copy of a tensor."""
        if id(tensor) not in self.memo:
            self.memo[id(tensor)] = tensor if self._tensor is None else self._tensor(tensor)

    def _found(self, tensor: Tensor) -> Tensor:
        """The copy of a tensor that need not be the model's for long."""
        self.add_tensor(tensor)
        self.memo.setdefault(id(self.memo), []).append(tensor)  # alive, for its id
        copied: Tensor = self.memo[id(tensor)]
        return copied

    def _search(self) -> None:
        """Find the tensors, and the modules that are not registered, which modules hold."""
        while self._searched < len(self._waiting):
            module = self._waiting[self._searched]
            self._searched += 1
            for registry in (module.__dict__["_parameters"], module.__dict__["_buffers"]):
                for tensor in registry.values():
                    if tensor is not None:
                        self.add_tensor(tensor)
            for name, value in _held_by(module):
                if isinstance(value, Tensor):
                    self.add_tensor(value)
                elif id(value) not in self.memo:
                    self.add_all(value, self._rebinder.path(module, name))

    def fill(self) -> None:
        """Copy the attributes of all modules."""
        self._search()
        slots: dict[type, tuple[str, ...]] = {}
        for module in self._waiting:  # which grows meanwhile
            kind = type(module)
            if kind not in slots:
                slots[kind] = tuple(slots_of(kind))
            self._fill(module, slots[kind])

    def _fill(self, module: nn.Module, slots: tuple[str, ...]) -> None:
        copied, rebinder = self.memo[id(module)], self._rebinder
        fresh = copied.__dict__
        rebinder.place = module
        for name, value in module.__dict__.items():  # the most frequent kinds first
            kind = type(value)
            if name in _USUAL and not value:
                fresh[name] = kind()
            elif kind in _ATOMS or name in _RECORDS or kind is fx.Graph:
                fresh[name] = value
            elif name in REGISTRIES:
                items = [(key, self.memo.get(id(item), item)) for key, item in value.items()]
                fresh[name].update(items)
            else:
                fresh[name] = rebinder.copied(value, name)
        for slot in slots:
            if hasattr(module, slot):
                object.__setattr__(copied, slot, rebinder.copied(getattr(module, slot), slot))


def _copy_script(module: torch.jit.ScriptModule) -> torch.jit.ScriptModule:
    """A copy of compiled code with leaf tensors: else its gradients would reach the original's."""
    with torch.no_grad():
        fresh: torch.jit.ScriptModule = copy.deepcopy(module)
    for mine, theirs in zip(fresh.parameters(), module.parameters(), strict=True):
        mine.requires_grad_(theirs.requires_grad)
    return fresh


def _held_by(module: nn.Module) -> Iterator[tuple[str, Tensor | nn.Module]]:
    """(attribute, tensor or module) of what a module holds unregistered, in whatever structure."""
    for name, value in module.__dict__.items():
        if name in _REGULAR or type(value) in _ATOMS:
            continue
        if type(value) is not tuple or not _ATOMS.issuperset(map(type, value)):
            held = [leaf for _, leaf in leaves(value)]
            yield from [(name, leaf) for leaf in held if isinstance(leaf, Tensor | nn.Module)]


def _copy_references(module: nn.Module, fresh: nn.Module, memo: dict[int, Any]) -> None:
    """Let the copies of weak references to a module refer to its copy."""
    for reference in weakref.getweakrefs(module):
        proxy = is_proxy(reference)
        if proxy or (type(reference) is weakref.ref and reference.__callback__ is None):
            memo[id(reference)] = weakref.proxy(fresh) if proxy else weakref.ref(fresh)
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
