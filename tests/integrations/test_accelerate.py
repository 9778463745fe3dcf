"""Accelerate and Fabric: checkpoints carry plasticity with no line of code."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import biofx
from biofx.plasticity import GradScheduler

pytestmark = pytest.mark.filterwarnings("ignore")

CONFIG = biofx.BioConfig(
    fuzzy_lr_distribution=biofx.Distribution.TEMPORAL,
    fuzzy_lr_dynamic=True,
    fuzzy_lr_update_freq=1,
    fuzzy_lr_decay=0.9,
    crystallize_every=1,
    crystal_thresh=0.05,
    rejuvenate_every=3,
)


def bio() -> nn.Module:
    torch.manual_seed(0)
    return biofx.transform(nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3)), CONFIG)


def data() -> Any:
    x = torch.randn(32, 6, generator=torch.Generator().manual_seed(0))
    y = torch.randint(0, 3, (32,), generator=torch.Generator().manual_seed(1))
    return DataLoader(TensorDataset(x, y), batch_size=8)


def learn(model: Any, optimizer: Any, loader: Any, backward: Any) -> None:
    for x, y in loader:
        optimizer.zero_grad()
        backward(nn.functional.cross_entropy(model(x), y))
        optimizer.step()


def same(first: nn.Module, second: nn.Module) -> bool:
    return all(
        torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True)
    )


def alone(epochs: int) -> nn.Module:
    model = bio()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    GradScheduler(model, optimizer)
    for _ in range(epochs):
        learn(model, optimizer, data(), lambda loss: loss.backward())
    return model


@pytest.mark.parametrize("before", [True, False])
def test_accelerate(before: bool, tmp_path: Path) -> None:
    """The scheduler is made before `prepare`, of the optimizer, or after it, of what it gives."""
    accelerate = pytest.importorskip("accelerate")

    def start() -> Any:
        accelerator = accelerate.Accelerator(cpu=True)
        model = bio()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        if before:
            scheduler = GradScheduler(model, optimizer)
        model, optimizer, loader = accelerator.prepare(model, optimizer, data())
        if not before:
            scheduler = GradScheduler(model, optimizer)
        return accelerator, model, optimizer, loader, scheduler

    accelerator, model, optimizer, loader, scheduler = start()
    learn(model, optimizer, loader, accelerator.backward)
    accelerator.save_state(str(tmp_path))
    learn(model, optimizer, loader, accelerator.backward)
    assert scheduler.steps == [8]
    assert same(model, alone(2))

    accelerator, model, optimizer, loader, scheduler = start()
    accelerator.load_state(str(tmp_path))
    assert scheduler.steps == [4]
    learn(model, optimizer, loader, accelerator.backward)
    assert same(model, alone(2))


@pytest.mark.parametrize("early", [True, False])
def test_fabric(tmp_path: Path, early: bool) -> None:
    fabric_module = pytest.importorskip("lightning.fabric")

    def start() -> Any:
        fabric = fabric_module.Fabric(accelerator="cpu", devices=1)
        model = bio()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        if early:
            GradScheduler(model, optimizer)
        model, optimizer = fabric.setup(model, optimizer)
        if not early:
            GradScheduler(model, optimizer)
        return fabric, model, optimizer

    fabric, model, optimizer = start()
    learn(model, optimizer, data(), fabric.backward)
    fabric.save(tmp_path / "run.ckpt", {"model": model, "optimizer": optimizer})
    fabric, model, optimizer = start()
    fabric.load(tmp_path / "run.ckpt", {"model": model, "optimizer": optimizer})
    learn(model, optimizer, data(), fabric.backward)
    assert same(model, alone(2))
