"""`--input`: example inputs from shapes, or from a file."""

import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from biofx.capture import Arguments, signature_of
from biofx.cli.errors import CommandError, UsageError

_SIZES = r"\d+(?:\s*[,\s×x]\s*\d+)*\s*,?"
_FORM = re.compile(rf"(?:(?P<name>[^\W\d]\w*)=)?\s*(?P<shape>{_SIZES})?\s*(?::(?P<dtype>\w+))?")


def inputs_of(texts: Sequence[str]) -> Any:
    """Example inputs as `biofx.transform` takes them; None if no text is given.

    Either the path of one file that `torch.save` wrote (a tensor, a tuple of arguments, a dict of
    keyword arguments), or shapes, from which tensors are drawn with a fixed seed: (args, kwargs).

    Raises:
        CommandError: the file cannot be read.
        UsageError: a text is not of the form ``[NAME=]1,3,224,224[:DTYPE]``.
    """
    if not texts:
        return None
    files = [text for text in texts if Path(text).suffix in _SUFFIXES]
    if files:
        if len(texts) > 1:
            raise UsageError(f"--input {files[0]}: a file holds all arguments; give it alone")
        return _load(files[0])
    generator = torch.Generator().manual_seed(0)
    args: list[Tensor] = []
    kwargs: dict[str, Tensor] = {}
    for text in texts:
        name, tensor = _input(text, generator)
        if name is None and kwargs:
            raise UsageError(f"--input {text}: inputs without a name come before those with one")
        if name is None:
            args.append(tensor)
        elif name in kwargs:
            raise UsageError(f"--input {text}: {name} is given twice")
        else:
            kwargs[name] = tensor
    return tuple(args), kwargs


def check_names(model: nn.Module, texts: Sequence[str]) -> None:
    """Refuse shapes that are no arguments of the model's forward.

    Raises:
        UsageError: a text has a name that forward does not take, or there are too few or too many;
            it says which to give.
    """
    if not texts or any(Path(text).suffix in _SUFFIXES for text in texts):
        return
    named = [text.partition("=")[::2] for text in texts if "=" in text]
    names = [given.strip() for given, _ in named]
    unnamed = len(texts) - len(named)
    shaped = Arguments((None,) * unnamed, dict.fromkeys(names))
    signature = signature_of(model, shaped)
    parameters = signature.parameters
    free = [name for name in list(parameters)[unnamed:] if name not in names]
    takes = f"forward({', '.join(parameters)})"
    anything = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    for given, rest in named:
        if anything or given.strip() in parameters:
            continue
        near = difflib.get_close_matches(given.strip(), free, n=1) or free[:1]
        say = f"; say --input {near[0]}={rest}" if near else ""
        raise UsageError(f"--input {given}={rest}: {takes} takes no {given.strip()!r}{say}")
    try:
        signature.bind(*shaped.args, **shaped.kwargs)
    except TypeError as error:
        raise UsageError(
            f"--input: {error}; give one for each argument of {takes}, in order, or by its name: "
            "--input NAME=SHAPE"
        ) from error


_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt")


def _load(path: str) -> Any:
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise CommandError(f"cannot read --input {path}: {error.strerror or error}") from error
    except Exception as error:
        raise CommandError(
            f"--input {path} holds more than tensors in tuples, lists and dicts, or is not a file "
            "of torch.save; biofx loads nothing else, because it could run code"
        ) from error
    if isinstance(found, list):
        found = tuple(found)
    if not isinstance(found, Tensor | tuple | dict):
        raise CommandError(
            f"--input {path} holds a {type(found).__name__}; expected a tensor, a tuple of "
            "arguments or a dict of keyword arguments"
        )
    return found


def _input(text: str, generator: torch.Generator) -> tuple[str | None, Tensor]:
    found = _FORM.fullmatch(text.strip())
    if found is None or not (found["shape"] or found["dtype"]):
        raise UsageError(
            f"--input {text}: expected sizes with commas between them, such as 1,3,224,224, "
            "2,128:int64 or mask=2,128:bool"
        )
    shape = [int(size) for size in re.findall(r"\d+", found["shape"] or "")]
    dtype = getattr(torch, found["dtype"] or "float32", None)
    if not isinstance(dtype, torch.dtype):
        raise UsageError(f"--input {text}: torch has no dtype {found['dtype']!r}")
    return found["name"], _tensor(text, shape, dtype, generator)


def _tensor(text: str, shape: list[int], dtype: torch.dtype, generator: torch.Generator) -> Any:
    try:
        if dtype.is_floating_point or dtype.is_complex:
            wide = torch.complex64 if dtype.is_complex else torch.float32
            return torch.randn(shape, generator=generator, dtype=wide).to(dtype)
        return torch.randint(2, shape, generator=generator).to(dtype)
    except (RuntimeError, TypeError, OverflowError) as error:
        raise UsageError(f"--input {text}: {str(error).splitlines()[0]}") from error
