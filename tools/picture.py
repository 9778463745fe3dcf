"""Draws docs/images/diff.svg, the picture in the README: `python tools/picture.py`."""

import io
import re
import sys
from pathlib import Path

import torch
from rich.console import Console

import biofx

WIDTH = 110
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools" / "examples"))
from residual import ResidualNet  # noqa: E402


def main() -> None:
    torch.manual_seed(0)
    config = biofx.BioConfig(
        fuzzy_lr_distribution=biofx.Distribution.LOGNORMAL,
        fuzzy_learning_rate_factor_nu=0.2,
        weight_splitting_Gamma=2,
    )
    bio = biofx.transform(ResidualNet(), config, example_inputs=torch.zeros(1, 3, 32, 32))
    console = Console(
        record=True,
        width=WIDTH,
        file=io.StringIO(),
        force_terminal=True,
        color_system="truecolor",
        _environ={},
    )
    console.print(biofx.diff(bio))
    target = ROOT / "docs" / "images" / "diff.svg"
    target.parent.mkdir(parents=True, exist_ok=True)
    svg = console.export_svg(title="biofx.diff")
    # rich links fonts on the web; a picture should load nothing, and falls back to monospace
    svg = re.sub(r"\s*@font-face \{.*?\}", "", svg, flags=re.DOTALL)
    target.write_text(svg, encoding="utf-8")
    print(f"{target.relative_to(ROOT)}: {target.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
