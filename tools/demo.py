"""The demonstration: inspect, train, export and reload a network on scikit-learn's digits.

Two copies of one network train side by side, from the same initial weights, on the same batches,
with the same dropout masks and the same optimizer; one of them is transformed by biofx and has a
GradScheduler on its optimizer. Everything is seeded. Run it with `./tools/demo`.
"""

import argparse
import copy
import json
import math
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

import biofx
import biofx.cli

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "examples"))
from digits import DigitNet  # noqa: E402

BATCH = 64
CONFIG = HERE / "examples" / "digits.toml"
RULES = {"crystallized": "crystallized", "turnover": "replaced"}  # metric -> heading

# Runs in a process of its own, in which `import biofx` fails.
RELOAD = """
import json, sys
sys.modules["biofx"] = None
import torch
folder = sys.argv[1]
pixels, digits = torch.load(folder + "/test.pt", weights_only=True)
with torch.no_grad():
    logits = torch.jit.load(sys.argv[2])(pixels)
torch.save(logits, folder + "/logits.pt")
try:
    import biofx
    imported = True
except ImportError:
    imported = False
right = (logits.argmax(1) == digits).sum().item()
print(json.dumps({"right": right, "biofx": imported}))
"""


@dataclass
class Runner:
    """One of the two networks in training, and how it is doing."""

    name: str
    model: nn.Module
    optimizer: torch.optim.Optimizer
    loss: float = float("nan")
    seconds: float = 0.0
    accuracies: list[float] = field(default_factory=list)

    def epoch(self, pixels: Tensor, digits: Tensor, order: Tensor, seed: int) -> None:
        start = time.perf_counter()
        torch.manual_seed(seed)  # the same dropout masks for both networks
        self.model.train()
        total = 0.0
        for batch in order.split(BATCH):
            self.optimizer.zero_grad()
            loss = F.cross_entropy(self.model(pixels[batch]), digits[batch])
            loss.backward()
            self.optimizer.step()
            total += loss.item() * len(batch)
        self.loss = total / len(order)
        self.seconds += time.perf_counter() - start

    @torch.no_grad()
    def logits(self, pixels: Tensor) -> Tensor:
        return self.model.eval()(pixels)


def load(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(train pixels, train digits, test pixels, test digits); pixels (N, 1, 8, 8) in [0, 1]."""
    data = load_digits()
    pixels = torch.tensor(data.images / 16, dtype=torch.float32).unsqueeze(1)
    digits = torch.tensor(data.target)
    train, test = train_test_split(
        range(len(digits)), test_size=0.2, stratify=data.target, random_state=seed
    )
    return pixels[train], digits[train], pixels[test], digits[test]


def blocks(shares: list[float]) -> str:
    """Numbers from 0 to 1 as a line of blocks; what is above 0 is never blank."""
    heights = " ▁▂▃▄▅▆▇█"
    return "".join(heights[min(max(math.ceil(share * 8), 0), 8)] for share in shares)


def progress_table(runners: list[Runner], drawn: bool) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("", no_wrap=True)
    table.add_column("training loss", justify="right")
    table.add_column("test accuracy", justify="right")
    table.add_column("seconds", justify="right")
    if drawn:
        table.add_column("epochs, from 80 % up", no_wrap=True)
    for runner in runners:
        accuracy = f"{runner.accuracies[-1]:.1%}" if runner.accuracies else ""
        cells = [runner.name, f"{runner.loss:.4f}", accuracy, f"{runner.seconds:.1f}"]
        above = [(accuracy - 0.8) / 0.2 for accuracy in runner.accuracies]
        table.add_row(*cells, *([f"[cyan]{blocks(above)}[/]"] if drawn else []))
    return table


def metrics_table(metrics: dict[str, dict[str, Any]], drawn: bool) -> Table:
    """What `scheduler.metrics()` says of each parameter: its plasticity factors and its rules."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("synapses of", no_wrap=True)
    table.add_column("factor f", justify="right")
    if drawn:
        table.add_column("f from 0 to 2", no_wrap=True)
    for rule in RULES.values():
        table.add_column(rule, justify="right")
    for name, numbers in metrics.items():
        cells = [name, f"{numbers['factor_mean']:.2f} ± {numbers['factor_std']:.2f}"]
        if drawn:
            shares = numbers["rate_histogram"]["share"]
            cells.append(f"[cyan]{blocks([share / max(shares) for share in shares])}[/]")
        shown = (f"{numbers[key]:.2%}" if key in numbers else "" for key in RULES)
        table.add_row(*cells, *shown)
    return table


def train(console: Console, epochs: int, seed: int) -> tuple[list[Runner], Tensor, Tensor]:
    """Train both networks; returns them with the test pixels and digits."""
    pixels, digits, test_pixels, test_digits = load(seed)
    torch.manual_seed(seed)
    config = biofx.BioConfig.from_toml(CONFIG)
    plain = DigitNet()
    bio = biofx.transform(copy.deepcopy(plain), config)  # transform shares parameters
    runners = [
        Runner("plain", plain, torch.optim.AdamW(plain.parameters(), lr=2e-3)),
        Runner("biofx", bio, torch.optim.AdamW(bio.parameters(), lr=2e-3)),
    ]
    scheduler = biofx.GradScheduler(bio, runners[1].optimizer, seed=seed)

    bar = Progress(
        TextColumn("training both"),
        BarColumn(bar_width=40),
        MofNCompleteColumn(),
        TextColumn("epochs"),
        TimeElapsedColumn(),
        console=console,
    )
    task = bar.add_task("", total=epochs)
    drawn = console.encoding.startswith("utf")

    def picture() -> Group:
        parts = [bar, Text(), progress_table(runners, drawn)]
        return Group(*parts, Text(), metrics_table(scheduler.metrics(), drawn))

    live = Live(console=console, auto_refresh=False) if console.is_terminal else None
    shuffle = torch.Generator().manual_seed(seed)
    with live or nullcontext():
        for epoch in range(epochs):
            order = torch.randperm(len(digits), generator=shuffle)
            for runner in runners:
                runner.epoch(pixels, digits, order, seed=seed + epoch)
                right = runner.logits(test_pixels).argmax(1) == test_digits
                runner.accuracies.append(right.double().mean().item())
            bar.advance(task)
            if live:
                live.update(picture(), refresh=True)
            elif (epoch + 1) % max(1, epochs // 5) == 0:
                both = ", ".join(f"{r.name} {r.accuracies[-1]:.1%}" for r in runners)
                console.print(f"epoch {epoch + 1:>2} of {epochs}: test accuracy {both}")
    if not live:
        console.print(Text(), progress_table(runners, drawn), Text())
        console.print(metrics_table(scheduler.metrics(), drawn))
    return runners, test_pixels, test_digits


def reload(file: Path, pixels: Tensor, digits: Tensor) -> tuple[int, Tensor]:
    """Accuracy count and logits of the exported file, from a process without biofx."""
    with tempfile.TemporaryDirectory() as folder:
        torch.save((pixels, digits), Path(folder, "test.pt"))
        run = subprocess.run(
            [sys.executable, "-c", RELOAD, folder, str(file)],
            capture_output=True,
            text=True,
            check=False,
        )
        if run.returncode:
            raise SystemExit(f"the exported file does not run without biofx:\n{run.stderr}")
        answer = json.loads(run.stdout)
        assert not answer["biofx"]
        return answer["right"], torch.load(Path(folder, "logits.pt"), weights_only=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="tools/demo", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--epochs", type=int, default=20, help="passes over the training images")
    parser.add_argument("--seed", type=int, default=0, help="of weights, batches and plasticity")
    parser.add_argument("-o", "--output", type=Path, help="keep the exported file here")
    options = parser.parse_args()
    console = Console(highlight=False, soft_wrap=False)
    torch.set_num_threads(1)  # the network is small: threads would cost more than they give
    start = time.perf_counter()

    def heading(text: str) -> None:
        console.print()
        console.rule(f"[bold]{text}", align="left", style="dim")

    heading("1  inspect: what biofx.transform changes")
    model = HERE / "examples" / "digits.py"
    console.print("[dim]$ biofx inspect tools/examples/digits.py --input 1,1,8,8 \\")
    console.print("      [dim]--config tools/examples/digits.toml\n")
    command = ["inspect", str(model), "--input", "1,1,8,8", "--config", str(CONFIG)]
    if biofx.cli.main(command):
        raise SystemExit("biofx inspect failed")

    heading("2  train: the plain network and its bio-augmented copy")
    runners, pixels, digits = train(console, options.epochs, options.seed)
    plain, bio = runners

    heading("3  export to TorchScript, reload where biofx cannot be imported")
    with tempfile.TemporaryDirectory() as folder:
        file = options.output or Path(folder, "digits.pt")
        biofx.export(bio.model.eval(), file, example_inputs=(pixels[:1],))
        size = file.stat().st_size
        right, logits = reload(file, pixels, digits)
    same = torch.equal(logits, bio.logits(pixels))
    equality = "bit for bit the same" if same else "OTHER"
    console.print(
        f"{file.name}: {size / 1024:.0f} KiB. Reloaded, it gives {equality} outputs\n"
        f"for the {len(digits)} test images."
    )

    heading("4  result")
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("")
    table.add_column("right", justify="right")
    table.add_column("test accuracy", justify="right")
    for name, count in (
        ("plain network", round(plain.accuracies[-1] * len(digits))),
        ("bio-augmented, in training", round(bio.accuracies[-1] * len(digits))),
        ("bio-augmented, reloaded file", right),
    ):
        table.add_row(name, f"{count} of {len(digits)}", f"[bold]{count / len(digits):.2%}[/]")
    console.print(table)
    console.print(
        f"\n[dim]One seed and {len(digits)} test images: a few images more or less do not tell"
        " which\nnetwork is better. The accuracies are those after the last epoch.\n"
        f"It took {time.perf_counter() - start:.0f} s.[/]"
    )
    if not same:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
