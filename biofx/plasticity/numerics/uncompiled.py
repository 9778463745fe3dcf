"""What `torch.compile` is told, without importing the compiler before it is used."""

import functools
import sys
from collections.abc import Callable
from types import CodeType
from typing import Any, TypeVar

import torch

# Code of the calls that go on to a function made `uncompiled`.
WRAPPERS: set[CodeType] = set()
Function = TypeVar("Function", bound=Callable[..., Any])


def uncompiled(function: Function) -> Function:
    """As `torch.compiler.disable`, whose import of the compiler takes longer than that of torch.

    Where the compiler is not at work, a call goes straight to the function.
    """
    disabled: list[Callable[..., Any]] = []

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        if "torch._dynamo" not in sys.modules or _callback()() is None:
            return function(*args, **kwargs)  # no frames are being compiled
        if not disabled:
            disabled.append(torch.compiler.disable(function))
        return disabled[0](*args, **kwargs)

    call: Any = wrapper
    WRAPPERS.add(call.__code__)
    # What the compiler looks for at functions that it meets.
    call._torchdynamo_disable = True
    return call  # type: ignore[no-any-return]


def compile_anew() -> None:
    """Let `torch.compile` look again at what it has compiled: it sees no hooks that came later."""
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()


@functools.cache
def _callback() -> Callable[[], object]:
    """Tells what compiles frames; looked for once, for this is asked at every step."""
    try:
        from torch._C._dynamo.eval_frame import get_eval_frame_callback
    except ImportError:  # a private name: without it, be careful
        return lambda: True
    return get_eval_frame_callback
