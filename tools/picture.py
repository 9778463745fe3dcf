"""Draws the recorder's page of a run on digits, light and dark: `python tools/picture.py`.

The pictures are docs/images/report.png and report-dark.png; the site shows the one that suits.

It needs Debian's packages chromium and chromium-driver.
"""

import sys
import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits

import biofx

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tools" / "examples")]
from browser import Browser  # noqa: E402
from digits import DigitNet  # noqa: E402


def recorded(epochs: int = 63) -> biofx.Recorder:
    """The demonstration's network and settings, for long enough to see the rules act."""
    torch.manual_seed(0)
    data = load_digits()
    pixels = torch.tensor(data.images / 16, dtype=torch.float32).unsqueeze(1)
    digits = torch.tensor(data.target)
    config = biofx.BioConfig.from_toml(ROOT / "tools" / "examples" / "digits.toml")
    bio = biofx.transform(DigitNet(), config)
    optimizer = torch.optim.AdamW(bio.parameters(), lr=2e-3)
    recorder = biofx.Recorder(biofx.GradScheduler(bio, optimizer), every=10)
    for _ in range(epochs):
        for batch in torch.randperm(1437).split(64):
            optimizer.zero_grad()
            F.cross_entropy(bio(pixels[batch]), digits[batch]).backward()
            optimizer.step()
    return recorder


def main() -> None:
    images = ROOT / "docs" / "images"
    with tempfile.TemporaryDirectory() as folder, Browser() as browser:
        page = Path(folder, "run.html")
        page.write_text(recorded().to_html(), encoding="utf-8")
        browser.size(1440, 1010)
        for scheme, name in (("light", "report.png"), ("dark", "report-dark.png")):
            browser.prefer(scheme)
            browser.open(page)
            browser.run(
                "[...document.querySelectorAll('[role=treeitem]')]"
                ".find(row => row.textContent.includes('hidden')).click()"
            )
            browser.screenshot(images / name)
            print(f"docs/images/{name}: {(images / name).stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
