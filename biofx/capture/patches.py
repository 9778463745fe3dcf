"""What Python does behind a tracer's back, made visible while a model is traced.

Everything here is patched for the time of one capture and put back after it: the training flag
becomes readable as a node, tensor factories are recorded instead of run, and whatever a graph
cannot hold (gradient modes, autocast, checkpointing, custom autograd functions, attributes that a
forward assigns) is refused, so that the module becomes opaque instead of wrong.
"""

import contextlib
import importlib._bootstrap
import logging
import math
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

import torch
from torch import fx, nn
from torch.fx import _symbolic_trace
from torch.overrides import TorchFunctionMode
from torch.utils._device import DeviceContext
from torch.utils.hooks import RemovableHandle

from biofx.capture import effects
from biofx.capture.recording import Recording, refuser, user_code
from biofx.capture.world import Missing

_LOCK = threading.RLock()
_RUNNING: list[Recording] = []  # the captures that run, under the lock

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
    "get_default_dtype", "get_default_device", "get_num_threads", "get_float32_matmul_precision",
    "are_deterministic_algorithms_enabled", "is_deterministic_algorithms_warn_only_enabled",
)  # fmt: skip
_LOGGING = ("debug", "info", "warning", "error", "exception", "critical", "log")
# Where nn.Module and FX themselves look at a module's registries and hooks.
_BOOKKEEPERS = ("torch.nn.modules.module", "torch.fx._symbolic_trace", "torch.fx.proxy")
_CONTEXTS: tuple[tuple[Any, str], ...] = (
    (torch.no_grad, "__enter__"),
    (torch.enable_grad, "__enter__"),
    (torch.set_grad_enabled, "__init__"),
    (torch.inference_mode, "__enter__"),
    (torch.autocast, "__enter__"),
    (torch.autograd.graph.saved_tensors_hooks, "__enter__"),
    (TorchFunctionMode, "__enter__"),
    (DeviceContext, "__init__"),
)


@contextlib.contextmanager
def recording(session: Any) -> Iterator[None]:
    """Patch torch for the time of one capture. One capture at a time, whatever the threads."""
    with _LOCK, contextlib.ExitStack() as undo:
        active = Recording(session, undo)
        session.recording = active
        tracer, patch = active.tracer, active.patch
        names = vars(torch)
        active.patch_names(names, {
            **{n: _factory(names[n], tracer) for n in _FACTORIES if n in names},
            **{n: _record_if_proxied(names[n], tracer) for n in _RECORDED},
            **{n: refuser(names[n], tracer, f"reads torch.{n}()")
               for n in _MODES_READ if n in names},
        })  # fmt: skip
        _RUNNING.append(active)
        undo.callback(_RUNNING.pop)
        for module in effects.FUNCTIONS.keys() & sys.modules.keys():
            refusals = _refusals(module)
            active.patch_names(vars(sys.modules[module]), refusals.stand_ins)
            active.refused.update(refusals.of)
        for name in _LOGGING:
            refuse = refuser(getattr(logging.Logger, name), tracer, "writes a log")
            patch(logging.Logger, name, refuse)
        for owner_class, method in _CONTEXTS:
            what = f"enters torch.{owner_class.__name__}"
            entered = refuser(vars(owner_class)[method], tracer, what, by_torch_too=True)
            patch(owner_class, method, entered)
        removed = refuser(RemovableHandle.remove, tracer, "removes a hook", by_torch_too=True)
        patch(RemovableHandle, "remove", removed)
        apply = vars(torch.autograd.Function)["apply"].__func__
        what = "calls a custom autograd function"
        refuse = refuser(apply, tracer, what, by_torch_too=True)
        patch(torch.autograd.Function, "apply", classmethod(refuse))
        for method in ("parameters", "named_parameters", "buffers", "named_buffers"):
            patch(nn.Module, method, _recording_tensors(method, tracer))
        patch(nn.Module, "__setattr__", _refusing_setattr(tracer))
        patch(nn.Module, "__getattr__", _recording_getattr(tracer))
        patch(nn.Module, "__call__", _recording_call(tracer))
        patch(_symbolic_trace, "_is_fx_tracing_flag", True)
        # functions that users (fx.wrap) or FX itself (math) want recorded as they are
        patcher = undo.enter_context(_symbolic_trace._new_patcher())
        wrapped = fx.Tracer()._autowrap_function_ids
        _symbolic_trace._patch_wrapped_functions(patcher)
        _symbolic_trace._autowrap_check(patcher, vars(math), wrapped)
        session.autowrap = partial(_symbolic_trace._autowrap_check, patcher, function_ids=wrapped)
        patch(importlib._bootstrap, "_find_and_load", _importing(active))
        patch(nn.Module, "__getattribute__", _noting_getattribute(tracer))
        yield


def _factory(function: Callable[..., Any], tracer: Callable[[], Any]) -> Callable[..., Any]:
    def make(*args: Any, **kwargs: Any) -> Any:
        active = tracer()
        if active is None or not user_code():
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


@dataclass
class _Refusals:
    """What stands for functions of one Python module that a forward must not call.

    Attributes:
        stand_ins: by the names of the functions.
        of: (what it does, what stands for it) by the id of the function.
    """

    stand_ins: dict[str, Any] = field(default_factory=dict)
    of: dict[int, tuple[str, Any]] = field(default_factory=dict)


@cache
def _refusals(module: str) -> _Refusals:
    """Made once: to make them anew for each capture would be a tenth of its time."""
    refusals = _Refusals()
    for name, function in effects.functions(module):
        what = f"calls {name}()"
        refuse = refuser(function, _running_tracer, what, by_torch_too=True)
        refusals.stand_ins[name] = refuse
        refusals.of[id(function)] = what, refuse
    return refusals


def _running_tracer() -> Any:
    # other threads ask, too, while a capture ends
    return next((recording.tracer() for recording in reversed(_RUNNING)), None)


def _recording_getattr(tracer: Callable[[], Any]) -> Callable[..., Any]:
    plain = nn.Module.__getattr__

    def get_attribute(module: nn.Module, name: str) -> Any:
        value = plain(module, name)
        active = tracer()
        if active is None:
            return value
        return active.read(module, name, value)

    return get_attribute


def _recording_call(tracer: Callable[[], Any]) -> Callable[..., Any]:
    plain = nn.Module.__call__

    def call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        active = tracer()
        if active is None:
            return plain(module, *args, **kwargs)
        return active.call_module(module, plain, args, kwargs)

    return call


def _refusing_setattr(tracer: Callable[[], Any]) -> Callable[..., None]:
    plain = nn.Module.__setattr__

    def set_attribute(module: nn.Module, name: str, value: Any) -> None:
        active = tracer()
        if active is not None:
            raise active.refuse(f"assigns its attribute {name!r}")
        plain(module, name, value)

    return set_attribute


def _recording_tensors(method: str, tracer: Callable[[], Any]) -> Callable[..., Any]:
    """`parameters()` and its kin, giving proxies: a dtype read from one must not be baked in."""
    plain = getattr(nn.Module, method)

    def tensors(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        active = tracer()
        if active is None or not user_code():
            return plain(module, *args, **kwargs)
        items = list(plain(module, *args, **kwargs))
        active.reads.rest_on_tensors(module)
        if method.startswith("named"):
            return iter([(name, active.tensor(value)) for name, value in items])
        return iter([active.tensor(value) for value in items])

    return tensors


def _noting_getattribute(tracer: Callable[[], Any]) -> Callable[..., Any]:
    plain = object.__getattribute__

    def get_attribute(module: nn.Module, name: str) -> Any:
        active = tracer()
        if active is None:
            return plain(module, name)
        reader = str(sys._getframe(1).f_globals.get("__name__", ""))
        if reader.startswith("biofx.") or (name.startswith("_") and reader in _BOOKKEEPERS):
            return plain(module, name)
        by_user = not reader.startswith("torch.")
        held = plain(module, "__dict__")
        if name in held:
            value = held[name]
            if name == "training" and by_user:
                return active.training_flag(module)
            active.reads.note(module, name, value)
            return active.held(module, name, value) if by_user else value
        if name == "__dict__" and by_user:
            cached = reader == "functools"
            raise active.refuse(f"reads {'a cached property' if cached else 'its __dict__'}")
        try:
            value = plain(module, name)
        except AttributeError:
            value = next((held[r][name] for r in effects.REGISTRIES if name in held[r]), Missing)
            active.reads.note(module, name, value)
            raise
        if name in effects.CHANGES and effects.is_of_torch(value):
            raise active.refuse(f"calls {name}() of a module")
        if by_user and not name.startswith("__"):
            active.reads.note_class(module, name, value)
        return value

    return get_attribute


def _importing(recording: Recording) -> Callable[..., Any]:
    """Importing a module for the first time: what it keeps of torch outlives the capture."""
    plain = importlib._bootstrap._find_and_load  # type: ignore[attr-defined]

    def find_and_load(*args: Any) -> Any:
        if threading.get_ident() != recording.owner:
            return plain(*args)
        with recording.paused():
            return plain(*args)

    return find_and_load
