"""Copies what a model's attributes hold, so that the copy refers to the copied modules only.

`copy.deepcopy` takes a function for a constant. A lambda made in `__init__`, a hook, a partial or
a bound method would go on working on the modules of the original.
"""

import copy
import copyreg
import dis
import functools
import weakref
from collections import ChainMap, Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator
from enum import Enum
from types import BuiltinFunctionType, CellType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from biofx.copying.nested import is_proxy
from biofx.errors import ModelError
from biofx.synapses.classes import original_class

# Values that a copy may share because nothing can change them.
_IMMUTABLE = (
    type(None), bool, int, float, complex, str, bytes, type, BuiltinFunctionType, ModuleType,
    torch.dtype, torch.device, torch.layout, torch.Size, Enum, slice, range, weakref.ref,
)  # fmt: skip
_CONTAINERS = (dict, list, tuple, set, deque, OrderedDict, defaultdict, Counter)
_DEEP = 12
_LOOKS_UP = frozenset({"LOAD_GLOBAL", "LOAD_NAME"})


class Rebinder:
    """Copies values for the copy of a model.

    It does what `copy.deepcopy` does, but for modules, tensors and functions. An object that cannot
    be copied, or that holds one, is shared whole; a container goes on holding it.

    Args:
        memo: {id of a module or tensor of the model: its copy}, as for `copy.deepcopy`.
        module: gives the copy of a module, which it is told a name of.
        tensor: gives the copy of a tensor.
        strict: raise for what cannot be rebound; otherwise it is shared.
        apart: copy what functions keep (variables of closures, mutable defaults, attributes), too.

    Attributes:
        shared: {place: type} of what could not be copied.
    """

    def __init__(
        self,
        memo: dict[int, Any],
        *,
        module: Callable[[nn.Module, str], nn.Module],
        tensor: Callable[[Tensor], Tensor],
        strict: bool,
        apart: bool,
    ) -> None:
        self.memo = memo
        self.module = module
        self.tensor = tensor
        self.strict = strict
        self.apart = apart
        self.shared: dict[str, str] = {}
        self.names: dict[int, str] = {}  # by the id of a module of the model
        self._registered: set[int] = set()
        self.place: nn.Module | None = None  # whose attribute is being copied
        self._leads: dict[int, bool] = {}
        self._within = 0  # so many objects
        self._made: list[int] = []  # ids of what has been copied here, in order

    def note(self, module: nn.Module, name: str, *, registered: bool) -> None:
        """Take a module for one of the model's."""
        self.names[id(module)] = name
        if registered:
            self._registered.add(id(module))

    def path(self, module: nn.Module, attribute: str) -> str:
        """The qualified name of an attribute."""
        return f"{self.names[id(module)]}.{attribute}".lstrip(".")

    def copied(self, value: Any, attribute: str) -> Any:
        """The copy's value of an attribute.

        Raises:
            ModelError: it is a function that reaches the model's modules through a global variable,
                or a cache around one that holds them.
        """
        self._attribute = attribute
        return self._copied(value)

    def _copied(self, value: Any) -> Any:
        known = self.memo.get(id(value), self)
        if known is not self:
            return known
        if is_proxy(value) or isinstance(value, _IMMUTABLE):
            return value
        if isinstance(value, Tensor):
            return self.tensor(value)
        if isinstance(value, nn.Module):
            assert self.place is not None
            return self.module(value, self.path(self.place, self._attribute))
        if isinstance(value, FunctionType):
            return self._function(value)
        kind = type(value)
        if kind is torch.Generator:
            return self._remember(value, value.clone_state())  # else a copy would draw from it
        if kind is MethodType:
            return MethodType(self._copied(value.__func__), self._copied(value.__self__))
        if kind is functools.partial:
            keywords = {key: self._copied(item) for key, item in value.keywords.items()}
            made = functools.partial(
                self._copied(value.func), *map(self._copied, value.args), **keywords
            )
            return self._remember(value, made)
        if kind in _CONTAINERS:
            return self._container(value)
        wrapped = getattr(value, "__wrapped__", None)
        function = isinstance(wrapped, FunctionType) and not isinstance(value, type)
        if function and self._reaches(wrapped):
            self._refuse(f"is a {kind.__name__} around a function that holds modules")
            return value
        return self._object(value)

    def _container(self, value: Any) -> Any:
        kind = type(value)
        if kind is tuple:
            items = tuple(map(self._copied, value))
            same = all(a is b for a, b in zip(items, value, strict=True))
            return value if same else self._remember(value, items)
        if kind is set:
            return self._remember(value, set(map(self._copied, value)))
        if kind is not dict and kind is not list:
            return self._rebuilt(value)
        fresh = self._remember(value, kind())
        if kind is list:
            fresh.extend(map(self._copied, value))
        else:
            for key, item in value.items():
                fresh[self._copied(key)] = self._copied(item)
        return fresh

    def _object(self, value: Any) -> Any:
        made = len(self._made)
        self._within += 1
        try:
            return self._rebuilt(value)
        except ModelError:
            raise
        except Exception:
            if self._within > 1:
                raise
            # It goes on with what it holds, so that nothing else may hold a copy of that.
            for known in self._made[made:]:
                self.memo.pop(known, None)
            del self._made[made:]
            assert self.place is not None
            self.shared[self.path(self.place, self._attribute)] = type(value).__name__
            return value
        finally:
            self._within -= 1

    def _rebuilt(self, value: Any) -> Any:
        """A copy made of what `pickle` would write, whose parts are copied here."""
        kind = type(value)
        if hasattr(kind, "__deepcopy__"):
            attempt: ChainMap[int, Any] = ChainMap({}, self.memo)
            fresh = copy.deepcopy(value, attempt)  # type: ignore[arg-type]
            # What it keeps alive stands under the id of the memo, which will be another object's.
            alive = attempt.maps[0].pop(id(attempt), [])
            self.memo.update(attempt.maps[0])
            self.memo.setdefault(id(self.memo), []).extend(alive)
            return fresh
        reduce = copyreg.dispatch_table.get(kind)
        reduced = value.__reduce_ex__(4) if reduce is None else reduce(value)
        if isinstance(reduced, str):
            return value  # the name of a constant
        make, args, state, items, pairs, update = (*reduced, *[None] * 4)[:6]
        fresh = self._remember(value, make(*map(self._copied, args)))
        if state is not None:
            _set_state(fresh, self._copied(state), update)
        for item in items or ():
            fresh.append(self._copied(item))
        for key, item in pairs or ():
            fresh[self._copied(key)] = self._copied(item)
        return fresh

    def _remember(self, value: Any, fresh: Any) -> Any:
        self.memo[id(value)] = fresh
        self._made.append(id(value))
        self.memo.setdefault(id(self.memo), []).append(value)  # alive, so that its id stays its own
        return fresh

    # --- functions -----------------------------------------------------------------------------

    def _function(self, function: FunctionType) -> Any:
        if not self._reaches(function) and not (self.apart and _keeps(function)):
            return function  # shared, as `copy.deepcopy` does
        for name in _globals_of(function.__code__):
            if id(function.__globals__.get(name)) in self._registered:
                self._refuse(
                    f"is the function {function.__qualname__}, which works on the global variable "
                    f"{name!r}, a module"
                )
                return function
        fresh = FunctionType(
            function.__code__, function.__globals__, function.__name__, None,
            tuple(map(self._cell, function.__closure__ or ())),
        )  # fmt: skip
        self._remember(function, fresh)
        fresh.__defaults__ = self._copied(function.__defaults__)
        fresh.__kwdefaults__ = self._copied(function.__kwdefaults__)
        for name in ("__doc__", "__qualname__", "__module__", "__annotations__"):
            setattr(fresh, name, getattr(function, name))
        fresh.__dict__.update((key, self._copied(item)) for key, item in vars(function).items())
        return fresh

    def _cell(self, cell: CellType) -> CellType:
        known = self.memo.get(id(cell))
        if known is not None:
            return known  # type: ignore[no-any-return]
        if not self.apart and not self._reaches_inside(cell, _DEEP):
            return cell  # a counter, say: both functions count
        fresh = CellType()
        self._remember(cell, fresh)
        for contents in _held_by(cell):
            fresh.cell_contents = self._copied(contents)
        return fresh

    def _reaches(self, function: FunctionType) -> bool:
        return self._reaches_inside(function, _DEEP)

    def _reaches_inside(self, value: Any, depth: int) -> bool:
        """Whether a value leads to a module or a tensor of the model."""
        if id(value) in self.names:
            return True
        if is_proxy(value) or isinstance(value, weakref.ref | Tensor):
            return id(value) in self.memo and self.memo[id(value)] is not value
        if depth == 0 or isinstance(value, _IMMUTABLE):
            return False
        known = self._leads.get(id(value))
        if known is None:
            self._leads[id(value)] = False  # while it is being asked
            known = any(self._reaches_inside(item, depth - 1) for item in _held_by(value))
            self._leads[id(value)] = known
            self.memo.setdefault(id(self.memo), []).append(value)
        return known

    def _refuse(self, what: str) -> None:
        if not self.strict:
            return
        assert self.place is not None
        name = self.names[id(self.place)] or "the model"
        owner = f"{name} ({original_class(self.place).__name__})"
        raise ModelError(
            f"{owner}: its attribute {self._attribute!r} {what} of the model, and cannot be made "
            "to work on a copy; transform the model itself with inplace=True, or make that a method"
        )


def leads_to_tensors(value: Any) -> bool:
    """Whether a value refers to a tensor or a module, through functions and their closures too."""
    waiting, seen = [value], set()
    while waiting:
        value = waiting.pop()
        if isinstance(value, Tensor | nn.Module):
            return True
        if id(value) not in seen and not is_proxy(value) and not isinstance(value, _IMMUTABLE):
            seen.add(id(value))
            waiting += _held_by(value)
    return False


def _keeps(function: FunctionType) -> bool:
    """Whether a function has values of its own that it may change."""
    if function.__module__ and function.__module__.partition(".")[0] == "torch":
        return False
    keywords = (function.__kwdefaults__ or {}).values()
    given = (*(function.__defaults__ or ()), *keywords)
    plain = all(isinstance(item, _IMMUTABLE) for item in given)
    return bool(function.__closure__ or vars(function)) or not plain


def _held_by(value: Any) -> Iterator[Any]:
    """What a value refers to, as far as Python code that runs may follow it."""
    if isinstance(value, CellType):
        try:
            yield value.cell_contents
        except ValueError:
            return
    elif isinstance(value, FunctionType):
        yield from value.__closure__ or ()
        yield from value.__defaults__ or ()
        yield from (value.__kwdefaults__ or {}).values()
        yield from vars(value).values()
        for name in _globals_of(value.__code__):
            found = value.__globals__.get(name)
            if isinstance(found, nn.Module):
                yield found
    elif isinstance(value, MethodType):
        yield from (value.__self__, value.__func__)
    elif isinstance(value, functools.partial):
        yield from (value.func, *value.args, *value.keywords.values())
    elif isinstance(value, dict):
        yield from value.values()
    elif isinstance(value, list | tuple | set | frozenset | deque):
        yield from value
    else:
        yield from getattr(value, "__dict__", {}).values()
        wrapped = getattr(value, "__wrapped__", None)
        if isinstance(wrapped, FunctionType):
            yield wrapped


def _set_state(fresh: Any, state: Any, update: Callable[[Any, Any], Any] | None) -> None:
    """Give a new object its state, as `copy` and `pickle` do."""
    if update is not None:
        update(fresh, state)
    elif hasattr(fresh, "__setstate__"):
        fresh.__setstate__(state)
    else:
        attributes, slots = state if isinstance(state, tuple) else (state, None)
        if attributes:
            vars(fresh).update(attributes)
        for name, value in (slots or {}).items():
            object.__setattr__(fresh, name, value)


@functools.lru_cache(maxsize=4096)
def _globals_of(code: CodeType) -> tuple[str, ...]:
    """Names that a function's code, and functions inside it, look up globally."""
    # `co_names` has the names of attributes, too: `self.net` beside a global variable `net`.
    names = [step.argval for step in dis.get_instructions(code) if step.opname in _LOOKS_UP]
    for part in code.co_consts:
        if isinstance(part, CodeType):
            names += _globals_of(part)
    return tuple(names)
