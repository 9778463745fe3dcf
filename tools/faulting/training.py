"""A training run that can be interrupted, and goes on from its checkpoint.

    python -m faulting.training FOLDER STEPS [SECONDS_PER_STEP]

trains, saves after each step, and resumes from what it finds in the folder.
"""

import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import biofx

CONFIG = biofx.BioConfig(
    fuzzy_lr_distribution="lognormal",
    crystallize_every=1,
    crystal_thresh=0.05,
    rejuvenate_every=4,
    rejuvenate_max_share=0.05,
)


class Training:
    """A model, its optimizer and its scheduler. Data are a function of the step alone."""

    def __init__(self, optimizer: Any = torch.optim.AdamW, config: Any = CONFIG) -> None:
        torch.manual_seed(0)
        layers = nn.Sequential(nn.Linear(24, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU())
        self.model = biofx.transform(nn.Sequential(layers, nn.Linear(48, 4)), config)
        self.optimizer = optimizer(self.model.parameters(), lr=0.01)
        self.scheduler = biofx.GradScheduler(self.model, self.optimizer)

    @property
    def steps(self) -> int:
        return self.scheduler.steps[0]

    def backward(self) -> None:
        generator = torch.Generator().manual_seed(self.steps)
        x = torch.randn(16, 24, generator=generator)
        self.optimizer.zero_grad()
        nn.functional.cross_entropy(self.model(x), x[:, :4].argmax(1)).backward()

    def step(self) -> None:
        self.backward()
        self.optimizer.step()

    def run(self, steps: int) -> "Training":
        while self.steps < steps:
            self.step()
        return self

    def state(self) -> dict[str, Any]:
        parts = {"model": self.model, "optimizer": self.optimizer, "scheduler": self.scheduler}
        return {name: part.state_dict() for name, part in parts.items()}

    def load(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])

    def save(self, file: Path) -> None:
        """Whole or not at all: written beside the old file, and then put in its place."""
        fresh = file.with_suffix(".new")
        torch.save(self.state(), fresh)
        fresh.replace(file)


def same(first: Any, second: Any) -> bool:
    """Whether two states are equal to the bit."""
    if isinstance(first, Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[k], second[k]) for k in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(same, first, second))
    return bool(first == second)


def main(folder: Path, steps: int, pause: float) -> None:
    torch.set_num_threads(1)
    training, file = Training(), folder / "checkpoint.pt"
    if file.exists():
        training.load(torch.load(file, weights_only=True))
    while training.steps < steps:
        training.step()
        training.save(file)
        sys.stdout.write(f"{training.steps}\n")
        sys.stdout.flush()
        time.sleep(pause)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]) if len(sys.argv) > 3 else 0.0)
