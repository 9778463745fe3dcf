"""A training run that saves after each step and goes on from what it finds (see test_checkpoint).

Usage: killed_run.py FOLDER STEPS [SECONDS_PER_STEP]
"""

import sys
import time
from pathlib import Path

import torch

from biofx.plasticity import GradScheduler
from tests.plasticity.table import RULES, batches, make, train

torch.set_num_threads(1)


def main(folder: Path, steps: int, pause: float) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    model = make({**RULES[-1].config, "fuzzy_lr_distribution": "activity"})
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    scheduler = GradScheduler(model, optimizer)
    parts = {"model": model, "optimizer": optimizer, "scheduler": scheduler}
    file = folder / "checkpoint.pt"
    if file.exists():
        for key, state in torch.load(file, weights_only=True).items():
            parts[key].load_state_dict(state)
    sys.stdout.write("running\n")
    sys.stdout.flush()
    data = batches(steps)
    for step in range(scheduler.steps[0], steps):
        train(model, optimizer, data[step : step + 1])
        states = {key: part.state_dict() for key, part in parts.items()}
        torch.save(states, file.with_suffix(".new"))
        file.with_suffix(".new").replace(file)
        time.sleep(pause)
    torch.save(model.state_dict(), folder / "end.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]) if len(sys.argv) > 3 else 0.0)
