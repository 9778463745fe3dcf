"""The classes that biofx derives from a user's module classes.

A transformed module keeps its class as a base: `isinstance`, methods, attributes and pickling by
name go on working. What biofx adds comes as a mixin in front of it.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import nn
from torch.nn.utils.parametrize import is_parametrized

_MISSING = object()
_WATCHERS = "_biofx_watchers"
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)
# What biofx puts into the `__dict__` of a module: what is saved with it, and what FX needs.
SAVED = (
    "_biofx", "_synapses", _WATCHERS, "_unit_axis", "_bundles", "_needs_graph", "_cell",
    "_world", "_tracer_cls", "_tracer_extras", "meta", "_replace_hooks", "_create_node_hooks",
    "_erase_node_hooks", "_deepcopy_hooks", "shape_env",
)  # fmt: skip
OURS = frozenset({*SAVED, "_graph", "_code", "_lineno_map", "_prologue_start"})


@dataclass
class Cell:
    """Whether a graph still stands: set when a Python attribute that it was built on changes."""

    stale: str | None = None


class Derived(nn.Module):
    """Base of the mixins. Pickles as (user's class, mixins, state)."""

    _base: type[nn.Module]
    _mixins: tuple[type["Derived"], ...] = ()
    _one_class_each = False  # FX needs a class of its own for every graph module

    def __init_subclass__(cls, **kwargs: Any) -> None:
        # a derived class is none of the user's: it must not enter a registry of theirs
        pass

    def __reduce_ex__(self, protocol: Any) -> Any:
        if is_parametrized(self):
            self.__getstate__()  # type: ignore[no-untyped-call]  # torch refuses, and says why
        return rebuild, (type(self)._base, type(self)._mixins), self._state()

    def _state(self) -> tuple[Any, ...]:
        """The state that the user's class saves, its slots, and what biofx has added."""
        base: Any = type(self)._base
        # a parametrized class gives no state, so that nobody pickles it; torch copies its __dict__
        theirs = dict(self.__dict__) if is_parametrized(self) else base.__getstate__(self)
        slots = {}
        if base.__getstate__ is nn.Module.__getstate__:  # which leaves them out
            slots = {name: getattr(self, name) for name in slots_of(base) if hasattr(self, name)}
        if isinstance(theirs, dict):
            theirs = {name: value for name, value in theirs.items() if name not in OURS}
        ours = {name: self.__dict__[name] for name in SAVED if name in self.__dict__}
        return theirs, slots, ours

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        theirs, slots, ours = state
        type(self)._base.__setstate__(self, theirs)
        for name, value in slots.items():
            object.__setattr__(self, name, value)
        self.__dict__.update(ours)


class Watched(Derived):
    """A module on whose Python attributes some graph rests.

    When such an attribute changes after capture, every graph that was built on it is marked
    stale, and its module runs its own Python forward from then on.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self.__dict__.get(_WATCHERS, ()):
            before = self.__dict__.get(name, _MISSING)
            for registry in ("_modules", "_parameters", "_buffers"):
                if before is _MISSING:
                    before = self.__dict__[registry].get(name, _MISSING)
            if not _interchangeable(before, value):
                self._outdate(name)
        super().__setattr__(name, value)

    def __delattr__(self, name: str) -> None:
        self._outdate(name, "_modules")
        super().__delattr__(name)

    def add_module(self, name: str, module: nn.Module | None) -> None:
        """As `nn.Module.add_module`; graphs that looped over the children become stale."""
        if name not in self._modules:
            self._outdate(name, "_modules")
        super().add_module(name, module)

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """As `nn.Module.register_parameter`; graphs that saw another value become stale."""
        if not _interchangeable(self._parameters.get(name, _MISSING), param):
            self._outdate(name)
        super().register_parameter(name, param)

    def register_buffer(
        self, name: str, tensor: torch.Tensor | None, persistent: bool = True
    ) -> None:
        """As `nn.Module.register_buffer`; graphs that saw another value become stale."""
        if not _interchangeable(self._buffers.get(name, _MISSING), tensor):
            self._outdate(name)
        super().register_buffer(name, tensor, persistent)

    def _outdate(self, *names: str) -> None:
        for name in names:
            for cell in self.__dict__.get(_WATCHERS, {}).get(name, ()):
                cell.stale = cell.stale or f"attribute {name!r} changed after capture"


def _interchangeable(before: Any, after: Any) -> bool:
    """Whether a graph that was traced with `before` also stands for `after`."""
    if before is after:
        return True
    if isinstance(before, nn.Module) and isinstance(after, nn.Module):
        # a graph knows what a layer of torch gives; another module may give anything, and of a
        # container or of a layer that is watched it knows more
        cls = original_class(before)
        layer = cls.__module__.startswith("torch.nn.modules.") and not isinstance(
            before, _CONTAINERS
        )
        return layer and cls is original_class(after) and _WATCHERS not in before.__dict__
    if isinstance(before, torch.Tensor) and isinstance(after, torch.Tensor):
        alike = before.shape == after.shape and before.is_complex() == after.is_complex()
        return alike and isinstance(before, nn.Parameter) == isinstance(after, nn.Parameter)
    if type(before) is type(after) is float:
        return str(before) == str(after)  # 0.0 == -0.0, and nan is not itself
    try:
        return type(before) is type(after) and bool(before == after)
    except Exception:
        return False


def slots_of(cls: type) -> Iterator[str]:
    """Names of the attributes that a class and its bases keep in `__slots__`."""
    for base in cls.__mro__:
        slots = vars(base).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            private = name.startswith("__") and not name.endswith("__")
            if name not in ("__dict__", "__weakref__"):
                yield f"_{base.__name__.lstrip('_')}{name}" if private else name


def original_class(module: nn.Module) -> type[nn.Module]:
    """The user's own class of a module, derived or not."""
    cls: type[nn.Module] = getattr(type(module), "_base", type(module))
    return cls


def mixins_of(module: nn.Module) -> tuple[type[Derived], ...]:
    """What biofx has put in front of a module's class so far."""
    mixins: tuple[type[Derived], ...] = getattr(type(module), "_mixins", ())
    return mixins


def become(module: nn.Module, *mixins: type[Derived]) -> None:
    """Give a module the class (mixins…, its own class), in place."""
    module.__class__ = _derive(original_class(module), mixins)


def rebuild(base: type[nn.Module], mixins: tuple[type[Derived], ...]) -> nn.Module:
    """An empty instance of a derived class, for pickle and copy."""
    module: nn.Module = object.__new__(_derive(base, mixins))
    return module


def _derive(base: type[nn.Module], mixins: tuple[type[Derived], ...]) -> type[nn.Module]:
    if any(mixin._one_class_each for mixin in mixins):
        return _new_class(base, mixins)
    return _shared_class(base, mixins)  # type: ignore[arg-type]


def _new_class(base: type[nn.Module], mixins: tuple[type[Derived], ...]) -> type[nn.Module]:
    prefix = "".join(getattr(mixin, "_prefix", "") for mixin in mixins)
    namespace = {"_base": base, "_mixins": mixins, "__module__": base.__module__}
    return type(prefix + base.__name__, (*mixins, base), namespace)


_shared_class = cache(_new_class)


def watch(reads: Mapping[nn.Module, Mapping[str, Iterable[Cell]]]) -> None:
    """Let every module whose attributes were read tell the graphs that rest on them."""
    for module, names in reads.items():
        if isinstance(module, torch.jit.ScriptModule):
            continue
        if not isinstance(module, Watched):
            become(module, Watched)
        module.__dict__[_WATCHERS] = {name: tuple(cells) for name, cells in names.items()}
