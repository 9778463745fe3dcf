"""`--weights`: state dicts from files, without running code in them."""

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from biofx.cli.errors import CommandError, one_line
from biofx.cli.paths import checked_path

_NESTED = ("state_dict", "model_state_dict", "model")
_PROGRAMS = {"constants.pkl": "TorchScript", "archive_format": "torch.export"}
_PREFIXES = ("module.", "_orig_mod.")


def load_weights(model: nn.Module, path: str) -> str | None:
    """Load a state dict into a model; all keys and shapes must fit.

    Returns:
        The name of the entry of a checkpoint that was taken; None if the file is a state dict.

    Raises:
        CommandError: the file cannot be read, holds several state dicts, or does not fit the model.
    """
    state, entry = _plain(_read(path), path)
    for prefix in _PREFIXES:  # of DistributedDataParallel and torch.compile
        if state and all(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    _check_values(state, model, path)
    try:
        result = model.load_state_dict(state, strict=False)
    except RuntimeError as error:
        # "Error(s) in loading …:\n\tsize mismatch for a.weight: copying a param …\n\t…"
        lines = [line.strip().rstrip(".") for line in str(error).splitlines()[1:]]
        more = f" (and {len(lines) - 1} more)" if len(lines) > 1 else ""
        text = (lines[0] if lines else str(error)) + more
        raise CommandError(f"{path} does not fit the model: {text}") from error
    if result.missing_keys or result.unexpected_keys:
        problems = [
            _some("lacks", result.missing_keys),
            _some("also has", result.unexpected_keys),
        ]
        text = "; it ".join(filter(None, problems))
        raise CommandError(f"{path} does not fit the model: it {text}")
    return entry


def _read(path: str) -> Any:
    file = checked_path(path, "read the weights")
    if not file.is_file():
        what = "is a directory" if file.is_dir() else "does not exist"
        raise CommandError(f"cannot read the weights: {path} {what}")
    if file.suffix == ".safetensors":
        try:
            from safetensors.torch import load_file
        except ImportError:
            raise CommandError(
                f"{path} needs the package safetensors: pip install 'biofx[weights]'"
            ) from None
        try:
            return load_file(file)
        except Exception as error:
            raise CommandError(f"cannot read the weights {path}: {one_line(error)}") from error
    program = _program(file)
    if program:
        raise CommandError(
            f"{path} is a program of {program}, not a state dict; load it in Python, and "
            "torch.save its state_dict()"
        )
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        said = str(error)
        if "Unsupported global" in said or "Unsupported class" in said or "allowed global" in said:
            raise CommandError(
                f"{path} holds more than tensors, which biofx does not load because it could run "
                "code; save the model's state_dict() instead"
            ) from error
        cut_off = isinstance(error, RuntimeError | OSError)
        why = one_line(error) if cut_off else "it is no checkpoint that torch.save wrote"
        raise CommandError(f"cannot read the weights {path}: {why}") from error


def _program(file: Path) -> str:
    """What wrote a file that holds a whole program; empty if it holds none."""
    try:
        with zipfile.ZipFile(file) as archive:
            names = {Path(name).name for name in archive.namelist()}
    except (OSError, zipfile.BadZipFile):
        return ""
    return next((writer for name, writer in _PROGRAMS.items() if name in names), "")


def _plain(state: Any, path: str) -> tuple[dict[str, Tensor], str | None]:
    """The state dict itself, and its name where a checkpoint holds it beside other things."""
    entry = None
    if isinstance(state, Mapping):
        found = [key for key in _NESTED if isinstance(state.get(key), Mapping)]
        if len(found) > 1:
            raise CommandError(
                f"{path} holds several state dicts ({', '.join(found)}); torch.save the one that "
                "you mean alone"
            )
        if found:
            entry = found[0]
            state = state[entry]
    if not isinstance(state, Mapping) or not all(isinstance(key, str) for key in state):
        raise CommandError(f"{path} holds a {type(state).__name__}, not a state dict")
    return dict(state), entry


def _check_values(state: Mapping[str, Any], model: nn.Module, path: str) -> None:
    """Loading converts types, and takes whatever numbers there are.

    Raises:
        CommandError: a value is no tensor, is of another sort than the model's, or not finite.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name, own in model.state_dict(keep_vars=True).items():
        value = state.get(name)
        if name not in state or not isinstance(own, Tensor):
            continue
        problem = _problem(value, own, finite=name in parameters)
        if problem:
            raise CommandError(f"{path} does not fit the model: {name} {problem}")


def _problem(value: Any, own: Tensor, *, finite: bool) -> str:
    """What is wrong with a value; empty if it can stand where `own` does.

    A buffer may hold infinities, as masks of attention do.
    """
    if not isinstance(value, Tensor):
        return f"is a {type(value).__name__}, not a tensor"
    if value.is_meta or value.layout != torch.strided:
        return f"is {'empty (meta device)' if value.is_meta else value.layout}, not a plain tensor"
    if _sort(value.dtype) != _sort(own.dtype):
        return f"holds {value.dtype}, the model {own.dtype}"
    if not (value.is_floating_point() or value.is_complex()):
        return ""
    # PyTorch has no comparisons for numbers of one byte.
    numbers = value.float() if value.itemsize == 1 else value
    bad = int((~torch.isfinite(numbers) if finite else torch.isnan(numbers)).sum())
    if not bad:
        return ""
    what = "finite numbers" if finite else "numbers"
    return f"holds {bad} of {value.numel()} values that are no {what} (NaN or infinite)"


def _sort(dtype: torch.dtype) -> str:
    if dtype.is_complex:
        return "complex"
    if dtype.is_floating_point:
        return "floating"
    return "bool" if dtype == torch.bool else "integer"


def _some(verb: str, keys: list[str]) -> str:
    if not keys:
        return ""
    more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
    return f"{verb} {', '.join(keys[:3])}{more}"
