"""`export`: which format, which of the ways to write it, compared with the model."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from biofx.capture import Arguments, arguments_of, capture
from biofx.errors import ExportError, ModelError
from biofx.export import onnx, pt2, torchscript
from biofx.export.attempt import Attempt, DataDependent, Impossible
from biofx.export.check import Expected, catches_failures
from biofx.export.files import destination, write
from biofx.export.folding import FoldReport
from biofx.export.programs import Program, programs
from biofx.synapses import unwrap

Format = Literal["torchscript", "pt2", "onnx"]
FORMATS: Mapping[str, Any] = {"torchscript": torchscript, "pt2": pt2, "onnx": onnx}
SUFFIXES: Mapping[str, str] = {".pt": "torchscript", ".pt2": "pt2", ".onnx": "onnx"}


@dataclass(frozen=True)
class Exported:
    """What `export` wrote.

    Attributes:
        path: the file.
        format: the format it is in.
        how: how it was made, e.g. "scripted", "traced", "exported".
        fold: what was folded, what was not and why; None if folding was not asked for.
        difference: largest difference from the model's results on the example inputs, relative to
            the largest value of each; None if they were not compared.
        notes: what whoever uses the file should know, one line each.
    """

    path: Path
    format: str
    how: str
    fold: FoldReport | None
    difference: float | None
    notes: tuple[str, ...] = ()


def export(
    bio: nn.Module,
    path: str | os.PathLike[str],
    format: Format | None = None,
    example_inputs: Any = None,
    fold: bool = True,
) -> Exported:
    """Write a transformed model to a file that loads and runs where biofx is not installed.

    The file is for inference: it computes what the model computes in evaluation mode, whatever
    mode the model is in, and carries no plasticity state. The model itself is not changed; it is
    captured anew, as it is now. The file appears complete or not at all.

    Args:
        bio: a model made by `biofx.transform` (wrapped or not).
        path: file to write; replaced if it exists. Its suffix tells the format: ``.pt`` is
            TorchScript (load it with `torch.jit.load`), ``.pt2`` an archive of `torch.export`
            (`torch.export.load`), ``.onnx`` ONNX (onnxruntime and many others).
        format: "torchscript", "pt2" or "onnx"; needed where the suffix does not tell it.
        example_inputs: as for `biofx.transform`. With it, the file is loaded, run and compared
            with the model before it gets its name. "pt2" and "onnx" need it. TorchScript of a
            model that can be neither traced symbolically nor compiled needs it too: the run on
            it is traced, and a branch that it takes on data is taken ever after (see `notes`).
        fold: simplify split layers: sums of weights are computed now, not at every call, and
            layers that follow take each repeated value once. Exact up to rounding (about 1e-6
            relative in float32).

    Returns:
        What was written, and how.

    Raises:
        ExportError: the format is unknown or contradicts the suffix, the model cannot be
            expressed in it, the file would not compute the same, or it cannot be written.
        ModelError: the model was not made by `biofx.transform`.
    """
    target = destination(path)
    chosen = _format(target, format)
    arguments = arguments_of(example_inputs)
    model = unwrap(bio)
    _check_values(model)
    if arguments is None and not FORMATS[chosen].TAKES_NO_INPUTS:
        raise ExportError(f"format {chosen!r} needs example_inputs (on the command line: --input)")
    expected = None if arguments is None else Expected(model, arguments)
    made = _make(model, chosen, arguments, expected, fold)
    write(target, made.data)
    notes = tuple(made.attempt.notes)
    if expected is not None:
        folded = made.program.folded
        notes += tuple(expected.elsewhere(made.attempt, made.data, folded=folded))
    if made.difference is None:
        why = "no example inputs were given" if arguments is None else made.reason
        notes = (*notes, f"not compared with the model: {why}")
    return Exported(
        Path(path), chosen, made.attempt.how, made.program.report, made.difference, notes
    )


def _format(path: Path, format: Any) -> str:
    told = SUFFIXES.get(path.suffix.lower())
    if format is None:
        if told is None:
            known = ", ".join(f"{suffix} ({name})" for suffix, name in SUFFIXES.items())
            raise ExportError(
                f"the name {path.name!r} does not tell the format; end it in {known}, or give "
                "format"
            )
        return told
    if not isinstance(format, str):
        raise ExportError(
            f"format must be one of {', '.join(FORMATS)}, got {type(format).__name__}; name what "
            "is no format: export(bio, path, example_inputs=...)"
        )
    if format not in FORMATS:
        raise ExportError(f"unknown format {format!r}; available: {', '.join(FORMATS)}")
    if told is not None and told != format:
        raise ExportError(f"the suffix of {path.name!r} means format {told!r}, not {format!r}")
    return format


def _check_values(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        if parameter.is_meta:
            raise ExportError(f"parameter {name} has no values (it is on the meta device)")
        if type(parameter.data) is not Tensor:
            raise ExportError(
                f"parameter {name} is a {type(parameter.data).__name__}; gather the model's full "
                "tensors on one process, then export"
            )


@dataclass(frozen=True)
class _Made:
    program: Program
    attempt: Attempt
    data: Any
    difference: float | None
    reason: str = ""


def _make(
    model: nn.Module,
    format: str,
    arguments: Arguments | None,
    expected: Expected | None,
    fold: bool,
) -> _Made:
    """The file of the first way that works; one that gives the same bits is preferred."""
    problems: dict[str, str] = {}  # what was said: the first way that said it
    close: _Made | None = None
    on_data = False
    writer = FORMATS[format]
    for program, attempt in (
        (one, attempt)
        for one in programs(model, arguments, fold)
        for attempt in writer.attempts(one.model, arguments)
        if one.branches in (None, attempt.branches)
    ):
        try:
            data = attempt.make()
            if expected is None:
                return _Made(program, attempt, data, None)
            found = expected.compare(attempt, data, folded=program.folded)
        except Impossible as error:
            problems.setdefault(str(error), attempt.how)
            on_data = on_data or isinstance(error, DataDependent)
            continue
        made = _Made(program, attempt, data, found.difference, found.reason)
        if program.folded or attempt.loose or not found.difference:
            return made
        close = close or made
    if close is not None:
        return close
    said = ". ".join(f"{how.capitalize()}: {what}" for what, how in problems.items())
    advice = writer.ADVICE_NO_INPUTS if arguments is None else writer.ADVICE
    if arguments is not None and catches_failures(model, arguments):
        advice = "An operation of it fails and its code catches that, which no file can do"
    elif arguments is not None and on_data:
        advice = _advice_on_data(model, arguments)
    raise ExportError(f"{writer.NAME} cannot express the model. {said}. {advice}")


def _advice_on_data(model: nn.Module, arguments: Arguments) -> str:
    """What to do about code that decides by data, with its lines."""
    try:
        assumed = capture(model, arguments, training=False).assumptions
    except ModelError:
        assumed = ()
    lines = ", ".join(dict.fromkeys(a.where for a in assumed if a.kind == "data" and a.where))
    return (
        f"Its code decides by a value of the data{lines and f' ({lines})'}: compute both ways and "
        "choose with torch.where, or write TorchScript (.pt, with example inputs: --input), which "
        "keeps the branch or takes the one that they take"
    )
