"""One capture of one model: who records, which objects are watched, what to put back."""

import functools
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from types import (
    FunctionType,
    GetSetDescriptorType,
    MemberDescriptorType,
    WrapperDescriptorType,
)
from typing import Any

import torch
from torch.fx._symbolic_trace import _maybe_revert_all_patches

from biofx.capture.effects import ITEMS
from biofx.capture.world import Missing

CACHED = type(functools.lru_cache(lambda: None))


@dataclass
class Patch:
    """An attribute of a class or module, or a name in a namespace, that is something else."""

    owner: Any
    name: str
    value: Any
    before: Any = Missing

    def apply(self) -> None:
        self.before = self._names().get(self.name, Missing)
        self._set(self.value)

    def revert(self) -> None:
        self._set(self.before)

    def _names(self) -> Mapping[str, Any]:
        names: Mapping[str, Any] = self.owner if isinstance(self.owner, dict) else vars(self.owner)
        return names

    def _set(self, value: Any) -> None:
        if isinstance(self.owner, dict):
            if value is Missing:
                self.owner.pop(self.name, None)
            else:
                self.owner[self.name] = value
        elif value is Missing:
            delattr(self.owner, self.name)
        else:
            setattr(self.owner, self.name, value)


@dataclass
class Names:
    """Several names of a namespace that are something else: a tenth of the cost of a patch each."""

    names: dict[str, Any]
    values: dict[str, Any]
    before: dict[str, Any] = field(default_factory=dict)

    def apply(self) -> None:
        self.before = {name: self.names[name] for name in self.values}
        self.names.update(self.values)

    def revert(self) -> None:
        self.names.update(self.before)


def user_code() -> bool:
    """Whether the code that calls the caller is neither torch's nor this package's."""
    name = str(sys._getframe(2).f_globals.get("__name__", ""))
    return not name.startswith(("torch.", "biofx."))


def refuser(
    function: Callable[..., Any],
    tracer: Callable[[], Any],
    what: str,
    *,
    by_torch_too: bool = False,
) -> Callable[..., Any]:
    """A function that runs as it is, but not in a forward that is traced."""

    def refuse(*args: Any, **kwargs: Any) -> Any:
        active = tracer()
        if active is not None and (by_torch_too or user_code()):
            raise active.refuse(what)
        return function(*args, **kwargs)

    return refuse


class Recording:
    """One capture of one model: who records, and what has to be put back afterwards."""

    def __init__(self, session: Any, undo: ExitStack) -> None:
        self.session = session
        self.undo = undo
        self.patches: list[Patch | Names] = []
        self.owner = threading.get_ident()
        self.tracked: dict[int, tuple[Any, bool]] = {}  # id: (object, belongs to a global)
        # id of a function that must not run: (what it does, what stands in its place)
        self.refused: dict[int, tuple[str, Any]] = {}
        self._classes: set[type] = set()
        self._refuses_items = False

    def tracer(self) -> Any:
        """The tracer of the forward that runs now, in this thread; None outside of forwards."""
        if self.session.stack and threading.get_ident() == self.owner:
            tracer = self.session.stack[-1]
            if tracer.reads.active:
                return tracer
        return None

    def patch(self, owner: Any, name: str, value: Any) -> None:
        """Let an attribute, or a name in a namespace, be something else while the capture lasts."""
        self._apply(Patch(owner, name, value))

    def patch_names(self, names: dict[str, Any], values: dict[str, Any]) -> None:
        """As `patch`, for several names that a namespace has."""
        self._apply(Names(names, values))

    def _apply(self, patch: Patch | Names) -> None:
        patch.apply()
        self.patches.append(patch)
        self.undo.callback(patch.revert)

    def refuse_items(self) -> None:
        """Refuse items of a module to be set or deleted. For code that may: it costs time."""
        if not self._refuses_items:
            self._refuses_items = True
            for cls, method in ITEMS:
                what = f"changes a {cls.__name__}"
                refuse = refuser(vars(cls)[method], self.tracer, what, by_torch_too=True)
                self.patch(cls, method, refuse)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Everything as it is outside of captures: for a module that a forward imports."""
        for patch in reversed(self.patches):
            patch.revert()
        try:
            with _maybe_revert_all_patches():
                yield
        finally:
            for patch in self.patches:
                patch.apply()

    def track(self, value: Any, outer: bool) -> bool:
        """Notice from now on which fields of an object are read; False if that is impossible."""
        self.tracked[id(value)] = (value, outer)
        cls = type(value)
        if cls in self._classes:
            return True
        try:
            self.patch(cls, "__getattribute__", _tracking_getattribute(self, cls))
            self.patch(cls, "__setattr__", _tracking_setattr(self, cls))
        except TypeError:  # a class written in C
            return False
        self._classes.add(cls)
        return True


def class_attribute(cls: type, name: str) -> Any:
    """What a class says about a name, descriptors unbound; `Missing` if nothing."""
    for base in cls.__mro__:
        if name in vars(base):
            return vars(base)[name]
    return Missing


def reads_function(reads: Any, attribute: Any) -> bool:
    """Whether a class attribute is code; what runs when it is read is scanned."""
    if attribute is Missing:
        return False
    if isinstance(attribute, property):
        if isinstance(attribute.fget, FunctionType):
            reads.scan(attribute.fget)
        return True
    if isinstance(attribute, functools.cached_property):
        raise reads.refuse(f"reads a cached property ({attribute.attrname})")
    if isinstance(attribute, staticmethod | classmethod):
        attribute = attribute.__func__
    if isinstance(attribute, FunctionType):
        reads.scan(attribute)
        return True
    if isinstance(attribute, CACHED):
        name = getattr(attribute, "__name__", "without a name")
        raise reads.refuse(f"calls a cached function ({name})")
    return isinstance(attribute, GetSetDescriptorType | WrapperDescriptorType | type) or (
        hasattr(attribute, "__get__") and not isinstance(attribute, MemberDescriptorType)
    )


def _tracking_getattribute(recording: Recording, cls: type) -> Callable[..., Any]:
    plain: Any = cls.__getattribute__

    def get_attribute(value: Any, name: str) -> Any:
        found = plain(value, name)
        tracer = recording.tracer()
        known = recording.tracked.get(id(value))
        if tracer is None or known is None or known[0] is not value or not user_code():
            return found
        if name == "__dict__":
            raise tracer.refuse(f"reads the __dict__ of a {cls.__name__}")
        if name.startswith("__") or reads_function(tracer.reads, class_attribute(cls, name)):
            return found
        if isinstance(found, torch.Tensor):
            raise tracer.refuse(f"reads {name!r} of a {cls.__name__}, a tensor")
        tracer.reads.world.attribute(value, name, found, outer=known[1])
        tracer.reads.rest_on(found, f"{name!r} of a {cls.__name__}", outer=known[1])
        return found

    return get_attribute


def _tracking_setattr(recording: Recording, cls: type) -> Callable[..., None]:
    plain: Any = cls.__setattr__

    def set_attribute(value: Any, name: str, new: Any) -> None:
        tracer = recording.tracer()
        known = recording.tracked.get(id(value))
        if tracer is not None and known is not None and known[0] is value:
            raise tracer.refuse(f"assigns {name!r} of a {cls.__name__}")
        plain(value, name, new)

    return set_attribute
