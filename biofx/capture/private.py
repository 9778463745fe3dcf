"""Every name of PyTorch's that is not public and that capturing cannot do without.

Each has a fallback: where a future version of PyTorch lacks it, capturing goes on with less.
"""

import contextlib
import inspect
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.utils.checkpoint
from torch.utils._python_dispatch import TorchDispatchMode

_peek = getattr(getattr(torch._C, "_functorch", None), "peek_interpreter_stack", lambda: None)


def inside_transform() -> bool:
    """Whether `torch.vmap`, `torch.func.grad` or the like is running."""
    return _peek() is not None


# A context in which calls of torch's API are not shown to any mode: looking at a tensor is no call.
without_functions: Callable[[], Any] = getattr(
    torch._C, "DisableTorchFunction", contextlib.nullcontext
)


def dispatch_seen(see: Callable[..., Any]) -> Any:
    """A mode in which ``see(function, args, kwargs)`` makes every operation of PyTorch."""

    class Mode(TorchDispatchMode):
        @classmethod
        def _should_skip_dynamo(cls) -> bool:
            # A compiler that is not loaded need not be kept out, and to load it takes seconds.
            return "torch._dynamo" in sys.modules

        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
        ) -> Any:
            return see(func, args, kwargs or {})

    return Mode()  # type: ignore[no-untyped-call]


class AutogradCall:
    """``Function.apply`` of one autograd function, as a target that a graph can name."""

    def __init__(self, function: type[torch.autograd.Function]) -> None:
        self.function = function
        self.__name__ = function.__name__
        self.__qualname__ = f"{function.__qualname__}.apply"
        self.__module__ = function.__module__

    def __call__(self, *args: Any) -> Any:
        return self.function.apply(*args)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, AutogradCall) and other.function is self.function

    def __hash__(self) -> int:
        return hash(self.function)


# What `checkpoint(use_reentrant=True)` of torch runs a function in, without gradients,
# to run it again in the backward pass: `apply(function, preserve_rng_state, *args)`.
_CHECKPOINT = getattr(torch.utils.checkpoint, "CheckpointFunction", None)
# What calls a module's backward hooks: its results are its arguments.
_CALLS_HOOKS = getattr(getattr(torch.nn.modules, "_functions", None), "BackwardHookFunction", None)


@contextlib.contextmanager
def autograd_functions_seen(
    see: Callable[..., Any], passes_on: Callable[..., Any]
) -> Iterator[None]:
    """Let ``see(function, call, args, kwargs)`` make each call of a user's autograd function.

    `TorchFunctionMode` does not see these. Functions of PyTorch's own run as they are, but for two.
    Checkpointing runs the user's function without gradients, which its backward brings back: here
    that function is called itself, so that what is seen has its gradients. Before and after a
    module with backward hooks is one whose results are its arguments: ``passes_on(call, args)``
    makes these calls. Where `apply` cannot be replaced, the operations inside are seen one by one.

    Code may have taken hold of `Function.apply` before (``spike = Spike.apply``). Where that is
    written in Python (until PyTorch 2.13) it calls the `apply` of its base, which is replaced.
    """
    owner: Any = torch.autograd.Function
    if isinstance(vars(owner).get("apply"), classmethod):
        owner = owner.__mro__[1]
    try:
        original = inspect.getattr_static(owner, "apply")
        bound = original.__get__
    except AttributeError:
        yield
        return

    def apply(cls: Any, *args: Any, **kwargs: Any) -> Any:
        call = bound(None, cls)
        if cls is _CHECKPOINT:
            function, _, *given = args
            return function(*given)
        if cls is _CALLS_HOOKS:
            return passes_on(call, args)
        if cls.__module__.partition(".")[0] == "torch":
            return call(*args, **kwargs)
        return see(cls, call, args, kwargs)

    with _instead(owner, "apply", classmethod(apply)):
        yield


def autograd_function_of(tensor: torch.Tensor) -> str | None:
    """Name of the user's autograd function that made a tensor; None if none did."""
    function = getattr(tensor.grad_fn, "_forward_cls", None)
    if function is None or function.__module__.partition(".")[0] == "torch":
        return None
    return str(function.__name__)


@contextlib.contextmanager
def casts_seen(see: Callable[..., Any]) -> Iterator[None]:
    """Let ``see(call, tensor, kind)`` make each call of `Tensor.as_subclass`.

    PyTorch shows it to no mode. Where it cannot be replaced, its results are tensors of nowhere.
    """
    original = getattr(torch.Tensor, "as_subclass", None)

    def as_subclass(tensor: Any, cls: Any) -> Any:
        return see(original, tensor, cls)

    with _instead(torch.Tensor, "as_subclass", as_subclass):
        yield


def conditions_taken() -> Any:
    """A context in which `torch.cond` calls one of its functions, as ``if`` would.

    It compiles both otherwise, and what records them with it.
    """

    def cond(pred: Any, true_fn: Any, false_fn: Any, operands: Any = ()) -> Any:
        return (true_fn if pred else false_fn)(*operands)

    return _instead(torch, "cond", cond)


@contextlib.contextmanager
def _instead(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Give a class or module another attribute, where that can be done; then what it had before."""
    before = vars(owner).get(name)
    try:
        setattr(owner, name, value)
    except (AttributeError, TypeError):
        yield
        return
    try:
        yield
    finally:
        if before is None:
            delattr(owner, name)
        else:
            setattr(owner, name, before)


def memory_of(value: Any) -> int | None:
    """Which memory a tensor has, a number that its views have too; None if that is not known."""
    try:
        return getattr(value.untyped_storage(), "_cdata", None)
    except (AttributeError, NotImplementedError, RuntimeError):  # no tensor; sparse, or wrapped
        return None
