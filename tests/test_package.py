"""What is built and shipped: the wheel's contents and metadata, and the two commands' files."""

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

import biofx

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    [file] = folder.iterdir()
    return zipfile.ZipFile(file)


def test_wheel_holds_the_package_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    names = wheel.namelist()
    assert {name.split("/")[0] for name in names} == {
        "biofx",
        f"biofx-{biofx.__version__}.dist-info",
    }
    assert "biofx/py.typed" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    sources = {path.relative_to(ROOT).as_posix() for path in (ROOT / "biofx").rglob("*.py")}
    assert sources == {name for name in names if name.endswith(".py")}
    page = {path.name for path in (ROOT / "biofx" / "report" / "page").iterdir() if path.is_file()}
    assert {f"biofx/report/page/{name}" for name in page} <= set(names)


def test_wheel_asks_for_three_packages_only(wheel: zipfile.ZipFile) -> None:
    text = wheel.read(f"biofx-{biofx.__version__}.dist-info/METADATA").decode()
    metadata = Parser().parsestr(text)
    needed = [line for line in metadata.get_all("Requires-Dist", []) if "extra ==" not in line]
    assert sorted(needed) == ["networkx", "rich", "torch>=2.13"]
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata["License-Expression"] == "MIT"
    scripts = wheel.read(f"biofx-{biofx.__version__}.dist-info/entry_points.txt").decode()
    assert "biofx = biofx.cli:main" in scripts


def test_every_direct_dependency_is_pinned() -> None:
    def bare(requirement: str) -> str:
        name = re.split(r"[\[<>=!~ ;]", requirement)[0]
        return re.sub(r"[-_.]+", "-", name).lower()

    text = (ROOT / "tools" / "constraints.txt").read_text(encoding="utf-8")
    exact = re.compile(r"[\w.-]+==[\w.]+(; python_version [<>=]+ \"[\d.]+\")?$")
    pinned = {bare(line) for line in text.splitlines() if exact.match(line)}
    extras = PROJECT["optional-dependencies"]
    direct = {bare(line) for line in [*PROJECT["dependencies"], *extras["dev"], *extras["demo"]]}
    assert direct - {"biofx"} <= pinned
    assert {
        'torch==2.13.0; python_version < "3.12"',
        'torch==2.14.1; python_version >= "3.12"',
    } <= {*text.splitlines()}


COMMANDS = ["tools/test", "tools/demo", "tools/docs", "tools/release", ".ci/run"]


@pytest.mark.parametrize("script", COMMANDS)
def test_commands_are_executable_bash(script: str) -> None:
    path = ROOT / script
    assert os.access(path, os.X_OK)
    assert path.read_text(encoding="utf-8").startswith("#!/usr/bin/env bash\n")
    subprocess.run(["bash", "-n", str(path)], check=True)


def test_the_changelog_has_a_section_for_this_version() -> None:
    text = (ROOT / "docs" / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(rf"^## {re.escape(biofx.__version__)}\b", text, re.MULTILINE)


@pytest.mark.parametrize("collecting", [True, False])
def test_importing_leaves_garbage_collection_as_it_was(collecting: bool) -> None:
    switch = "enable" if collecting else "disable"
    lines = (
        f"import gc; gc.{switch}()",
        "import biofx; biofx.GradScheduler",
        "try: biofx.nothing",
        "except AttributeError: pass",
        f"assert gc.isenabled() is {collecting}",
    )
    subprocess.run([sys.executable, "-c", "\n".join(lines)], check=True)
