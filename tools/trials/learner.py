"""A network in training, through biofx."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import biofx
from biofx.plasticity import Rule

OFF = {"fuzzy_lr_distribution": "baseline"}


@dataclass(frozen=True)
class Condition:
    """One way to train.

    Attributes:
        name: what the page calls it.
        rules: of the scheduler; none is plain training.
        config: fields of `BioConfig`.
        optimizer: class name in `torch.optim`.
        settings: of the optimizer, the learning rate too.
        width: of the hidden layers, relative to the protocol's.
    """

    name: str
    rules: tuple[Rule, ...] = ()
    config: dict[str, Any] = field(default_factory=dict)
    optimizer: str = "Adam"
    settings: dict[str, Any] = field(default_factory=dict)
    width: float = 1.0

    def described(self) -> str:
        """All that makes this condition what it is, for keys of results and for the page."""
        parts = [self.optimizer, *(f"{k}={v:g}" for k, v in sorted(self.settings.items()))]
        parts += [f"{k}={v}" for k, v in sorted(self.config.items())]
        parts += [_rule(rule) for rule in self.rules]
        parts += [f"width×{self.width:g}"] if self.width != 1 else []
        return ", ".join(parts)


def _rule(rule: Rule) -> str:
    shown = {k: v for k, v in vars(rule).items() if v != getattr(type(rule), k, None)}
    schedule = shown.pop("schedule", None)
    text = [f"{k}={v:g}" if isinstance(v, float) else f"{k}={v!r}" for k, v in shown.items()]
    text += [f"every={schedule.every}"] if schedule is not None else []
    return f"{type(rule).__name__}({', '.join(text)})"


def mlp(sizes: Sequence[int], *, he: bool = False) -> nn.Sequential:
    """Linear layers with ReLUs between them, with PyTorch's own initialisation or He's."""
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(sizes):
        layers += [nn.Linear(before, after), nn.ReLU()]
        if he:
            nn.init.kaiming_normal_(layers[-2].weight, nonlinearity="relu")
            nn.init.zeros_(layers[-2].bias)
    return nn.Sequential(*layers[:-1])


class Learner:
    """A model, its optimizer and its scheduler.

    Args:
        make: makes the network, from PyTorch's generator as it is seeded here.
        example: an input.
        condition: how it learns.
        seed: of the initial weights and of the rules.
    """

    def __init__(
        self, make: Callable[[], nn.Module], example: Tensor, condition: Condition, seed: int
    ) -> None:
        torch.manual_seed(seed)
        config = biofx.BioConfig(**{**OFF, **condition.config})
        self.model = biofx.transform(make(), config, example_inputs=example)
        optimizer = getattr(torch.optim, condition.optimizer)
        self.optimizer = optimizer(self.model.parameters(), fused=True, **condition.settings)
        configured = condition.config and set(condition.config) != {"weight_splitting_Gamma"}
        self.scheduler = None
        if condition.rules or configured:
            rules = list(condition.rules) if condition.rules else None
            self.scheduler = biofx.GradScheduler(self.model, self.optimizer, rules=rules, seed=seed)

    def learn(self, x: Tensor, y: Tensor) -> Tensor:
        """One step; how many were right before it, as a tensor of shape ()."""
        logits = self.model(x)
        self.optimizer.zero_grad()
        F.cross_entropy(logits, y).backward()
        self.optimizer.step()
        return (logits.detach().argmax(1) == y).sum()

    @torch.no_grad()
    def accuracy(self, x: Tensor, y: Tensor) -> float:
        """Share of right answers, in evaluation mode."""
        self.model.eval()
        right = float((self.model(x).argmax(1) == y).float().mean())
        self.model.train()
        return right

    def silent(self, x: Tensor) -> float:
        """Share of the first layer's units that are 0 for all of these images."""
        with torch.no_grad():
            first = next(m for m in self.model.modules() if isinstance(m, nn.Linear))
            hidden = F.linear(x, first.weight, first.bias).relu()
            return float((hidden == 0).all(0).float().mean())
