"""From `model.py:NAME` to a module. This runs the code of model.py, and says where it fails."""

import ast
import difflib
import importlib
import importlib.util
import inspect
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from biofx.cli.errors import CommandError, one_line
from biofx.cli.paths import checked_path


def load_model(spec: str) -> nn.Module:
    """The module that a command line names.

    Args:
        spec: ``FILE.py[:NAME]`` or ``package.module[:NAME]``.

    Raises:
        CommandError: there is no such file or name, its code fails, or it is ambiguous.
    """
    where, name = _split(spec)
    with _code_of(where):
        source = _import(where)
    found = _only(source, where) if name is None else _named(source, name, where)
    return _module(found, where)


def _split(spec: str) -> tuple[str, str | None]:
    where, colon, name = spec.rpartition(":")
    if colon and where and all(part.isidentifier() for part in name.split(".")):
        return where, name
    if spec.endswith(":"):
        raise CommandError(f"{spec}: a name is missing after the colon")
    if not spec:
        raise CommandError("MODEL is empty; give FILE.py[:NAME] or package.module[:NAME]")
    call = re.fullmatch(r"(.+:[^\W\d][\w.]*)\(.*\)", spec)
    if call is not None:
        raise CommandError(
            f"{spec}: leave out the parentheses, {call[1]}; it is called without arguments"
        )
    return spec, None


# --- importing -----------------------------------------------------------------------------------


def _import(where: str) -> ModuleType:
    path = checked_path(where, "read the model")
    is_package = len(path.parts) == 1 and (path / "__init__.py").exists()
    is_file = path.suffix == ".py" or path.exists() or len(path.parts) > 1
    if is_package or not is_file:
        sys.path.insert(0, str(Path.cwd()))
        try:
            return importlib.import_module(where)
        except ModuleNotFoundError as error:
            if error.name is not None and f"{where}.".startswith(f"{error.name}."):
                message = f"there is no module {where!r} (nor a file of that name)"
                raise CommandError(message) from error
            raise
        except (ValueError, TypeError) as error:  # "", "..a"
            raise CommandError(f"{where!r} is not the name of a module") from error
    if not path.exists():
        raise CommandError(f"there is no file {where}")
    if path.is_dir():
        raise CommandError(f"{where} is a directory, not a Python file")
    return _import_file(path)


def _import_file(path: Path) -> ModuleType:
    path = path.resolve()
    try:
        text = path.read_bytes()
    except OSError as error:
        raise CommandError(f"cannot read {path}: {error.strerror}") from error
    if b"\0" in text or (path.suffix != ".py" and not _is_python(text)):
        raise CommandError(f"{path} is not Python source; expected a .py file that makes a model")
    folder, name = path.parent, path.stem
    while (folder / "__init__.py").exists() and folder.name.isidentifier():
        folder, name = folder.parent, f"{folder.name}.{name}"  # for its relative imports
    sys.path.insert(0, str(folder))
    if "." in name:
        sys.path.append(str(path.parent))
        return importlib.import_module(name)
    if _imports_relatively(text):  # a folder without __init__.py: siblings all the same
        package = ModuleType(_free_name(path.parent.name))
        package.__path__ = [str(path.parent)]
        sys.modules[package.__name__] = package
        name = f"{package.__name__}.{name}"
    else:
        name = _free_name(name)
    loader = SourceFileLoader(name, str(path))
    spec = importlib.util.spec_from_file_location(name, path, loader=loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    loader.exec_module(module)
    return module


def _free_name(name: str) -> str:
    """A name for a module that hides no other module."""
    name = re.sub(r"\W", "_", name)
    if name in sys.modules or name in sys.stdlib_module_names or not name.isidentifier():
        name = f"_{name}"
    while name in sys.modules:
        name += "_"
    return name


def _is_python(text: bytes) -> bool:
    try:
        ast.parse(text)
    except (SyntaxError, ValueError):
        return False
    return True


def _imports_relatively(text: bytes) -> bool:
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError):
        return False
    return any(isinstance(node, ast.ImportFrom) and node.level for node in tree.body)


@contextmanager
def _code_of(where: str, doing: str = "importing it") -> Iterator[None]:
    """Turn whatever the user's code raises into one line with its place."""
    written = sys.dont_write_bytecode
    sys.dont_write_bytecode = True  # leave nothing beside the user's file
    try:
        yield
    except (CommandError, KeyboardInterrupt):
        raise
    except SyntaxError as error:
        place = (error.filename or where) + (f":{error.lineno}" if error.lineno else "")
        raise CommandError(f"{place}: {one_line(error)} (while {doing})") from error
    except SystemExit as error:
        text = f"it calls sys.exit({error.code!r})"
        raise CommandError(f"{_place(error, where)}: {text} (while {doing})") from error
    except BaseException as error:
        raise CommandError(f"{_place(error, where)}: {one_line(error)} (while {doing})") from error
    finally:
        sys.dont_write_bytecode = written


def _place(error: BaseException, where: str) -> str:
    """File and line of the last frame in the user's own file, else of the last frame at all."""
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename != __file__ and not frame.filename.startswith("<frozen")
    ]
    own = [frame for frame in frames if Path(frame.filename).name == Path(where).name]
    if not frames:
        return where
    frame = (own or frames)[-1]
    return f"{_short(frame.filename)}:{frame.lineno}"


def _short(filename: str) -> str:
    try:
        return str(Path(filename).relative_to(Path.cwd()))
    except ValueError:
        return filename


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
    functions = _functions(source)
    hint = f"; if a function makes it, name it: {where}:{functions[0]}" if functions else ""
    raise CommandError(f"{where} holds no nn.Module{hint}")


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
        what = f"the class {label}" if is_class else f"a {type(found).__name__}"
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
    with _code_of(where, f"calling {label}()"):
        made = found()
    if not isinstance(made, nn.Module):
        raise CommandError(f"{where}: {label}() made a {type(made).__name__}, not an nn.Module")
    return made
