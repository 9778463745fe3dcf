"""README and docs are executed, block by block, so that what they show is true.

In every Markdown file the blocks share one namespace and one working folder, from top to bottom:
Python blocks run; `$ biofx …` lines of console blocks go through the command line's `main`, and
`$ torchrun …` lines through torch's launcher, and must exit 0. A comment directly above a block
changes that:

    <!-- not run: reason -->        the block is skipped
    <!-- file: model.py -->         the block is written to that file first (any language)
    <!-- needs: lightning -->       skipped where one of these packages is not installed; warnings
                                    of theirs are not ours
"""

import dataclasses
import importlib
import importlib.util
import inspect
import linecache
import os
import re
import shlex
import subprocess
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest

import biofx
from biofx.plasticity import Rule
from biofx.plasticity.scheduler.scheduler import configured_rules

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PYTHON = ("python", "py", "pycon")
CONSOLE = ("console", "sh", "bash", "shell")


@dataclass(frozen=True, kw_only=True)
class Block:
    language: str
    code: str
    line: int  # of the first line of code, counted from 1
    skipped: bool
    file: str | None
    needs: tuple[str, ...] = ()


def blocks(text: str) -> Iterator[Block]:
    """The fenced blocks of a Markdown text, in order."""
    lines = text.splitlines()
    fence: str | None = None
    for number, line in enumerate(lines):
        opening = re.match(r"^(```+|~~~+)\s*([\w+-]*)", line)
        if fence is None and opening:
            fence, language, start = opening[1], opening[2], number + 1
        elif fence is not None and line.strip() == fence:
            above = next((seen for seen in reversed(lines[: start - 1]) if seen.strip()), "")
            file = re.fullmatch(r"<!-- file: (\S+) -->", above.strip())
            needs = re.fullmatch(r"<!-- needs: (.*) -->", above.strip())
            yield Block(
                language=language,
                code="\n".join(lines[start:number]) + "\n",
                line=start + 1,
                skipped=bool(re.fullmatch(r"<!-- not run: \S.* -->", above.strip())),
                file=file[1] if file else None,
                needs=tuple(needs[1].split()) if needs else (),
            )
            fence = None
    assert fence is None, "a code block is never closed"


def commands(code: str) -> list[list[str]]:
    """The `$ biofx …` and `$ torchrun …` lines of a console block, split as a shell would."""
    joined = re.sub(r"\\\n\s*(> )?", "", code)
    return [
        shlex.split(line[2:], comments=True)
        for line in joined.splitlines()
        if re.match(r"\$ (biofx|torchrun)\b", line)
    ]


def run_command(program: str, arguments: list[str]) -> int:
    if program == "torchrun":
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", *arguments]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        return subprocess.run(command, env=environment, timeout=300, check=False).returncode

    from biofx.cli import main

    try:
        return main(arguments) or 0
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)


def run_document(path: Path, name: str) -> int:
    """Run every block of a document in the current folder; returns how many ran."""
    text = path.read_text(encoding="utf-8")
    # A module with the document's own line numbers: tracebacks point into the Markdown file, and
    # whatever needs a class's source (TorchScript) or its module (pickle) finds it.
    module = ModuleType(name)
    source = Path(f"{name}.py").resolve()
    module.__file__ = str(source)
    sys.modules[name] = module
    shown = [""] * len(text.splitlines())
    ran = 0
    for block in blocks(text):
        if block.skipped or not all(map(importlib.util.find_spec, block.needs)):
            continue
        where = f"{path.name}:{block.line}"
        if block.file:
            Path(block.file).parent.mkdir(parents=True, exist_ok=True)
            Path(block.file).write_text(block.code, encoding="utf-8")
        if block.language in PYTHON:
            code = block.code.splitlines()
            shown[block.line - 1 : block.line - 1 + len(code)] = code
            source.write_text("\n".join(shown), encoding="utf-8")
            linecache.checkcache(str(source))
            padded = "\n" * (block.line - 1) + block.code
            with warnings.catch_warnings():
                if block.needs:
                    warnings.simplefilter("ignore")
                exec(compile(padded, str(source), "exec"), module.__dict__)
            ran += 1
        elif block.language in CONSOLE:
            for program, *arguments in commands(block.code):
                failed = f"{where}: {program} {shlex.join(arguments)}"
                assert run_command(program, arguments) == 0, failed
                ran += 1
    return ran


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_block_runs(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    name = "document_" + re.sub(r"\W", "_", path.stem.lower())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setitem(sys.modules, name, ModuleType(name))  # removed again afterwards
    monkeypatch.syspath_prepend(tmp_path)  # as Python does for a script: blocks import files
    before = set(sys.modules)
    try:
        run_document(path, name)
    finally:
        for new in set(sys.modules) - before:
            if str(getattr(sys.modules[new], "__file__", None)).startswith(str(tmp_path)):
                del sys.modules[new]
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_and_pictures_exist(path: Path) -> None:
    text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    targets = re.findall(r"\]\(([^)#\s]+)[^)]*\)|(?:src|href)=\"([^\"#]+)", text)
    missing = [
        target
        for target in (first or second for first, second in targets)
        if not re.match(r"[a-z]+:", target) and not (path.parent / target).exists()
    ]
    assert missing == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_cell_of_a_table_is_cut_off_by_a_bar(path: Path) -> None:
    text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    bar = re.compile(r"(?<!\\)\|")
    columns, wrong = 0, []
    for line in text.splitlines():
        found = len(bar.findall(line)) if line.startswith("|") else 0
        if columns and found and found != columns:
            wrong.append(line)
        columns = (columns or found) if found else 0
    assert wrong == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_line_of_code_is_wider_than_the_page(path: Path) -> None:
    blocks = re.findall(r"^```.*?\n(.*?)^```", path.read_text(encoding="utf-8"), re.DOTALL | re.M)
    wide = [line for block in blocks for line in block.splitlines() if len(line) > 98]
    assert wide == []


def test_the_reference_has_every_public_name() -> None:
    pages = "".join(
        path.read_text(encoding="utf-8") for path in (ROOT / "docs" / "api").glob("*.md")
    )
    named = set(re.findall(r"^\.\. (?:auto|py:)\w+:: (biofx\S+)$", pages, re.MULTILINE))
    assert {f"biofx.{name}" for name in biofx.__all__} - named == set()
    shown = {"synapses.Axes", "synapses.Population", "export.Exported", "verify.Verification"}
    assert {f"biofx.{name}" for name in shown} - named == set()
    for name in named:
        home, _, attribute = name.rpartition(".")
        if home.startswith("biofx.integrations"):
            continue  # they need packages that may not be installed
        assert hasattr(importlib.import_module(home), attribute), name


@pytest.mark.parametrize("rule", configured_rules(), ids=lambda rule: rule.name)
def test_each_setting_of_a_rule_names_that_of_the_configuration(rule: Rule) -> None:
    known = {field.name for field in dataclasses.fields(biofx.BioConfig)}
    told = re.split(r"\n    (\w+): ", (inspect.getdoc(rule) or "").partition("Args:")[2])
    explained = dict(zip(told[1::2], told[2::2], strict=True))
    for field in dataclasses.fields(rule):
        if field.default is None and field.name != "schedule":
            named = re.findall(r"`(\w+)`", explained[field.name])
            assert known & set(named), field.name


def test_readme_and_quickstart_have_something_to_run() -> None:
    for name in ("README.md", "docs/quickstart.md"):
        kinds = {block.language for block in blocks((ROOT / name).read_text(encoding="utf-8"))}
        assert kinds & {*PYTHON}, name


def test_the_runner_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "document_x", ModuleType("document_x"))
    document = tmp_path / "x.md"
    document.write_text(
        "<!-- file: kept.py -->\n```python\nimport inspect\nclass A:\n    one = 1\n```\n"
        "<!-- not run: it fails -->\n```python\n1 / 0\n```\n"
        "```python\nassert 'one = 1' in inspect.getsource(A)\n```\n"
        "```console\n$ pip install nothing\n$ biofx --help\n```\n",
        encoding="utf-8",
    )
    assert run_document(document, "document_x") == 3
    assert "class A" in (tmp_path / "kept.py").read_text(encoding="utf-8")
    assert "inspect" in capsys.readouterr().out

    document.write_text("# Title\n\n```python\nx = 1\nraise KeyError(x)\n```\n", encoding="utf-8")
    with pytest.raises(KeyError) as caught:
        run_document(document, "document_x")
    assert caught.traceback[-1].lineno == 4  # counted from 0: the document's fifth line

    document.write_text("```console\n$ biofx inspect no_such_file.py\n```\n", encoding="utf-8")
    with pytest.raises(AssertionError, match="no_such_file"):
        run_document(document, "document_x")


def test_console_script_is_installed() -> None:
    script = Path(sys.executable).parent / "biofx"
    if not script.exists():
        pytest.skip("biofx is not installed in this environment, only importable")
    run = subprocess.run([script, "--version"], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert re.search(r"\d+\.\d+", run.stdout)
