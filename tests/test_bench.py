"""The benchmarks run with tiny models and write valid JSON; what they measure is not judged."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "tools" / "bench.py"), *arguments],
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
        env={**os.environ, "COLUMNS": "100", "PYTHONUTF8": "1"},
    )


def not_finite(text: str) -> Any:
    raise ValueError(f"{text} is not JSON")


@pytest.mark.slow
def test_it_measures_and_writes_json_and_markdown(tmp_path: Path) -> None:
    numbers, page = tmp_path / "bench.json", tmp_path / "bench.md"
    run = bench(
        "--quick", "--rows", "split", "--json", str(numbers), "--markdown", str(page)
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr
    assert "Traceback" not in run.stderr

    found = json.loads(numbers.read_text(encoding="utf-8"), parse_constant=not_finite)
    assert found["machine"]["torch"]
    assert [table["title"] for table in found["tables"]]
    for table in found["tables"]:
        assert table["rows"]
        assert {len(row) for row in table["rows"]} == {len(table["columns"])}
    assert {goal["number"] for goal in found["goals"]} == {4}
    for goal in found["goals"]:
        side = (
            goal["value"] >= goal["bound"] if goal["at_least"] else goal["value"] <= goal["bound"]
        )
        assert goal["met"] is side
    for table in found["tables"]:
        assert f"## {table['title']}" in page.read_text(encoding="utf-8")


def test_unknown_rows_are_refused() -> None:
    run = bench("--rows", "speed")
    assert run.returncode == 2
    assert "no row 'speed'; there are mlp," in run.stderr
