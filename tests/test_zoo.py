"""tools/zoo judges models rightly; the libraries it is made for are not installed here."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FINE = """
import torch
from torch import nn
from zoos.entry import Entry, images

LIBRARY = "own"


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)

    def forward(self, x):
        return x + nn.functional.dropout(self.norm(self.conv(x)), 0.5, self.training)


class Sparse(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.inner, self.head = Residual(), nn.Linear(3, 8), nn.Linear(8, 2)

    def forward(self, x):
        x = self.body(x).mean((2, 3))
        return self.head(self.inner(x) if x.sum() > 1000 else self.inner(-x))


MODELS = [
    Entry("residual", Residual, lambda: images(8)),
    Entry("sparse", Sparse, lambda: {"x": images(8)}, note="branches on data"),
]
"""
WRONG = """
import torch
from torch import nn
from zoos.entry import Entry

LIBRARY = "own"


class Wrong(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(2, 2)

    def forward(self, x):
        # tells the two apart, as no model should
        return self.fc(x) * (2 if "_biofx" in vars(self) else 1)


MODELS = [
    Entry("wrong", Wrong, lambda: torch.ones(1, 2)),
    Entry("nothing", nn.ReLU, lambda: torch.ones(1, 2)),
    Entry("good", lambda: nn.Linear(2, 2), lambda: torch.ones(1, 2)),
]
"""


def zoo(tmp_path: Path, models: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    (tmp_path / "own.py").write_text(models, encoding="utf-8")
    return subprocess.run(
        [sys.executable, str(ROOT / "tools" / "zoo.py"), "--models", "own.py", *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
        env={**os.environ, "COLUMNS": "120", "PYTHONUTF8": "1"},
    )


@pytest.mark.slow
def test_it_measures_and_writes_json_and_markdown(tmp_path: Path) -> None:
    run = zoo(tmp_path, FINE, "--json", "zoo.json", "--markdown", "zoo.md")
    assert run.returncode == 0, run.stdout + run.stderr
    assert "Traceback" not in run.stderr
    found = json.loads((tmp_path / "zoo.json").read_text(encoding="utf-8"))
    residual, sparse = found["models"]
    for model in (residual, sparse):
        assert model["failures"] == []
        assert (model["train"], model["evaluation"], model["backward"]) == (True, True, True)
        assert 0 < model["seconds"] < 60
        assert model["graph"] == "equal in train mode"
        assert (model["wired"], model["operations"]) == (1, 1)
    assert (residual["wired_without"], residual["split"]) == (1, 0)
    assert sparse["wired_without"] == 0
    assert sparse["split"] == 1  # not the convolution with 3 units, nor the head
    assert sparse["reasons"] == {"branches on a value that only a run knows": 1}
    page = (tmp_path / "zoo.md").read_text(encoding="utf-8")
    assert "| sparse |" in page
    assert "- sparse: branches on data" in page
    assert "| branches on a value that only a run knows | 1 |" in page


@pytest.mark.slow
def test_it_says_which_models_fail_and_goes_on(tmp_path: Path) -> None:
    run = zoo(tmp_path, WRONG, "--json", "zoo.json")
    assert run.returncode == 1, run.stdout + run.stderr
    models = json.loads((tmp_path / "zoo.json").read_text(encoding="utf-8"))["models"]
    wrong, nothing, good = models
    assert wrong["train"] is False
    assert "does not compute what the original computes" in wrong["failures"][0]
    assert nothing["failures"][0].startswith("transform: ModelError: ReLU has no weight layer")
    assert good["failures"] == []
    assert "FAILED" in run.stdout


def test_a_name_that_no_model_has_is_an_error(tmp_path: Path) -> None:
    run = zoo(tmp_path, FINE, "--only", "Bert*")
    assert run.returncode == 2
    assert "no model is called 'Bert*'" in run.stdout
