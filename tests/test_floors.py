"""The architecture, read from the source: who imports whom, what loads torch, file lengths."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import biofx

PACKAGE = Path(__file__).parents[1] / "biofx"

# From the top. A module imports only from floors below its own, and from its own package.
FLOORS: tuple[tuple[str, ...], ...] = (
    ("__main__",),
    ("cli", "integrations", "compat"),
    ("export", "report"),
    ("transform", "verify"),
    ("diff",),
    ("passes",),
    ("modules",),
    ("capture",),
    ("copying",),
    ("plasticity",),
    ("synapses",),
    ("config",),
    ("fields",),
    ("errors",),
    ("garbage", "quiet"),
)
FLOOR = {name: depth for depth, names in enumerate(FLOORS) for name in names}

# The rooms of `plasticity`: each imports only from those behind it.
ROOMS = ("scheduler", "rules", "kernels", "numerics")

# The face, which everything may ask for this and nothing else.
FACE = {"__version__"}

LONGEST = 340
LONG_FOR_A_REASON: dict[str, str] = {
    "biofx/plasticity/scheduler/engine.py": "the stages of a step, in their order",
    "biofx/plasticity/scheduler/optimizer_hooks.py": "the moments of an optimizer's step, in order",
    "biofx/plasticity/scheduler/scheduler.py": "one public class, half of it documentation",
    "biofx/verify/verify.py": "one comparison, run after run",
    "biofx/plasticity/rules/fuzzy.py": "ten distributions that are one table and one rule",
    "biofx/plasticity/numerics/random.py": "one generator, and why its numbers are good",
}

# The names of the design's section on public names, and those of the errors it promises.
PUBLIC = (
    "transform",
    "info",
    "diff",
    "export",
    "verify",
    "plain",
    "register",
    "GradScheduler",
    "Recorder",
    "BioConfig",
    "Distribution",
    "BioConverter",
    "GraphDiff",
    "Synapses",
    "Transformation",
    "BiofxError",
)


def sources() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(path: Path, package: Path) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of everything of biofx that a file imports, wherever in the file."""
    here = path.relative_to(package.parent).parent.parts
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "biofx":
                    yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join([*here[: len(here) - node.level + 1], *filter(None, [base])])
            if base == "biofx":
                for alias in node.names:
                    if alias.name not in FACE:
                        yield node.lineno, f"biofx.{alias.name}"
            elif base.startswith("biofx."):
                yield node.lineno, base


def trespasses(path: Path, package: Path = PACKAGE) -> list[str]:
    parts = path.relative_to(package).with_suffix("").parts
    if parts == ("__init__",):
        return []  # the public face: names every floor, loads each at first use
    own = parts[0]
    if own not in FLOOR:
        return [f"{path.name}: biofx.{own} is on no floor; add it to FLOORS and to the docs"]
    found = []
    for line, target in imported(path, package):
        there = target.split(".")[1] if "." in target else "__init__"
        if there == own:
            continue
        if FLOOR.get(there, -1) <= FLOOR[own]:
            found.append(f"{'/'.join(parts)}.py:{line}: biofx.{own} may not import {target}")
    return found


@pytest.mark.parametrize("path", sources(), ids=module_name)
def test_imports_only_from_floors_below(path: Path) -> None:
    assert trespasses(path) == []


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_of_plasticity_open_one_way(room: str) -> None:
    before = ROOMS[: ROOMS.index(room)]
    folder = PACKAGE / "plasticity"
    assert sorted(p.name for p in folder.iterdir() if (p / "__init__.py").exists()) == sorted(ROOMS)
    found = [
        f"{path.name}:{line}: {target}"
        for path in (folder / room).glob("*.py")
        for line, target in imported(path, PACKAGE)
        if target == "biofx.plasticity" or target.split(".")[2:3] in [[name] for name in before]
    ]
    assert found == []


@pytest.mark.parametrize(
    ("code", "blamed"),
    [
        ("from biofx.passes.split import split", True),
        ("import biofx.transform", True),
        ("def later():\n    from biofx.diff import GraphDiff", True),
        ("from biofx import transform", True),
        ("import biofx", True),
        ("from ..capture import tracer", True),
        ("from biofx.plasticity.rules import Rule", False),
        ("from . import rules", False),
        ("from biofx.synapses import Synapses", False),
        ("from biofx import __version__", False),
    ],
)
def test_the_check_itself_sees_every_way_to_import(tmp_path: Path, code: str, blamed: bool) -> None:
    file = tmp_path / "biofx" / "plasticity" / "rule.py"
    file.parent.mkdir(parents=True)
    file.write_text(code, encoding="utf-8")
    assert bool(trespasses(file, tmp_path / "biofx")) is blamed


def test_every_floor_that_the_design_names_is_there() -> None:
    existing = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or path.is_dir()}
    optional = {"__main__", "integrations"}
    assert set(FLOOR) - existing - optional == set()


def test_no_file_grows_long_without_a_reason() -> None:
    lengths = {
        path.relative_to(PACKAGE.parent).as_posix(): len(
            path.read_text(encoding="utf-8").splitlines()
        )
        for path in sources()
    }
    long = {name for name, lines in lengths.items() if lines > LONGEST}
    assert long == set(LONG_FOR_A_REASON), "split it, or say in LONG_FOR_A_REASON why not"


@pytest.mark.parametrize("module", ["biofx", "biofx.cli", "biofx.config", "biofx.errors"])
def test_importing_it_does_not_load_torch(module: str) -> None:
    code = (
        f"import sys, {module}; print(sorted({{'torch', 'networkx', 'numpy'}} & {{*sys.modules}}))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_help_does_not_load_torch() -> None:
    code = (
        "import sys\n"
        "from biofx.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit as stop: assert not stop.code, stop.code\n"
        "assert 'torch' not in sys.modules\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert "inspect" in run.stdout
    assert "export" in run.stdout


@pytest.mark.parametrize("name", sorted({*PUBLIC, *biofx.__all__}))
def test_public_names_resolve(name: str) -> None:
    assert getattr(getattr(biofx, name), "__name__", name) == name
    assert name in dir(biofx)
    assert name in biofx.__all__


def test_packages_of_public_names_need_no_import_of_their_own() -> None:
    code = (
        "import biofx, sys\n"
        "assert 'torch' not in sys.modules\n"
        "biofx.plasticity.Restore, biofx.synapses.Axes\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("name", biofx.__all__)
def test_public_names_are_documented(name: str) -> None:
    thing = getattr(biofx, name)
    assert (thing.__doc__ or "").strip(), name
    if isinstance(thing, type):
        bare = [
            method
            for method, value in vars(thing).items()
            if not method.startswith("_")
            and callable(getattr(value, "__func__", value))
            and not (getattr(value, "__doc__", None) or "").strip()
        ]
        assert bare == [], name


def test_results_are_not_taken_for_types() -> None:
    """Of "Returns: a mask: it says …" Sphinx prints the words before the colon as a type."""
    found = [
        f"{path.name}: {node.name}"
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef)
        and re.search(r"^Returns:\n +[\w ,.']+: ", ast.get_docstring(node) or "", re.MULTILINE)
    ]
    assert found == []


def test_the_face_names_the_same_things_three_times() -> None:
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    guarded = next(node for node in tree.body if isinstance(node, ast.If))
    for_type_checkers = {
        alias.name: node.module
        for node in guarded.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert for_type_checkers == biofx._HOMES
    assert sorted(biofx.__all__) == sorted(biofx._HOMES)


@pytest.mark.parametrize("name", ["transform", "diff", "export"])
def test_functions_are_not_hidden_by_the_submodules_of_their_name(name: str) -> None:
    code = (
        f"import biofx, importlib; module = importlib.import_module('biofx.{name}')\n"
        f"assert biofx.{name} is module.{name}, biofx.{name}"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'transfrom'"):
        biofx.transfrom  # noqa: B018
