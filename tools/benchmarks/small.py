"""Goal 6: whole training steps of the networks that are trained for millions of steps."""

import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import biofx
from benchmarks.models import mlp
from benchmarks.report import Goal, Report, Table, milliseconds, times
from benchmarks.timing import Effort
from biofx.plasticity import (
    Crystallize,
    DalesPrinciple,
    FuzzyLearningRates,
    Rejuvenate,
    Rule,
    Schedule,
    VolumeDependentRates,
)
from biofx.plasticity.kernels.compiled import can_compile


class Decoder(nn.Module):
    """A small GPT: pre-norm blocks, learned positions."""

    def __init__(self, width: int = 128, layers: int = 12, words: int = 256, length: int = 64):
        super().__init__()
        self.words = nn.Embedding(words, width)
        self.places = nn.Parameter(torch.randn(length, width) * 0.02)
        self.blocks = nn.ModuleList(DecoderBlock(width) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, words)

    def forward(self, x: Tensor) -> Tensor:
        x = self.words(x) + self.places
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)).flatten(0, 1)


class DecoderBlock(nn.Module):
    def __init__(self, width: int, heads: int = 4):
        super().__init__()
        self.heads = heads
        self.before, self.after = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.qkv(self.before(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(*parts.unbind(), is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.after(x))))


def conv() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(32 * 49, 10),
    )  # fmt: skip


@dataclass(frozen=True)
class Small:
    """A network, the shape of its batches, and the classes of its outputs (None: regression)."""

    name: str
    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    classes: int | None

    def batch(self) -> tuple[Tensor, Tensor]:
        if self.make is Decoder:
            words = torch.randint(self.classes or 1, self.shape)
            return words, words.roll(-1, 1).flatten()
        x = torch.randn(self.shape)
        return x, torch.randn(len(x), 1) if self.classes is None else torch.randint(10, (len(x),))

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        return (
            F.mse_loss(output, target) if self.classes is None else F.cross_entropy(output, target)
        )


MODELS = (
    Small("MLP 20-5-1, batch 16", lambda: mlp(20, 5, 1), (16, 20), None),
    Small("MLP 784-100-100-10, batch 16", lambda: mlp(784, 100, 100, 10), (16, 784), 10),
    Small("20 layers of 64×64, batch 32", lambda: mlp(*[64] * 20, 10), (32, 64), 10),
    Small("conv 16-32, 28×28, batch 16", conv, (16, 1, 28, 28), 10),
    Small("GPT, 12 layers of width 128, batch 4×64", Decoder, (4, 64), 256),
)  # fmt: skip
QUICKLY = MODELS[:1]


def every(steps: int) -> Schedule:
    return Schedule(every=steps)


SETTINGS: dict[str, Callable[[], list[Rule]]] = {
    "fuzzy": lambda: [FuzzyLearningRates()],
    "as people set it": lambda: [
        FuzzyLearningRates(),
        VolumeDependentRates(base=1.0),
        Crystallize(schedule=every(10)),
        Rejuvenate(max_share=0.01, schedule=every(100)),
        DalesPrinciple(),
    ],
    "all at every step": lambda: [
        FuzzyLearningRates(),
        VolumeDependentRates(base=1.0),
        Crystallize(),
        Rejuvenate(max_share=0.01),
        DalesPrinciple(),
    ],
}
# At most so many times the plain step: (compiled, without a compiler)
BOUNDS = {
    ("fuzzy", "SGD"): (1.15, 1.5),
    ("fuzzy", "AdamW"): (1.15, 1.5),
    ("as people set it", "SGD"): (1.5, 2.5),
    ("as people set it", "AdamW"): (1.5, 2.5),
    ("all at every step", "SGD"): (2.2, 5.0),
    ("all at every step", "AdamW"): (1.7, 5.0),
}
OPTIMIZERS = {"SGD": torch.optim.SGD, "AdamW": torch.optim.AdamW}
# A step of each kind and how often it comes, of 100, by the steps at which rules act.
KINDS = {"every": 90, "every 10": 9, "every 100": 1}
TURN = 10


class Training:
    """One network in training, a step at a time."""

    def __init__(
        self, case: Small, optimizer: str, rules: list[Rule] | None = None, compile: Any = False
    ):
        torch.manual_seed(0)
        self.case = case
        self.model = case.make()
        self.batch = case.batch()
        if rules is not None:
            self.model = biofx.transform(self.model, example_inputs=(self.batch[0],))
        self.optimizer = OPTIMIZERS[optimizer](self.model.parameters(), lr=1e-4)
        if rules is not None:
            self.scheduler = biofx.GradScheduler(
                self.model, self.optimizer, rules=rules, compile=compile
            )
        self.steps = 0

    def __call__(self) -> float:
        """Seconds of one whole training step."""
        x, target = self.batch
        start = time.perf_counter()
        self.optimizer.zero_grad()
        self.case.loss(self.model(x), target).backward()
        self.optimizer.step()
        self.steps += 1
        return time.perf_counter() - start

    @property
    def kind(self) -> str:
        """Of the step just taken."""
        return next((f"every {n}" for n in (100, 10) if self.steps % n == 0), "every")


def costs(trainings: dict[str, Training], effort: Effort) -> dict[str, float]:
    """Seconds of a step: medians over turns of ten, those of each kind weighted.

    The first two of each turn are not counted: they find what the others have left in the caches.
    """
    taken: dict[str, dict[str, list[float]]] = {name: defaultdict(list) for name in trainings}
    steps = 100 if effort.quick else 600
    for training in trainings.values():
        for _ in range(100):  # whatever is done for the first time
            training()
    start = time.perf_counter()
    while steps > 0 and time.perf_counter() - start < 8 * effort.seconds:
        for _ in range(100 // TURN):
            for name, training in trainings.items():
                for place in range(TURN):
                    seconds = training()
                    if place > 1:
                        taken[name][training.kind].append(seconds)
        steps -= 100
    return {
        name: sum(share * statistics.median(kinds[kind]) for kind, share in KINDS.items()) / 100
        for name, kinds in taken.items()
    }


def small(effort: Effort) -> Report:
    """Ratios to the plain step of the same optimizer."""
    report = Report()
    columns = ["model", "rules", "SGD, compiled", "SGD, eager", "AdamW, compiled", "AdamW, eager"]
    table = Table("A whole training step of small networks, by that of plain training", columns)
    kernels = (True, False) if can_compile(torch.device("cpu")) else (False,)
    plain = []
    for case in QUICKLY if effort.quick else MODELS:
        trainings = {}
        for optimizer in OPTIMIZERS:
            trainings[optimizer] = Training(case, optimizer)
            for name, rules in SETTINGS.items():
                for compile in kernels:
                    key = f"{optimizer}, {name}, {compile}"
                    trainings[key] = Training(case, optimizer, rules(), compile)
        found = costs(trainings, effort)
        plain.append(f"{case.name}: {' and '.join(milliseconds(found[o]) for o in OPTIMIZERS)}")
        for name in SETTINGS:
            cells = []
            for optimizer in OPTIMIZERS:
                for compile, bound in zip((True, False), BOUNDS[name, optimizer], strict=True):
                    seconds = found.get(f"{optimizer}, {name}, {compile}")
                    ratio = None if seconds is None else seconds / found[optimizer]
                    how = "compiled" if compile else "eager"
                    cells.append(times(ratio))
                    report.goals.append(
                        Goal(6, f"{case.name}: {optimizer}, {name}, {how}", ratio, bound)
                    )
            table.rows.append([case.name, name, *cells])
    table.note = (
        "Plain training, milliseconds a step under SGD and AdamW: " + "; ".join(plain) + ". As "
        "people set it: fuzzy, volume and Dale at every step, crystallize every 10, rejuvenate "
        "with `max_share=0.01` every 100. The columns take turns of ten steps in a row, of which "
        "the last eight count; of steps 10 and 100 and the others medians are taken apart, and "
        "weighted by how often they come."
    )
    report.tables.append(table)
    return report
