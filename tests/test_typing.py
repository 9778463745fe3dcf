"""What a type checker says of code that uses biofx: nothing where it runs, something where not."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = """
import torch
from torch import nn

import biofx


class Net(nn.Module):
    size: int = 3

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


config = biofx.BioConfig(
    fuzzy_lr_distribution="lognormal",
    include="fc*",
    exclude=["head"],
    outputs=("out",),
    weight_splitting_mode="expand",
)
bio = biofx.transform(Net(), config, example_inputs=torch.ones(2))
size: int = bio.size  # it is a Net
optimizer = torch.optim.SGD(bio.parameters(), lr=0.1)
scheduler = biofx.GradScheduler(bio, optimizer)
factors: torch.Tensor = scheduler.factors("fc.weight")
"""


@pytest.mark.slow
def test_code_as_users_write_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    api = pytest.importorskip("mypy.api")
    monkeypatch.setenv("MYPYPATH", str(ROOT))
    file = tmp_path / "user.py"
    wrong = "biofx.transform(Net(), inplace='no')\nbiofx.BioConfig(rejuvenate_law='init')\n"
    file.write_text(SCRIPT + wrong, encoding="utf-8")
    options = ["--strict", "--config-file=", f"--cache-dir={ROOT / '.mypy_cache' / 'user'}"]
    said, failed, _ = api.run([*options, str(file)])
    assert not failed, failed
    errors = [line.split("error: ")[1] for line in said.splitlines() if "error: " in line]
    assert len(errors) == 2, said
    assert '"inplace" to "transform"' in errors[0]
    assert '"rejuvenate_law" to "BioConfig"' in errors[1]
