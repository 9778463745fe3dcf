"""What Python does behind a tracer's back, made visible while a model is traced.

Everything here is patched for the time of one capture and put back after it: the training flag
becomes readable as a node, tensor factories are recorded instead of run, and whatever a graph
cannot hold (gradient modes, autocast, checkpointing, custom autograd functions, attributes that a
forward assigns) is refused, so that the module becomes opaque instead of wrong.
"""

import contextlib
import math
import random
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import fx, nn
from torch.fx import _symbolic_trace

_LOCK = threading.RLock()

# Functions that make a tensor from no tensor: run while tracing, they would become constants.
_FACTORIES = (
    "rand", "randn", "randint", "randperm", "normal", "zeros", "ones", "full", "empty", "arange",
    "range", "linspace", "logspace", "eye", "tensor", "as_tensor", "scalar_tensor", "complex",
    "tril_indices", "triu_indices", "hann_window", "hamming_window", "blackman_window",
    "bartlett_window", "kaiser_window", "from_numpy", "empty_strided", "sparse_coo_tensor",
)  # fmt: skip
# Functions that are recorded when an argument is a proxy; they do not dispatch by themselves.
_RECORDED = ("finfo", "iinfo")
# Global modes: read, they would be baked in; entered, they would be lost.
_MODES_READ = (
    "is_grad_enabled", "is_autocast_enabled", "is_inference_mode_enabled",
    "is_autocast_cache_enabled", "get_autocast_dtype", "get_rng_state", "initial_seed",
)  # fmt: skip
_CONTEXTS: tuple[tuple[Any, str], ...] = (
    (torch.no_grad, "__enter__"),
    (torch.enable_grad, "__enter__"),
    (torch.set_grad_enabled, "__init__"),
    (torch.inference_mode, "__enter__"),
    (torch.autocast, "__enter__"),
    (torch.autograd.graph.saved_tensors_hooks, "__enter__"),
)


class Reads:
    """Which Python attributes a forward reads, and whether it changed a container it read."""

    def __init__(self) -> None:
        self.pairs: list[tuple[nn.Module, str]] = []
        self.active = False
        self._seen: set[tuple[int, str]] = set()
        self._containers: list[tuple[Any, Any]] = []

    def __enter__(self) -> None:
        self.active = True

    def __exit__(self, *_: object) -> None:
        self.active = False

    def note(self, module: nn.Module, name: str, value: Any) -> None:
        if (id(module), name) in self._seen:
            return
        self._seen.add((id(module), name))
        self.pairs.append((module, name))
        if name not in ("_modules", "_parameters", "_buffers"):
            self.snapshot(value)

    def snapshot(self, value: Any, depth: int = 3) -> None:
        """Remember what is in a container, and in the containers in it."""
        if type(value) in (list, set, deque) or isinstance(value, dict):
            self._containers.append((value, value.copy()))
            if depth and len(value) < 1000:
                for item in value.values() if isinstance(value, dict) else value:
                    self.snapshot(item, depth - 1)

    def restore(self) -> bool:
        """Put changed containers back; True if there were any."""
        changed = False
        for value, before in self._containers:
            now = list(value.items()) if isinstance(value, dict) else list(value)
            then = list(before.items()) if isinstance(before, dict) else list(before)
            if len(now) == len(then) and all(_same(a, b) for a, b in zip(now, then, strict=True)):
                continue
            changed = True
            value.clear()
            if isinstance(value, dict | set):
                value.update(before)
            else:
                value.extend(before)
        return changed


def _same(a: Any, b: Any) -> bool:
    if type(a) is tuple and type(b) is tuple and len(a) == len(b) == 2:
        return (a[0] is b[0] or a[0] == b[0]) and a[1] is b[1]
    return a is b


@contextlib.contextmanager
def recording(session: Any) -> Iterator[None]:
    """Patch torch for the time of one capture. One capture at a time, whatever the threads."""
    with _LOCK, contextlib.ExitStack() as undo:
        owner = threading.get_ident()

        def tracer() -> Any:
            """The tracer of the forward that runs now, in this thread."""
            return session.stack[-1] if session.stack and threading.get_ident() == owner else None

        for name in _FACTORIES:
            if hasattr(torch, name):
                _patch(undo, torch, name, _factory(getattr(torch, name), tracer))
        for name in _RECORDED:
            _patch(undo, torch, name, _record_if_proxied(getattr(torch, name), tracer))
        for name in _MODES_READ:
            if hasattr(torch, name):
                refuse = _refuser(getattr(torch, name), tracer, f"reads torch.{name}()")
                _patch(undo, torch, name, refuse)
        for owner_class, method in _CONTEXTS:
            what = f"enters torch.{owner_class.__name__}"
            entered = _refuser(vars(owner_class)[method], tracer, what, by_torch_too=True)
            _patch(undo, owner_class, method, entered)
        apply = vars(torch.autograd.Function)["apply"].__func__
        what = "calls a custom autograd function"
        refuse = _refuser(apply, tracer, what, by_torch_too=True)
        _patch(undo, torch.autograd.Function, "apply", classmethod(refuse))
        _patch(undo, nn.Module, "__setattr__", _refusing_setattr(tracer))
        _patch(undo, nn.Module, "__getattr__", _recording_getattr(tracer))
        _patch(undo, nn.Module, "__call__", _recording_call(tracer))
        _patch(undo, _symbolic_trace, "_is_fx_tracing_flag", True)
        # functions that users (fx.wrap) or FX itself (math) want recorded as they are
        patcher = undo.enter_context(_symbolic_trace._new_patcher())
        wrapped = fx.Tracer()._autowrap_function_ids
        _symbolic_trace._patch_wrapped_functions(patcher)
        _symbolic_trace._autowrap_check(patcher, vars(math), wrapped)
        session.autowrap = partial(_symbolic_trace._autowrap_check, patcher, function_ids=wrapped)
        _patch(undo, nn.Module, "__getattribute__", _noting_getattribute(tracer))
        yield


_MISSING = object()


def _patch(undo: contextlib.ExitStack, owner: Any, name: str, value: Any) -> None:
    before = vars(owner).get(name, _MISSING)

    def restore() -> None:
        if before is _MISSING:
            delattr(owner, name)
        else:
            setattr(owner, name, before)

    setattr(owner, name, value)
    undo.callback(restore)


def _user_code(depth: int = 2) -> bool:
    name = str(sys._getframe(depth).f_globals.get("__name__", ""))
    return not name.startswith(("torch.", "biofx."))


def _bookkeeping() -> bool:
    """Whether nn.Module itself is looking at its registries (named_parameters and the like)."""
    name = sys._getframe(2).f_globals.get("__name__")
    return name in ("torch.nn.modules.module", "torch.fx._symbolic_trace", "torch.fx.proxy")


def _factory(function: Callable[..., Any], tracer: Callable[[], Any]) -> Callable[..., Any]:
    def make(*args: Any, **kwargs: Any) -> Any:
        active = tracer()
        if active is None or not active.reads.active or not _user_code():
            return function(*args, **kwargs)
        proxy = active.create_proxy("call_function", function, args, kwargs)
        proxy.kind = "tensor"
        return proxy

    return make


def _record_if_proxied(
    function: Callable[..., Any], tracer: Callable[[], Any]
) -> Callable[..., Any]:
    def make(*args: Any, **kwargs: Any) -> Any:
        active = tracer()
        if active is not None and args and isinstance(args[0], torch.fx.Proxy):
            return active.create_proxy("call_function", function, args, kwargs)
        return function(*args, **kwargs)

    return make


def _refuser(
    function: Callable[..., Any],
    tracer: Callable[[], Any],
    what: str,
    *,
    by_torch_too: bool = False,
) -> Callable[..., Any]:
    def refuse(*args: Any, **kwargs: Any) -> Any:
        active = tracer()
        if active is not None and active.reads.active and (by_torch_too or _user_code()):
            raise active.refuse(what)
        return function(*args, **kwargs)

    return refuse


def _recording_getattr(tracer: Callable[[], Any]) -> Callable[..., Any]:
    plain = nn.Module.__getattr__

    def get_attribute(module: nn.Module, name: str) -> Any:
        value = plain(module, name)
        active = tracer()
        if active is None or not active.reads.active:
            return value
        return active.getattr(name, value, active.attributes)

    return get_attribute


def _recording_call(tracer: Callable[[], Any]) -> Callable[..., Any]:
    plain = nn.Module.__call__

    def call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        active = tracer()
        if active is None or not active.reads.active:
            return plain(module, *args, **kwargs)
        return active.call_module(module, plain, args, kwargs)

    return call


def _refusing_setattr(tracer: Callable[[], Any]) -> Callable[..., None]:
    plain = nn.Module.__setattr__

    def set_attribute(module: nn.Module, name: str, value: Any) -> None:
        active = tracer()
        if active is not None and active.reads.active:
            raise active.refuse(f"assigns its attribute {name!r}")
        plain(module, name, value)

    return set_attribute


def _noting_getattribute(tracer: Callable[[], Any]) -> Callable[..., Any]:
    plain = object.__getattribute__

    def get_attribute(module: nn.Module, name: str) -> Any:
        active = tracer()
        if active is None or not active.reads.active:
            return plain(module, name)
        if name == "training" and _user_code():
            return active.training_flag(module)
        held = plain(module, "__dict__")
        try:
            value = plain(module, name)
        except AttributeError:
            for registry in ("_modules", "_parameters", "_buffers"):
                if name in held[registry]:
                    active.reads.note(module, name, held[registry][name])
            raise
        if name in held and not (name.startswith("_") and _bookkeeping()):
            active.reads.note(module, name, value)
        return value

    return get_attribute


def random_state() -> tuple[Any, ...]:
    """State of the generators that Python code could draw from."""
    numpy = sys.modules.get("numpy")
    return (
        random.getstate(),
        torch.get_rng_state(),
        numpy.random.get_state() if numpy is not None else None,
    )


def restore_random_state(before: tuple[Any, ...]) -> bool:
    """Put the generators back; True if something had drawn from them."""
    now = random_state()
    if now[0] != before[0]:
        random.setstate(before[0])
    moved = now[0] != before[0] or not torch.equal(now[1], before[1])
    torch.set_rng_state(before[1])
    if before[2] is not None:
        name, keys, *rest = now[2]
        if not ((keys == before[2][1]).all() and (name, *rest) == (before[2][0], *before[2][2:])):
            sys.modules["numpy"].random.set_state(before[2])
            return True
    return moved
