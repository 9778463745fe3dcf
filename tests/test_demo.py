"""The demonstration runs to its end, says what it measured, and is clean when not on a terminal."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def demo(*arguments: str, **environment: str) -> str:
    pytest.importorskip("sklearn")
    run = subprocess.run(
        [sys.executable, "-W", "default", str(ROOT / "tools" / "demo.py"), *arguments],
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
        env={**os.environ, "COLUMNS": "80", "PYTHONUTF8": "1", **environment},
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert "Traceback" not in run.stderr
    return run.stdout


@pytest.mark.slow
def test_demo(tmp_path: Path) -> None:
    file = tmp_path / "digits.pt"
    arguments = ("--epochs", "2", "-o", str(file))
    output = demo(*arguments)

    counts = dict(re.findall(r"^(plain|bio-augmented, \w+ \w+).*?(\d+) of 360", output, re.M))
    right = {name: int(count) for name, count in counts.items()}
    assert len(right) == 3
    assert min(right.values()) > 250  # measured after 2 epochs: see the output
    assert right["bio-augmented, in training"] == right["bio-augmented, reloaded file"]
    assert "bit for bit the same" in output
    assert file.stat().st_size > 10_000
    assert [entry.name for entry in tmp_path.iterdir()] == ["digits.pt"]

    assert "\x1b" not in output
    assert "\r" not in output
    lines = output.splitlines()
    assert len(lines) < 150
    assert max(map(len, lines)) <= 80

    def results(text: str) -> str:
        """All from the training on, but the seconds; the diff before it adapts to the terminal."""
        text = text[text.index("2  train") :]
        text = re.sub(r"(?m)^((?:plain|biofx) .*%) +\d+\.\d.*$", r"\1", text)
        return re.sub(r"took \d+ s", "", text)

    again = demo(*arguments, TERM="dumb")
    assert results(again) == results(output), "not deterministic"
