"""The file of a history: written whole or not at all, and read back with every fault named."""

import base64
import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from biofx.errors import ReportError
from biofx.report.history import FACTOR_BINS, FORMAT, KIND, UPDATE_BINS


def write(path: str | Path, text: str) -> None:
    """Write a history as UTF-8; the file appears whole or not at all.

    Raises:
        ReportError: it cannot be written, or its name says that it is a page.
    """
    if not isinstance(path, str | Path):
        raise ReportError(f"expected the path of the file to write, got {type(path).__name__}")
    target = Path(os.path.realpath(path))  # a link stays a link
    if target.suffix.lower() in (".html", ".htm"):
        raise ReportError(
            f"cannot write {path}: a history is JSON; save it as .json and draw the page with "
            "`biofx report`, or write what to_html() returns"
        )
    beside = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        beside.write_text(text, encoding="utf-8")
        beside.replace(target)
    except OSError as error:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)
        raise ReportError(f"cannot write {path}: {error.strerror or error}") from error


def read(path: str | Path) -> dict[str, Any]:
    """The history in a file that `Recorder.save` wrote, and what is missing of it.

    Returns:
        The content of the file. Parts of layers that are damaged are None, and "missing" of the
        layer says which and why.

    Raises:
        ReportError: the file cannot be read, or is not a history.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ReportError(f"{path} is not a history of a run: it is not text") from error
    except OSError as error:
        raise ReportError(f"cannot read {path}: {error.strerror or error}") from error
    if not text.strip():
        raise ReportError(f"{path} is empty: the run that should have written it has not finished")
    try:
        content = json.loads(text, parse_constant=_refuse)
    except RecursionError:
        raise ReportError(f"{path} is not a history of a run") from None
    except ValueError as error:
        raise ReportError(f"{path} is cut short, damaged or not JSON ({error})") from error
    try:
        return checked(content)
    except ReportError as error:
        raise ReportError(f"{path}: {error}") from None


def _refuse(name: str) -> None:
    raise ValueError(f"it holds {name}, which is no number")


def checked(content: Any) -> dict[str, Any]:
    """The content of a history, with damaged parts of layers taken out and named.

    Raises:
        ReportError: it is not a history, or its frame is damaged.
    """
    if not isinstance(content, dict) or content.get("kind") != KIND:
        raise ReportError("this is not a history of a run; write one with biofx.Recorder.save()")
    if content.get("format") != FORMAT:
        raise ReportError(
            f"the history has format {content.get('format')!r}; this biofx reads format {FORMAT}"
        )
    frame = {"steps": list, "layers": list, "tree": dict, "skipped": list, "model": str}
    for name, kind in frame.items():
        if not isinstance(content.get(name), kind):
            raise ReportError(f"the history is damaged: it has no {name!r}")
    steps = content["steps"]
    if not all(type(step) is int for step in steps) or steps != sorted(set(steps)):
        raise ReportError("the history is damaged: its steps do not ascend")
    for layer in content["layers"]:
        if not isinstance(layer, dict) or not all(
            isinstance(layer.get(name), str) for name in ("name", "layer")
        ):
            raise ReportError("the history is damaged: one of its layers has no name")
    content["layers"] = [_mended(layer, len(steps)) for layer in content["layers"]]
    return content


def _mended(layer: dict[str, Any], samples: int) -> dict[str, Any]:
    """A layer whose damaged parts are None, with their names and faults in "missing"."""
    missing: dict[str, str] = {}
    checks: dict[str, Callable[[Any], object]] = {
        "shape": lambda value: [int(size) for size in value],
        "numbers": lambda value: _numbers(value, samples),
        "factors": lambda value: _rows(value, samples, FACTOR_BINS),
        "updates": lambda value: _rows(value, samples, UPDATE_BINS),
        "before": _snapshot,
        "after": _snapshot,
        "synapses": lambda value: _synapses(value, samples),
    }
    mended = dict(layer)
    for name, check in checks.items():
        try:
            check(layer[name])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            mended[name] = None
            missing[name] = "it is not there" if isinstance(error, KeyError) else str(error)
    return {**mended, "missing": missing}


def _numbers(value: dict[str, list[float | None]], samples: int) -> None:
    for name, numbers in value.items():
        _series(numbers, samples, name)


def _series(numbers: list[float | None], samples: int, name: str) -> None:
    if len(numbers) != samples:
        raise ValueError(f"{name} has {len(numbers)} numbers for {samples} samples")
    if not all(number is None or isinstance(number, int | float) for number in numbers):
        raise ValueError(f"{name} holds something that is no number")


def _rows(text: str, samples: int, width: int) -> None:
    length = len(base64.b64decode(text, validate=True))
    if length != samples * width:
        raise ValueError(f"{length} bytes for {samples} samples of {width}")


def _snapshot(value: dict[str, Any]) -> None:
    length = len(base64.b64decode(value["matrix"], validate=True))
    if length != value["rows"] * value["columns"]:
        raise ValueError(f"{length} weights for {value['rows']} × {value['columns']}")
    base64.b64decode(value["histogram"], validate=True)
    for name in ("scale", "low", "high", "step"):
        float(value[name])


def _synapses(value: list[dict[str, Any]], samples: int) -> None:
    for entry in value:
        row, column = entry["place"]
        int(row), int(column), int(entry["born"])
        _series(entry["weight"], samples, "weight")
        _series(entry["factor"], samples, "factor")
        _series(entry["replaced"], len(entry["replaced"]), "replaced")
