"""Export: a transformed model leaves as a file that needs no biofx."""

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from biofx.capture.signature import split_inputs
from biofx.errors import ExportError
from biofx.export import pt2, torchscript
from biofx.export.plain import Arguments
from biofx.passes.fold import FoldReport
from biofx.transform import info

__all__ = ["FORMATS", "Exported", "FoldReport", "export"]

Writer = Callable[[nn.Module, Path, Arguments | None, bool], FoldReport | None]

# format -> writer(model, file to write, example arguments, fold)
FORMATS: dict[str, Writer] = {"torchscript": torchscript.write, "pt2": pt2.write}


@dataclass(frozen=True)
class Exported:
    """What `export` wrote.

    Attributes:
        path: the file.
        format: the format it is in.
        fold: what was folded, what was not and why; None if folding was not asked for.
    """

    path: Path
    format: str
    fold: FoldReport | None


def export(
    bio: nn.Module,
    path: str | os.PathLike[str],
    format: str = "torchscript",
    example_inputs: Any = None,
    fold: bool = True,
) -> Exported:
    """Write a transformed model to a file that loads and runs where biofx is not installed.

    The file is for inference: it computes what the model computes in evaluation mode, whatever
    mode the model is in, and carries no plasticity state. It takes the arguments that the model
    was captured for (see `biofx.transform`), and raises on others. The model itself is not
    changed. The file appears complete or not at all.

    Args:
        bio: a model made by `biofx.transform` (wrapped or not).
        path: file to write; replaced if it exists.
        format: "torchscript" (load it with `torch.jit.load`), or "pt2" (`torch.export.load`), which
            needs `example_inputs`.
        example_inputs: as for `biofx.transform`. With it, the file is loaded, run and compared
            with the model before it gets its name, and more can be folded: the number of
            dimensions of every intermediate value is known.
        fold: simplify split layers: sums of weights are computed now, not at every call, and
            layers that follow take each repeated value once. Exact up to rounding (about 1e-6
            relative in float32); where nothing can be folded, exact to the bit.
            ``fold=False`` is always exact to the bit.

    Returns:
        The path, and the `FoldReport`.

    Raises:
        ExportError: the format is unknown, a module cannot be expressed in it (the message names
            the module), or the file would not compute the same.
        ModelError: the model was not made by `biofx.transform`.
    """
    if format not in FORMATS:
        raise ExportError(f"unknown format {format!r}; available: {', '.join(FORMATS)}")
    if not isinstance(path, str | os.PathLike):
        raise ExportError(f"expected the path of the file to write, got {type(path).__name__}")
    arguments = split_inputs(example_inputs)
    target = Path(path).resolve()  # a link keeps pointing to the file
    model = info(bio).model
    _check(model, target)
    # torch.export loads a file by its suffix first
    handle, name = tempfile.mkstemp(
        prefix=f".{target.name}.", suffix=f".{format}", dir=target.parent
    )
    os.close(handle)
    beside = Path(name)
    try:
        report = FORMATS[format](model, beside, arguments, fold)
        beside.chmod(0o666 & ~_umask())  # mkstemp gives 0600
        beside.replace(target)
    finally:
        beside.unlink(missing_ok=True)
    return Exported(Path(path), format, report)


def _check(model: nn.Module, target: Path) -> None:
    if target.is_dir() or not target.parent.is_dir():
        what = "is a directory" if target.is_dir() else "lies in a directory that does not exist"
        raise ExportError(f"cannot write {target}: it {what}")
    if target.exists() and not target.is_file():
        raise ExportError(f"cannot write {target}: it is not a regular file")
    for name, parameter in model.named_parameters():
        if parameter.is_meta:
            raise ExportError(f"parameter {name} has no values (it is on the meta device)")
        if type(parameter.data) is not nn.Parameter.__mro__[1]:
            raise ExportError(
                f"parameter {name} is a {type(parameter.data).__name__}; gather the model's full "
                "tensors on one process, then export"
            )


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
