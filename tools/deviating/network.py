"""Deviations that show when a network trains."""

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from bio_transformations import BioConverter as Package
from sklearn.datasets import load_digits
from torch import Tensor, nn

import biofx
from biofx.plasticity import FuzzyLearningRates, Rejuvenate, Schedule
from deviating.entry import Entry, Measured

STEPS = 200
TASKS, TASK_STEPS, BATCH, SEEDS = 5, 150, 32, 2


def data() -> tuple[Tensor, Tensor]:
    digits = load_digits()
    return torch.tensor(digits.data / 16, dtype=torch.float32), torch.tensor(digits.target)


def network(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    layers = [nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10)]
    return nn.Sequential(*layers)


def trained(model: nn.Module, optimizer: torch.optim.Optimizer, manual: bool = False) -> Tensor:
    """Weights, as one vector, after training on digits; batches are the same in every call."""
    pixels, labels = data()
    order = torch.Generator().manual_seed(0)
    for _ in range(STEPS):
        batch = torch.randint(len(labels), (BATCH,), generator=order)
        optimizer.zero_grad()
        F.cross_entropy(model(pixels[batch]), labels[batch]).backward()
        if manual:
            model.fuzzy_learning_rates()
        optimizer.step()
    return torch.cat([p.detach().flatten() for p in model.parameters() if p.requires_grad])


def adam() -> Measured:
    start = network(0)
    origin = torch.cat([p.detach().flatten() for p in start.parameters()])
    found = {}
    for name, make in (
        ("SGD", lambda p: torch.optim.SGD(p, lr=0.1)),
        ("Adam", lambda p: torch.optim.Adam(p, lr=1e-3)),
    ):
        model = copy.deepcopy(start)
        plain = trained(model, make(model.parameters()))
        distance = (plain - origin).norm()

        def relative(weights: Tensor, plain: Tensor = plain, distance: Tensor = distance) -> str:
            return f"{float((weights - plain).norm() / distance):.1e}"

        torch.manual_seed(1)
        net = Package()(copy.deepcopy(start))
        chosen = [p for p in net.parameters() if p.requires_grad]
        package = trained(net, make(chosen), manual=True)
        bio = biofx.transform(copy.deepcopy(start))
        optimizer = make(bio.parameters())
        biofx.GradScheduler(bio, optimizer, rules=[FuzzyLearningRates()])
        found[name] = relative(package), relative(trained(bio, optimizer))
    first = {name: one_step(start, name) for name in ("SGD", "Adam")}
    text = "one step: SGD {}, Adam {}; " + f"{STEPS} steps: " + "SGD {}, Adam {}"
    return Measured(
        *(
            text.format(*(first[n][side] for n in first), *(found[n][side] for n in found))
            for side in (0, 1)
        )
    )


def one_step(start: nn.Module, name: str) -> tuple[str, str]:
    """The same for a single step, where no feedback through the network adds to it."""
    pixels, labels = data()
    make = {"SGD": lambda p: torch.optim.SGD(p, lr=0.1), "Adam": torch.optim.Adam}[name]

    def moved(model: nn.Module, manual: bool, rules: bool) -> Tensor:
        chosen = [p for p in model.parameters() if p.requires_grad]
        before = torch.cat([p.detach().flatten() for p in chosen])
        optimizer = make(chosen)
        if rules:
            biofx.GradScheduler(model, optimizer, rules=[FuzzyLearningRates()])
        F.cross_entropy(model(pixels[:BATCH]), labels[:BATCH]).backward()
        if manual:
            model.fuzzy_learning_rates()
        optimizer.step()
        return torch.cat([p.detach().flatten() for p in chosen]) - before

    plain = moved(copy.deepcopy(start), False, False)
    package = moved(Package()(copy.deepcopy(start)), True, False)
    ours = moved(biofx.transform(copy.deepcopy(start)), False, True)
    return tuple(f"{float((m - plain).norm() / plain.norm()):.1e}" for m in (package, ours))


Step = Callable[[int], None]


def online(attach: Callable[[nn.Sequential, torch.optim.Optimizer], Step | None]) -> float:
    """Accuracy on each batch before it is learned, on digits whose pixels are permuted anew.

    The mean over the second half of each task, over all tasks and seeds.
    """
    pixels, labels = data()
    right = total = 0
    for seed in range(SEEDS):
        model = network(seed)
        optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
        after = attach(model, optimizer)
        draw = torch.Generator().manual_seed(seed)
        for step in range(TASKS * TASK_STEPS):
            if step % TASK_STEPS == 0:
                permuted = pixels[:, torch.randperm(64, generator=draw)]
            batch = torch.randint(len(labels), (BATCH,), generator=draw)
            logits = model(permuted[batch])
            if step % TASK_STEPS >= TASK_STEPS // 2:
                right += int((logits.argmax(1) == labels[batch]).sum())
                total += BATCH
            optimizer.zero_grad()
            F.cross_entropy(logits, labels[batch]).backward()
            optimizer.step()
            if after is not None:
                after(step)
    return right / total


def too_often() -> Measured:
    def package(model: nn.Sequential, optimizer: torch.optim.Optimizer) -> Step:
        net = Package()(model)
        return lambda step: net.rejuvenate_weights()

    def ours(**settings: Any) -> Callable[[nn.Sequential, torch.optim.Optimizer], None]:
        def attach(model: nn.Sequential, optimizer: torch.optim.Optimizer) -> None:
            bio = biofx.transform(model)
            biofx.GradScheduler(bio, optimizer, rules=[Rejuvenate(**settings)])

        return attach

    plain = online(lambda model, optimizer: None)
    numbers = {
        "every step": online(ours()),
        'every step, `rejuvenate_law="lognormal"`': online(ours(law="lognormal")),
        "every 50 steps": online(ours(schedule=Schedule(every=50))),
        "every step, at most 0.1 % of a layer": online(ours(max_share=0.001)),
        "every 50 steps, at most 0.1 %": online(ours(max_share=0.001, schedule=Schedule(every=50))),
    }
    listed = "; ".join(f"{name}: {value:.1%}" for name, value in numbers.items())
    return Measured(
        f"plain Adam, without rejuvenation: {plain:.1%}; every step: {online(package):.1%}",
        listed,
    )


ENTRIES = [
    Entry("adam", "Scaled gradients under Adam", "Distance between the weights trained with fuzzy "
          "learning rates (ν = 0.16) and those trained without, relative to the distance that "
          "plain training moves them. Factors of relative size ν/√3 = 0.09 should show as that. "
          "The package scales gradients, which Adam divides out again; biofx scales updates. Over "
          "many steps rounding differences grow, which is why one step is shown too.", adam),
    Entry("too-often", "Rejuvenation applied too often", "Online accuracy under Adam on "
          f"scikit-learn's digits, {TASKS} tasks of {TASK_STEPS} batches of {BATCH}, each with its "
          "own permutation of the pixels: each batch is classified before it is learned; second "
          f"halves of the tasks, {SEEDS} seeds. The paper's law, applied often, destroys what Adam "
          "has learned; `rejuvenate_max_share` caps the share replaced per call.", too_often),
]  # fmt: skip
