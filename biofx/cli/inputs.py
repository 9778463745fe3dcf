"""`--input`: example inputs from shapes."""

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from biofx.cli.errors import UsageError

_SIZES = r"\d+(?:\s*[,\s×x]\s*\d+)*\s*,?"
_FORM = re.compile(rf"(?:(?P<name>[^\W\d]\w*)=)?\s*(?P<shape>{_SIZES})?\s*(?::(?P<dtype>\w+))?")


def inputs_of(texts: Sequence[str]) -> tuple[tuple[Tensor, ...], dict[str, Tensor]] | None:
    """(args, kwargs) made of the shapes given, drawn from a fixed seed; None if there are none.

    Raises:
        UsageError: a text is not of the form ``[NAME=]1,3,224,224[:DTYPE]``.
    """
    if not texts:
        return None
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
