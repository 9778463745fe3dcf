"""Imports the user's file, and turns what its code raises into one line with its place."""

import ast
import importlib
import importlib.util
import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType

from biofx.cli.errors import CommandError, one_line
from biofx.cli.paths import checked_path

_OURS = str(Path(__file__).parent)


def import_source(where: str) -> ModuleType:
    """The module of a file or of a name; raises `CommandError` where there is none."""
    path = checked_path(where, "read the model")
    is_package = len(path.parts) == 1 and (path / "__init__.py").exists()
    is_file = path.suffix == ".py" or path.exists() or len(path.parts) > 1
    if is_package or not is_file:
        sys.path.insert(0, str(Path.cwd()))
        top = where.partition(".")[0]
        if _holds(Path("src"), top) and not _holds(Path(), top):
            sys.path.insert(0, str(Path("src").resolve()))
        try:
            return importlib.import_module(where)
        except ModuleNotFoundError as error:
            if error.name is not None and f"{where}.".startswith(f"{error.name}."):
                raise CommandError(
                    f"there is no module {where!r}, nor a file of that name; {_instead(where)}"
                ) from error
            raise
        except (ValueError, TypeError) as error:  # "", "..a"
            raise CommandError(f"{where!r} is not the name of a module") from error
    if not path.exists():
        raise CommandError(f"there is no file {where}")
    if path.is_dir():
        raise CommandError(f"{where} is a directory, not a Python file")
    return _import_file(path)


def _instead(where: str) -> str:
    """What to give instead of a dotted name that is no module."""
    module, _, name = where.rpartition(".")
    if hasattr(sys.modules.get(module), name):  # imported on the way
        return f"did you mean {module}:{name}?"
    return (
        "give the path of the file, FILE.py[:NAME], or run it in the folder of the package, or "
        "with a Python that has it"
    )


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


def _holds(folder: Path, name: str) -> bool:
    """Whether a module or package of this name is in a folder."""
    return (folder / f"{name}.py").is_file() or (folder / name).is_dir()


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
def code_of(where: str, doing: str = "importing it") -> Iterator[None]:
    """Turn whatever the user's code raises into one line with its place."""
    written, argv = sys.dont_write_bytecode, sys.argv
    sys.dont_write_bytecode = True  # leave nothing beside the user's file
    sys.argv = [where]  # argparse in the user's file is not to see the arguments of biofx
    try:
        yield
    except (CommandError, KeyboardInterrupt):
        raise
    except SyntaxError as error:
        place = _short(error.filename or where) + (f":{error.lineno}" if error.lineno else "")
        text = f"{type(error).__name__}: {error.msg}"
        raise CommandError(f"{place}: {text} (while {doing})") from error
    except SystemExit as error:
        text = f"it calls sys.exit({error.code!r}); keep what only a script does under "
        text += "if __name__ == '__main__'"
        raise CommandError(f"{_place(error, where)}: {text} (while {doing})") from error
    except ModuleNotFoundError as error:
        text = f"{one_line(error)} (while {doing}); {_missing(error.name or '', where)}"
        raise CommandError(f"{_place(error, where)}: {text}") from error
    except BaseException as error:
        raise CommandError(f"{_place(error, where)}: {one_line(error)} (while {doing})") from error
    finally:
        sys.dont_write_bytecode, sys.argv = written, argv


def _missing(name: str, where: str) -> str:
    """What to do about a module that is not found."""
    top = name.partition(".")[0]
    here = Path.cwd()
    above = Path(where).resolve().parents
    for folder in (here, here / "src", *(part for part in above if part.is_relative_to(here))):
        if top and _holds(folder, top):
            return f"run it with PYTHONPATH={_short(str(folder))}"
    return f"install it for {sys.executable}"


def _place(error: BaseException, where: str) -> str:
    """File and line of the last frame in the user's own file, else of the last frame at all."""
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith((_OURS, "<frozen"))
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
