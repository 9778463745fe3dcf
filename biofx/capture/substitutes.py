"""Stand-ins for what a forward may use but a graph cannot hold, for the time of a capture.

`type(x)` and `id(x)` cannot be taught about proxies, and the time of day would become a constant.
Where the code of a forward mentions one of these, its global variable is replaced while the forward
is traced: by a function that refuses when it matters, or that answers as it would at run time.
"""

import builtins
import os
import random
import sys
import time
import uuid
import warnings
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import torch
from torch import fx
from torch.fx import _symbolic_trace

# (recording, what is replaced) -> what replaces it
Substitute = Callable[[Any, Any], Any]

_type = type


def has_proxy(values: Any) -> bool:
    """Whether one of these values is an intermediate value of a trace."""
    return any(issubclass(_type(value), fx.Proxy) for value in values)


def _refusing(what: str, *, proxies_only: bool = False, classes_only: bool = False) -> Substitute:
    def substitute(recording: Any, plain: Any) -> Any:
        def refuse(*args: Any, **kwargs: Any) -> Any:
            tracer = recording.tracer()
            minds = not proxies_only or has_proxy(args)
            if classes_only:
                minds = isinstance(args[0], _type | ModuleType)
            if tracer is not None and minds:
                raise tracer.refuse(what)
            return plain(*args, **kwargs)

        return refuse

    return substitute


def _type_substitute(recording: Any, plain: Any) -> Any:
    class Meta(_type):
        def __call__(cls, *args: Any, **kwargs: Any) -> Any:
            tracer = recording.tracer()
            if tracer is not None and len(args) == 1 and has_proxy(args):
                raise tracer.refuse("asks for the type of an intermediate value")
            return _type(*args, **kwargs)

        def __instancecheck__(cls, value: Any) -> bool:
            return isinstance(value, _type)

        def __subclasscheck__(cls, value: Any) -> bool:
            return issubclass(value, _type)

    return Meta("type", (_type,), {})


def _environment(recording: Any, plain: Any) -> Any:
    class Environment:
        def __getattribute__(self, name: str) -> Any:
            tracer = recording.tracer()
            if tracer is not None:
                raise tracer.refuse("reads the environment")
            return getattr(plain, name)

        def __getitem__(self, name: str) -> Any:
            return self.get(name)

        def __contains__(self, name: str) -> bool:
            return bool(self.get(name))

    return Environment()


def _at_run_time(value: Any) -> Substitute:
    """What a forward sees when it is not being traced."""
    return lambda recording, plain: value


class _NotTraced:
    """No intermediate value is one at run time."""


def _recorded(recording: Any, plain: Any) -> Any:
    """A function that a graph calls as it is."""

    def record(*args: Any, **kwargs: Any) -> Any:
        tracer = recording.tracer()
        if tracer is not None and has_proxy(args):
            proxy = tracer.create_proxy("call_function", plain, args, kwargs)
            proxy.kind = proxy.node.meta["biofx_kind"] = "tensor"
            return proxy
        return plain(*args, **kwargs)

    return record


def substitute_for(value: Any) -> Substitute | None:
    """What to put in the place of a value that a forward names, if anything."""
    known = _SUBSTITUTES.get(id(value))
    if known is not None:
        return known
    if "einops" in sys.modules and any(value is function for function in _einops()):
        return _recorded
    return None


def _einops() -> Iterator[Any]:
    for name in ("rearrange", "reduce", "repeat"):
        yield getattr(sys.modules["einops"], name, None)


_CLOCK = _refusing("reads the clock")
_SUBSTITUTES: dict[int, Substitute] = {
    id(type): _type_substitute,
    **{
        id(function): _refusing(
            f"calls {function.__name__}() on an intermediate value", proxies_only=True
        )
        for function in (id, callable, repr)
    },
    **{
        id(function): _refusing(f"calls {function.__name__}()")
        for function in (
            print, open, input, exec, eval, globals, vars, dir, os.getenv, os.urandom, uuid.uuid4,
            delattr, warnings.warn, builtins.__import__, random.SystemRandom,
            torch.get_default_dtype, torch.get_default_device, torch.get_num_threads,
            torch.are_deterministic_algorithms_enabled, torch.get_float32_matmul_precision,
            torch.is_deterministic_algorithms_warn_only_enabled,
        )
    },
    **{
        id(clock): _CLOCK
        for clock in (
            time.time, time.time_ns, time.perf_counter, time.perf_counter_ns, time.monotonic,
            time.monotonic_ns, time.process_time, time.process_time_ns, time.thread_time,
        )
    },
    id(setattr): _refusing("calls setattr() on a class", classes_only=True),
    id(os.environ): _environment,
    id(fx.Proxy): _at_run_time(_NotTraced),
    id(_symbolic_trace.is_fx_tracing): _at_run_time(lambda: False),
    id(_symbolic_trace.is_fx_symbolic_tracing): _at_run_time(lambda: False),
}  # fmt: skip
