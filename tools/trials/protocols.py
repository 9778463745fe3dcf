"""What is done in one trial: each protocol takes a condition and a seed, and gives numbers."""

import math
from contextlib import nullcontext
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import biofx
from biofx.plasticity import Context, GradScheduler, Rule
from biofx.plasticity.scheduler import newborns
from trials.data import Images, halves
from trials.learner import OFF, Condition, Learner, mlp

BATCH = 16
HIDDEN = 100
BIRTH = 3000


def permuted(images: Images, condition: Condition, seed: int, *, tasks: int) -> dict[str, Any]:
    """Tasks are permutations of the pixels; each batch is classified before it is learned.

    Digits are seen twice per task (225 steps), larger sets once, at most 10,000 images.
    """
    draws = torch.Generator().manual_seed(seed)
    pixels = images.x.shape[1]
    learner = Learner(lambda: mlp((pixels, HIDDEN, HIDDEN, 10)), images.x[:BATCH], condition, seed)
    passes = 2 if len(images.y) < 5000 else 1
    accuracy = []
    for _ in range(tasks):
        order = torch.randperm(pixels, generator=draws)
        rows = torch.cat(
            [torch.randperm(len(images.y), generator=draws)[:10_000] for _ in range(passes)]
        )
        x, y = images.x[rows][:, order], images.y[rows]
        right = torch.zeros((), dtype=torch.int64)
        for start in range(0, len(rows), BATCH):
            right += learner.learn(x[start : start + BATCH], y[start : start + BATCH])
        accuracy.append(int(right) / len(rows))
    return {"tasks": accuracy, "silent": learner.silent(images.x)}


def labels(
    images: Images, condition: Condition, seed: int, *, tasks: int, count: int, epochs: int
) -> dict[str, Any]:
    """Each task gives the same images new random labels; accuracy in the task's last epoch."""
    draws = torch.Generator().manual_seed(seed)
    pixels = images.x.shape[1]
    learner = Learner(lambda: mlp((pixels, HIDDEN, HIDDEN, 10)), images.x[:BATCH], condition, seed)
    x = images.x[torch.randperm(len(images.y), generator=draws)[:count]]
    accuracy = []
    for _ in range(tasks):
        y = torch.randint(0, 10, (len(x),), generator=draws)
        for _ in range(epochs):
            rows = torch.randperm(len(x), generator=draws)
            right = torch.zeros((), dtype=torch.int64)
            for part in rows.split(BATCH):
                right += learner.learn(x[part], y[part])
        accuracy.append(int(right) / len(x))
    return {"tasks": accuracy, "silent": learner.silent(images.x)}


def train(learner: Learner, data: Images, steps: int, batch: int, draws: torch.Generator) -> None:
    """Train for some steps on shuffled passes over the data."""
    rows = torch.empty(0, dtype=torch.int64)
    for _ in range(steps):
        if len(rows) < batch:
            rows = torch.cat([rows, torch.randperm(len(data.y), generator=draws)])
        part, rows = rows[:batch], rows[batch:]
        learner.learn(data.x[part], data.y[part])


def deep(images: Images, condition: Condition, seed: int, *, layers: int) -> dict[str, Any]:
    """A deep ReLU network of width 128 with He's initialisation, 300 steps of batch 32."""
    data, test = halves(images, len(images.y) * 3 // 4)
    width = int(128 * condition.width)
    sizes = (images.x.shape[1], *[width] * (layers - 1), 10)
    learner = Learner(lambda: mlp(sizes, he=True), images.x[:BATCH], condition, seed)
    train(learner, data, 300, 32, torch.Generator().manual_seed(seed))
    return {"accuracy": learner.accuracy(test.x, test.y)}


def static(
    images: Images, condition: Condition, seed: int, *, count: int, steps: int
) -> dict[str, Any]:
    """One task: train on some images, test on the others."""
    data, test = halves(images, count)
    sizes = (images.x.shape[1], HIDDEN, HIDDEN, 10)
    learner = Learner(lambda: mlp(sizes), images.x[:BATCH], condition, seed)
    train(learner, data, steps, min(32, count), torch.Generator().manual_seed(seed))
    return {"accuracy": learner.accuracy(test.x, test.y)}


def damage(images: Images, condition: Condition, seed: int, *, reach: float) -> dict[str, Any]:
    """Train until a training accuracy is reached, then set a share of the synapses to 0."""
    data, test = halves(images, len(images.y) * 3 // 4)
    width = int(HIDDEN * condition.width)
    sizes = (images.x.shape[1], width, width, 10)
    learner = Learner(lambda: mlp(sizes), images.x[:BATCH], condition, seed)
    draws = torch.Generator().manual_seed(seed)
    for _ in range(200):
        if learner.accuracy(data.x, data.y) >= reach:
            break
        train(learner, data, 20, BATCH, draws)
    found: dict[str, Any] = {"0": learner.accuracy(test.x, test.y)}
    weights = [p for p in learner.model.parameters() if p.dim() > 1]
    found["synapses"] = sum(p.numel() for p in weights)
    whole = [p.detach().clone() for p in weights]
    for share in (0.5, 0.7):
        kept = [torch.rand(p.shape, generator=draws) >= share for p in weights]
        with torch.no_grad():
            for parameter, mask, value in zip(weights, kept, whole, strict=True):
                parameter.copy_(value * mask)
        found[f"{share:g}"] = learner.accuracy(test.x, test.y)
    return found


class Born(Rule):
    """Replaces one half of the synapses at one step."""

    replaces = True

    def after_step(self, context: Context) -> Tensor | None:
        if context.step != BIRTH:
            return None
        mask = context.uniform("born") < 0.5
        fresh = 0.1 * context.normal("new")
        context.weight.copy_(torch.where(mask, fresh, context.weight))
        return mask


def born(images: Images, condition: Condition, seed: int, *, corrected: bool) -> dict[str, Any]:
    """Root mean square of |Δw|/lr of new synapses at their first 60 steps, constant gradient."""
    lr = 1e-3
    torch.manual_seed(seed)
    bio = biofx.transform(nn.Sequential(nn.Linear(64, 64, bias=False)), biofx.BioConfig(**OFF))
    weight = bio.get_parameter("0.weight")
    optimizer = torch.optim.Adam([weight], lr=lr)
    off = mock.patch.object(newborns, "law_of", return_value=None)
    with nullcontext() if corrected else off:
        GradScheduler(bio, optimizer, rules=[Born()], seed=seed)
    draws = torch.Generator().manual_seed(seed)
    moves, mask, way = [], None, None
    for step in range(1, BIRTH + 61):
        noise = torch.randn(weight.shape, generator=draws)
        weight.grad = noise if step <= BIRTH else torch.full_like(weight, 0.3)
        before = weight.detach().clone()
        optimizer.step()
        moved = (weight.detach() - before) / lr
        if step == BIRTH:
            mask = moved.abs() > 5
        elif mask is not None:
            moves.append(float(moved[mask].square().mean().sqrt()))
            way = moved[mask] if way is None else way + moved[mask]
    return {"moves": moves, "way": float(way.abs().mean())}


class Small(nn.Module):
    """A residual network of seven convolutions for images of 8 × 8 pixels or more."""

    def __init__(self, side: int, width: int = 16) -> None:
        super().__init__()
        self.side = side
        self.stem = nn.Conv2d(1, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.first = nn.ModuleList(_convolutions(width) for _ in range(3))
        self.fc = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x.view(-1, 1, self.side, self.side))))
        for block in self.first:
            x = F.relu(x + block(x))
        return self.fc(x.mean((2, 3)))


def _convolutions(width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(width, width, 3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Conv2d(width, width, 3, padding=1, bias=False),
        nn.BatchNorm2d(width),
    )


def paper(
    images: Images, condition: Condition, seed: int, *, net: str, epochs: int
) -> dict[str, Any]:
    """The paper's training at the size of the data: SGD, batch 100."""
    data, test = halves(images, len(images.y) * 3 // 4)
    pixels = images.x.shape[1]
    make = {
        "FCNet": lambda: mlp((pixels, 1000, 10)),
        "ResNet": lambda: Small(images.side),
    }[net]
    learner = Learner(make, images.x[:BATCH], condition, seed)
    steps = epochs * math.ceil(len(data.y) / 100)
    train(learner, data, steps, 100, torch.Generator().manual_seed(seed))
    return {"accuracy": learner.accuracy(test.x, test.y)}


PROTOCOLS = {
    "permuted": permuted,
    "labels": labels,
    "deep": deep,
    "static": static,
    "damage": damage,
    "born": born,
    "paper": paper,
}
