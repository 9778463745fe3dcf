"""From `model.py:NAME` to a module. This runs the code of model.py, and says where it fails."""

import ast
import difflib
import inspect
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from biofx.cli.errors import CommandError
from biofx.cli.source import code_of, import_source


def load_model(spec: str) -> nn.Module:
    """The module that a command line names.

    Args:
        spec: ``FILE.py[:NAME]`` or ``package.module[:NAME]``.

    Raises:
        CommandError: there is no such file or name, its code fails, or it is ambiguous.
    """
    where, name = _split(spec)
    _refuse(where)
    with code_of(where):
        source = import_source(where)
    found = _only(source, where) if name is None else _named(source, name, where)
    return _module(found, where)


def _split(spec: str) -> tuple[str, str | None]:
    where, colon, name = spec.rpartition(":")
    if colon and where and all(part.isidentifier() for part in name.split(".")):
        return where, name
    if spec.endswith(":"):
        raise CommandError(f"{spec!r} ends in a colon; name the model after it, or leave it out")
    if not spec:
        raise CommandError("MODEL is empty; give FILE.py[:NAME] or package.module[:NAME]")
    call = re.fullmatch(r"((.+):[^\W\d][\w.]*)\((.*)\)", spec)
    if call is not None and call[3].strip():
        made = spec[len(call[2]) + 1 :]
        raise CommandError(
            f"{spec}: no arguments can be given here; write a function that makes the model, "
            f"such as def make(): return {made}, and name it: {call[2]}:make"
        )
    if call is not None:
        raise CommandError(
            f"{spec}: leave out the parentheses, {call[1]}; it is called without arguments"
        )
    return spec, None


_WEIGHTS = (".pt", ".pth", ".ckpt", ".bin", ".safetensors", ".onnx", ".pt2", ".h5")


def _refuse(where: str) -> None:
    """Say what to do with what is no Python file, though people have models in it."""
    path = Path(where)
    if where == "-":
        raise CommandError(
            "MODEL cannot be read from stdin; write the code to a file, or give "
            "package.module[:NAME]"
        )
    if path.suffix == ".ipynb":
        raise CommandError(
            f"{where} is a notebook; call biofx.diff(biofx.transform(model)) in it, or write its "
            f"code to a file: jupyter nbconvert --to script {where}"
        )
    if path.suffix in _WEIGHTS:
        raise CommandError(
            f"{where} holds weights, not the code of a model; give the Python file that makes the "
            "model (biofx export loads weights with --weights)"
        )


# --- finding the model ---------------------------------------------------------------------------


def _named(source: ModuleType, name: str, where: str) -> Any:
    found: Any = source
    for position, part in enumerate(name.split(".")):
        if not hasattr(found, part):
            known = _suggestions(source) if position == 0 else []
            close = difflib.get_close_matches(part, known, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            if not hint and known:
                hint = f"; it has {', '.join(known[:8])}"
            raise CommandError(f"{where} has no {name!r}{hint}")
        found = getattr(found, part)
    return found


def _suggestions(source: ModuleType) -> list[str]:
    return [*_instances(source), *(cls.__name__ for cls in _classes(source)), *_functions(source)]


def _only(source: ModuleType, where: str) -> Any:
    instances = _instances(source)
    classes = _classes(source)
    makeable = {cls.__name__: cls for cls in classes if not _needs(cls)}
    candidates: dict[str, Any] = instances or makeable
    if len(candidates) == 1:
        return next(iter(candidates.values()))
    if candidates:
        names = ", ".join(f"{where}:{name}" for name in candidates)
        raise CommandError(f"{where} holds several models; name one: {names}")
    if classes:
        needs = "; ".join(f"{cls.__name__} needs {_needs(cls)}" for cls in classes[:3])
        raise CommandError(
            f"no nn.Module class of {where} can be made without arguments ({needs}); write a "
            f"function that makes the model, and name it: {where}:FUNCTION"
        )
    imported = _imported_classes(source)
    functions = _functions(source)
    hint = ""
    if imported:
        hint = f"; it imports some, name one: {', '.join(f'{where}:{name}' for name in imported)}"
    elif functions:
        hint = f"; if a function makes it, name it: {where}:{functions[0]}"
    raise CommandError(f"{where} defines no nn.Module{hint}")


def _instances(source: ModuleType) -> dict[str, nn.Module]:
    """Modules bound to a public name, each once, without imported ones."""
    imported = _imported_names(source)
    found: dict[str, nn.Module] = {}
    for name, value in vars(source).items():
        fresh = isinstance(value, nn.Module) and all(value is not seen for seen in found.values())
        if fresh and name not in imported and not name.startswith("_"):
            found[name] = value
    return found


def _classes(source: ModuleType) -> list[type[nn.Module]]:
    return [
        value
        for name, value in vars(source).items()
        if isinstance(value, type)
        and issubclass(value, nn.Module)
        and value.__module__ == source.__name__
        and name == value.__name__
        and not name.startswith("_")
    ]


def _imported_classes(source: ModuleType) -> list[str]:
    """Names of classes of modules that are defined elsewhere, other than those of PyTorch."""
    return [
        name
        for name, value in vars(source).items()
        if isinstance(value, type)
        and issubclass(value, nn.Module)
        and value.__module__ != source.__name__
        and value.__module__.partition(".")[0] != "torch"
    ]


def _functions(source: ModuleType) -> list[str]:
    return [
        name
        for name, value in vars(source).items()
        if inspect.isfunction(value)
        and value.__module__ == source.__name__
        and not name.startswith("_")
        and not _needs(value)
    ]


def _imported_names(source: ModuleType) -> set[str]:
    try:
        tree = ast.parse(inspect.getsource(source))
    except (OSError, TypeError, SyntaxError):
        return set()
    return {
        alias.asname or alias.name.split(".")[0]
        for node in tree.body
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }


def _needs(function: Callable[..., Any]) -> str:
    """Names of the arguments that must be given; empty if it can be called with none."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return ""
    needed = [
        p.name
        for p in parameters
        if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    return ", ".join(needed)


def _module(found: Any, where: str) -> nn.Module:
    """The module itself, or what a class or a function makes."""
    if isinstance(found, nn.Module):
        return found
    label = getattr(found, "__name__", type(found).__name__)
    is_class = isinstance(found, type)
    if not callable(found) or (is_class and not issubclass(found, nn.Module)):
        what = f"the class {label}" if is_class else f"an object of type {type(found).__name__}"
        raise CommandError(
            f"{where}: expected an nn.Module, a class of them or a function that makes one, got "
            f"{what}"
        )
    needed = _needs(found)
    if needed:
        raise CommandError(
            f"{where}: {label} cannot be called without arguments (it needs {needed}); write a "
            "function that makes the model, and name that"
        )
    with code_of(where, f"calling {label}()"):
        made = found()
    if not isinstance(made, nn.Module):
        raise CommandError(
            f"{where}: {label}() made an object of type {type(made).__name__}, not an nn.Module"
        )
    return made
