"""The forms in which example inputs may be given, and the parameters that take them."""

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from biofx.copying.nested import leaves, own, replaced, written
from biofx.errors import ModelError


@dataclass(frozen=True)
class Arguments:
    """One call of a model: ``model(*args, **kwargs)``."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    def copies(self) -> "Arguments":
        """The same values in tensors of their own: a run may change its inputs in place."""
        args, kwargs = replaced((self.args, dict(self.kwargs)), own)
        return Arguments(args, kwargs)


def arguments_of(example: Any) -> Arguments | None:
    """The call that example inputs stand for; None if none are given.

    Args:
        example: a tensor, a tuple (or list) of positional arguments, a mapping of keyword
            arguments, or a pair (tuple, mapping) of both.

    Raises:
        ModelError: it is or holds an iterator, which could be read once only.
    """
    if example is None:
        return None
    for steps, leaf in leaves(example):
        if isinstance(leaf, Iterator):
            raise ModelError(
                f"example_inputs{written(steps)} is a {type(leaf).__name__}, which gives its "
                "values only once; pass tensors, e.g. of next(iter(loader))"
            )
    if isinstance(example, Mapping):
        return Arguments((), dict(example))
    if (
        isinstance(example, tuple)
        and len(example) == 2
        and isinstance(example[0], tuple | list)
        and isinstance(example[1], Mapping)
    ):
        return Arguments(tuple(example[0]), dict(example[1]))
    if isinstance(example, tuple | list):
        return Arguments(tuple(example), {})
    return Arguments((example,), {})


def signature_of(module: nn.Module, arguments: Arguments | None = None) -> inspect.Signature:
    """The parameters of a module's forward, without ``self``.

    A decorator may show the signature of the function that it wraps (`functools.wraps`) and take
    other arguments: one more, or one less that it gives itself. Where the arguments do not fit what
    is shown, the signature is that of the decorator's own function.
    """
    try:
        shown = inspect.signature(module.forward)
        own = inspect.signature(module.forward, follow_wrapped=False)
    except (TypeError, ValueError):
        variable = inspect.Parameter("args", inspect.Parameter.VAR_POSITIONAL)
        return inspect.Signature([variable])
    if arguments is None or _takes(shown, arguments) or not _takes(own, arguments):
        return shown
    return own


def _takes(signature: inspect.Signature, arguments: Arguments) -> bool:
    try:
        signature.bind(*arguments.args, **arguments.kwargs)
    except TypeError:
        return False
    return True
