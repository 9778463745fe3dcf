"""What a forward reads while it is traced, besides its arguments.

Every value that decides what is recorded has to tell when it changes, or to be compared at every
call, or to be refused. Here reading is noticed: attributes of modules through their
`__getattribute__`, fields of other objects through that of their class, global variables through
the byte code of every function that may run.
"""

import functools
import re
import sys
import weakref
from collections import deque
from collections.abc import Callable
from enum import Enum
from types import (
    BuiltinFunctionType,
    FunctionType,
    MethodType,
    ModuleType,
    WrapperDescriptorType,
)
from typing import Any

import torch
from torch import nn

from biofx.capture.changes import at_end, changes_of, enclosing
from biofx.capture.code import facts
from biofx.capture.effects import changes_module
from biofx.capture.recording import CACHED, Recording, class_attribute, reads_function
from biofx.capture.substitutes import substitute_for
from biofx.capture.world import PLAIN, Globals, Missing, Snapshots, World, content_of, items_of

# Values that cannot change, or that tell when they do.
_ATOMS = (
    type(None), *PLAIN, type, BuiltinFunctionType, WrapperDescriptorType, Enum, re.Pattern,
    ModuleType, weakref.ref, nn.Module, torch.Tensor, torch.Generator, torch.layout,
    torch.memory_format,
)  # fmt: skip
_LIBRARY = ("torch", "biofx", "numpy")  # trusted not to read what a user could change
# Asked whether a value is an instance, these read its memory, and an intermediate value has none.
_LEGACY = type(torch.FloatTensor)
LONGEST = 1000  # elements of a container that are compared at every call


class Reads:
    """Which values a forward reads, and whether it changed a container that it read."""

    def __init__(self, recording: Recording, refuse: Callable[[str], Exception]) -> None:
        self.recording = recording
        self.refuse = refuse
        self.world = World()
        self.pairs: list[tuple[nn.Module, str]] = []
        self.active = False
        self.snapshots = Snapshots()
        self._seen: set[Any] = set()
        self._scanned: set[int] = set()
        self._kept: list[Any] = []  # alive, so that their ids stay theirs
        self.compares_unknown = False

    def __enter__(self) -> None:
        self.active = True

    def __exit__(self, *_: object) -> None:
        self.active = False

    def include(self, pairs: list[tuple[nn.Module, str]], world: World) -> None:
        """Rest on whatever the graph of a child rests on: it decides what the child returns."""
        for module, name in pairs:
            if (id(module), name) not in self._seen:
                self._seen.add((id(module), name))
                self.pairs.append((module, name))
        self.world.include(world)

    def note(self, module: nn.Module, name: str, value: Any) -> None:
        """The forward reads an attribute of a module."""
        if (id(module), name) in self._seen:
            return
        self._seen.add((id(module), name))
        self.pairs.append((module, name))
        if name == "_modules":
            self.world.content(value)
        elif name not in ("_parameters", "_buffers"):
            self.rest_on(value, f"its attribute {name!r}")

    def note_class(self, module: nn.Module, name: str, value: Any) -> None:
        """The forward reads something that a module's class says: a method, a constant."""
        key = (id(type(module)), name)
        if key in self._seen:
            return
        self._seen.add(key)
        attribute = class_attribute(type(module), name)
        if type(module).__module__.startswith("torch.") or reads_function(self, attribute):
            return
        self.pairs.append((module, name))
        self.world.attribute(module, name, value)
        self.rest_on(value, f"the class attribute {name!r}", outer=True)

    def rest_on_tensors(self, module: nn.Module) -> None:
        """The forward asks for all parameters or buffers of a module."""
        for child in module.modules():
            self.world.content(child._modules)
            for registry in (child._parameters, child._buffers):
                self.world.registry(registry)

    def scan_forward(self, function: Any) -> None:
        """Look at a forward and at the functions that it is wrapped in."""
        while isinstance(function, FunctionType):
            self.scan(function, is_forward=True)
            function = getattr(function, "__wrapped__", None)

    def rest_on(self, value: Any, what: str, *, outer: bool = False, depth: int = 5) -> None:
        """Make sure that a change of a value which the forward has in hand will be seen.

        Raises:
            Exception: the refusal, if nothing can see it.
        """
        if type(value) in PLAIN or issubclass(type(value), nn.Module):
            return  # the most frequent ones
        if isinstance(value, _LEGACY):
            raise self.refuse(f"reads {what}, a type such as torch.FloatTensor")
        if isinstance(value, _ATOMS) or id(value) in self._seen:
            return
        self._seen.add(id(value))
        self._kept.append(value)
        if isinstance(value, FunctionType):
            self.scan(value)
        elif isinstance(value, MethodType):
            self.rest_on(value.__func__, what, outer=outer)
            self.rest_on(value.__self__, what, outer=outer)
        elif isinstance(value, CACHED):
            name = getattr(value, "__name__", "without a name")
            raise self.refuse(f"calls a cached function ({name})")
        elif isinstance(value, functools.partial):
            for part in (value.func, value.args, value.keywords):
                self.rest_on(part, what, outer=outer)
        elif isinstance(value, list | tuple | set | frozenset | deque | dict):
            self._rest_on_content(value, what, outer, depth)
        elif hasattr(type(value), "__next__") or _is_c_object(value):
            raise self.refuse(f"reads {what}, a {type(value).__module__}.{type(value).__name__}")
        elif not self.recording.track(value, outer):
            self._rest_on_content(value, what, outer, depth)

    def _rest_on_content(self, value: Any, what: str, outer: bool, depth: int) -> None:
        content = content_of(value)
        if len(content) > LONGEST or not depth:
            raise self.refuse(f"reads {what}, a large container")
        self.snapshots.take(content, 0)
        if not isinstance(value, tuple | frozenset):
            self.world.content(value, outer=outer)
        for item in items_of(content)[len(content) if isinstance(content, dict) else 0 :]:
            if outer and isinstance(item, torch.Tensor):
                raise self.refuse(f"reads {what}, which holds a tensor")
            self.rest_on(item, what, outer=outer, depth=depth - 1)

    # --- functions ---------------------------------------------------------------------------

    def scan(self, function: FunctionType, *, is_forward: bool = False) -> None:
        """Look at a function before it runs: at its global variables, and at what it rebinds."""
        if id(function) in self._scanned:
            return
        if id(function) in self.recording.refused:
            raise self.refuse(self.recording.refused[id(function)][0])
        if is_library(function.__module__):
            if function.__module__.startswith("torch.backends"):
                raise self.refuse("reads torch.backends")
            if changes_module(function):
                raise self.refuse(f"calls {function.__name__}() of a module")
            return
        self._scanned.add(id(function))
        self._kept.append(function)
        known = facts(function.__code__)
        if known.rebinds is not None:
            raise self.refuse(f"assigns {known.rebinds!r}, which outlives the call")
        changes = changes_of(function.__code__)
        if changes is not None:
            refusal = changes.refusal(function)
            if refusal is not None:
                raise self.refuse(refusal)
            if changes.items:
                self.recording.refuse_items()
        if known.compares_values:
            raise self.refuse("compares computed values with `is`")
        if known.compares_any_with_none and not is_forward:
            self.compares_unknown = True
        self.snapshots.take(function.__dict__, 0)
        for chain in known.names:
            self._resolve(function.__globals__, chain)
        if ("isinstance",) in known.names and any(
            isinstance(at_end(function.__globals__, chain), _LEGACY) for chain in known.names
        ):
            raise self.refuse("asks for a type such as torch.FloatTensor")
        for held in enclosing(function).values():
            self._rest_on_foreign(held, "a variable of an enclosing function")

    def _resolve(self, names: dict[str, Any], chain: tuple[str, ...]) -> None:
        """Follow a chain of names from a global variable to the value that the code reads."""
        for position, name in enumerate(chain):
            value = names.get(name, Missing)
            builtin = value is Missing and position == 0
            if builtin:
                builtins = names.get("__builtins__", {})
                held = builtins if isinstance(builtins, dict) else vars(builtins)
                value = held.get(name, Missing)
            if id(value) in self.recording.refused:
                self.recording.patch(names, name, self.recording.refused[id(value)][1])
                return
            substitute = substitute_for(value)
            if substitute is not None:
                self.recording.patch(names, name, substitute(self.recording, value))
                return
            if isinstance(value, ModuleType):
                if is_library(value.__name__) and chain[:2] != ("torch", "fx"):
                    if chain[1:2] == ("backends",) or value.__name__.startswith("torch.backends"):
                        raise self.refuse("reads torch.backends")
                    if "default_generator" in chain:
                        raise self.refuse("uses torch.default_generator")
                    return
                names = vars(value)
                continue
            if isinstance(value, type):
                self._rest_on_class(value, chain[position + 1 :])
                return
            if value is Missing or builtin:
                return
            if isinstance(value, nn.Module | torch.Tensor):
                raise self.refuse(f"uses the global variable {name!r}, a {type(value).__name__}")
            if not isinstance(value, FunctionType | BuiltinFunctionType | CACHED):
                if names.get("__name__") in sys.stdlib_module_names:
                    return
                self.world.variable(Globals(names), name, value)
            self._rest_on_foreign(value, f"the global variable {name!r}")
            return

    def _rest_on_class(self, cls: type, chain: tuple[str, ...]) -> None:
        """The forward may read an attribute of a class, which is compared if it is plain data."""
        held = class_attribute(cls, chain[0]) if chain else Missing
        if type(held) in (*PLAIN, list, tuple, dict, set) and not is_library(cls.__module__):
            self.world.attribute(cls, chain[0], held, outer=True)
            self.rest_on(held, f"{chain[0]!r} of the class {cls.__name__}", outer=True)

    def _rest_on_foreign(self, value: Any, what: str) -> None:
        """As `rest_on`, for a value that does not belong to the model."""
        if isinstance(value, torch.Tensor):
            raise self.refuse(f"reads {what}, a tensor")
        self.rest_on(value, what, outer=True)


def is_library(name: str | None) -> bool:
    """Whether a Python module of this name belongs to a library that is trusted."""
    return name is not None and name.partition(".")[0] in _LIBRARY


def _is_c_object(value: Any) -> bool:
    """An object whose state lies outside Python: a generator of random numbers, an array, …"""
    cls = type(value)
    if cls.__module__.partition(".")[0] == "torch" or isinstance(value, BaseException):
        return False
    held = hasattr(value, "__dict__") or any("__slots__" in vars(base) for base in cls.__mro__)
    return not held or any(
        base.__module__ in ("_random", "numpy", "numpy.random") for base in cls.__mro__
    )
