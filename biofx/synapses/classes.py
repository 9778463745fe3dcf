"""The classes that biofx derives from a user's module classes.

A transformed module keeps its class as a base: `isinstance`, methods, attributes and pickling by
name go on working. What biofx adds comes as a mixin in front of it.
"""

from collections.abc import Iterable, Iterator
from types import new_class
from typing import Any

from torch import nn
from torch.nn.utils.parametrize import is_parametrized

# What biofx puts into the `__dict__` of a module and saves with it.
SAVED = ("_biofx", "_biofx_synapses", "_biofx_unit_axis", "_biofx_bundles")

# Where a transformed `torch.fx.GraphModule` keeps what its own graph was, {attribute: value}.
REPLACED = "_biofx_replaced"


class Derived(nn.Module):
    """Base of the mixins. Pickles as (user's class, mixins, state)."""

    _biofx_base: type[nn.Module]
    _biofx_mixins: tuple[type["Derived"], ...] = ()
    # What else a mixin keeps in the `__dict__` of a module; it saves that itself. All that is
    # biofx's has names that begin so, for any other may be one of the user's.
    _biofx_private: tuple[str, ...] = ()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        # A derived class is none of the user's: it must not enter a registry of theirs.
        pass

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        if "_biofx_base" not in vars(cls):
            return super().__new__(cls)  # somebody has derived a class from this one
        # `self.__class__(…)`, as slicing a Sequential does: a plain module of the user's class.
        return cls._biofx_base(*args, **kwargs)

    def __reduce_ex__(self, protocol: Any) -> Any:
        if is_parametrized(self):
            self.__getstate__()  # type: ignore[no-untyped-call]  # torch refuses, and says why
        return rebuild, (type(self)._biofx_base, type(self)._biofx_mixins), self._biofx_state()

    def __copy__(self) -> "Derived":
        fresh: Derived = rebuild(type(self)._biofx_base, type(self)._biofx_mixins)
        fresh.__setstate__(self._biofx_state())
        return fresh

    def _biofx_state(self) -> tuple[Any, ...]:
        """The state that the user's class saves, its slots, and what biofx has added."""
        base: Any = type(self)._biofx_base
        # A parametrized class gives no state, so that nobody pickles it; torch copies its __dict__.
        theirs = dict(self.__dict__) if is_parametrized(self) else base.__getstate__(self)
        slots = {}
        if base.__getstate__ is nn.Module.__getstate__:  # which leaves them out
            slots = {name: getattr(self, name) for name in slots_of(base) if hasattr(self, name)}
        if isinstance(theirs, dict):
            ours = {*SAVED, *private_names(type(self)._biofx_mixins)}
            theirs = {name: value for name, value in theirs.items() if name not in ours}
        saved = {name: self.__dict__[name] for name in SAVED if name in self.__dict__}
        return theirs, slots, saved

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        theirs, slots, saved = state[:3]
        type(self)._biofx_base.__setstate__(self, theirs)
        for name, value in slots.items():
            object.__setattr__(self, name, value)
        self.__dict__.update(saved)


def private_names(mixins: tuple[type[Derived], ...]) -> Iterator[str]:
    """The attributes that mixins keep in the `__dict__` of a module for themselves."""
    for mixin in mixins:
        yield from mixin._biofx_private


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
    cls: type[nn.Module] = getattr(type(module), "_biofx_base", type(module))
    return cls


def mixins_of(module: nn.Module) -> tuple[type[Derived], ...]:
    """What biofx has put in front of a module's class so far."""
    mixins: tuple[type[Derived], ...] = getattr(type(module), "_biofx_mixins", ())
    return mixins


def has_any(module: nn.Module, names: Iterable[str]) -> bool:
    """Whether a module or its own class has an attribute of one of these names."""
    kind, own = original_class(module), module.__dict__
    for name in names:  # plain loops: this is asked for each layer of a model
        if name in own or name in own["_parameters"] or name in own["_buffers"]:
            return True
        if name in own["_modules"] or hasattr(kind, name):
            return True
    return False


def become(module: nn.Module, *mixins: type[Derived]) -> None:
    """Give a module the class (mixins…, its own class), in place."""
    kind = derive(original_class(module), mixins)
    object.__setattr__(module, "__class__", kind)  # the user's class may guard its attributes


def revert(module: nn.Module) -> None:
    """Give a module its user's class back, in place, and drop what biofx has added."""
    replaced = module.__dict__.get(REPLACED, {})
    for name in (*SAVED, *private_names(mixins_of(module))):
        module.__dict__.pop(name, None)
    module.__dict__.update(replaced)
    object.__setattr__(module, "__class__", original_class(module))


def rebuild(base: type[nn.Module], mixins: tuple[type[Derived], ...]) -> Any:
    """An empty instance of a derived class, for pickle and copy."""
    return object.__new__(derive(base, mixins))


def derive(base: type[nn.Module], mixins: tuple[type[Derived], ...]) -> type[nn.Module]:
    """The class (mixins…, base), named after the user's class: one for all of its modules."""
    # Found by the weak references that Python keeps: a class goes with its modules.
    for known in base.__subclasses__():
        if vars(known).get("_biofx_base") is base and vars(known).get("_biofx_mixins") == mixins:
            return known
    prefix = "".join(getattr(mixin, "_biofx_prefix", "") for mixin in mixins)
    names = {
        "_biofx_base": base,
        "_biofx_mixins": mixins,
        "__module__": base.__module__,
        "__qualname__": prefix + base.__qualname__,
    }
    if _leads_to_module(base):
        return new_class(
            prefix + base.__name__, (*mixins, base), {}, lambda body: body.update(names)
        )
    # Python lets an object change its class only if both classes inherit their memory layout
    # alike. `class Layer(ABC, nn.Module)` inherits it from ABC, so its derived class must come from
    # `Layer` alone; the mixins enter by the method resolution order.
    options = {"metaclass": _mixing(type(base), mixins)}
    return new_class(prefix + base.__name__, (base,), options, lambda body: body.update(names))


def _leads_to_module(base: type) -> bool:
    kind: type | None = base
    while kind is not None and kind is not nn.Module:
        kind = kind.__base__
    return kind is nn.Module


def _mixing(metaclass: type, mixins: tuple[type[Derived], ...]) -> type:
    def mro(cls: type) -> list[type]:
        own, *rest = metaclass.mro(cls)  # type: ignore[call-arg]
        added = dict.fromkeys(kind for mixin in mixins for kind in mixin.__mro__)
        return [own, *(kind for kind in added if kind not in rest), *rest]

    return type(metaclass.__name__, (metaclass,), {"mro": mro})
