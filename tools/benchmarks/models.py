"""The models that are measured, and the seed's package where it is installed."""

import copy
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def mlp(*widths: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class Block(nn.Module):
    """The basic residual block of He et al. 2016."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        self.shortcut = nn.Sequential()
        if stride != 1 or before != after:
            self.shortcut = nn.Sequential(
                nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


def resnet18(classes: int = 10) -> nn.Sequential:
    stages = [
        Block(before, after, stride)
        for before, after, stride in (
            (64, 64, 1), (64, 64, 1), (64, 128, 2), (128, 128, 1),
            (128, 256, 2), (256, 256, 1), (256, 512, 2), (512, 512, 1),
        )
    ]  # fmt: skip
    stem = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, classes)]
    return nn.Sequential(*stem, nn.MaxPool2d(3, 2, 1), *stages, *head)


def vgg(*, norm: bool = True, classes: int = 10) -> nn.Sequential:
    """Eight convolutions in the manner of Simonyan and Zisserman 2015, for 32×32 images."""
    layers: list[nn.Module] = []
    before = 3
    for width in (64, 128, 256, 512):
        for _ in range(2):
            layers.append(nn.Conv2d(before, width, 3, padding=1))
            layers += [nn.BatchNorm2d(width)] if norm else []
            layers.append(nn.ReLU())
            before = width
        layers.append(nn.MaxPool2d(2))
    layers += [nn.Flatten(), nn.Linear(512 * 4, 512), nn.ReLU(), nn.Dropout(0.5)]
    return nn.Sequential(*layers, nn.Linear(512, classes))


@dataclass(frozen=True)
class Case:
    """A model and the shape of its batches."""

    name: str
    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    classes: int
    bound_all: float = 0.2
    bound_rejuvenate: float = 0.15

    def batch(self) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(0)
        labels = torch.randint(self.classes, self.shape[:1], generator=generator)
        return torch.randn(self.shape, generator=generator), labels


SMALL = Case(
    "MLP 784-1000-10, batch 100", lambda: mlp(784, 1000, 10), (100, 784), 10, 0.3, 0.3
)  # fmt: skip
LARGE = Case(
    "MLP 3072-3000-3000-100, batch 100",
    lambda: mlp(3072, 3000, 3000, 100),
    (100, 3072),
    100,
)
RESNET = Case("ResNet-18, 64×64, batch 16", resnet18, (16, 3, 64, 64), 10)
TINY = Case("MLP 16-16-4, batch 8", lambda: mlp(16, 16, 4), (8, 16), 4)
# Whose parameters share an arena.
TOGETHER = Case("MLP 784-100-100-10, batch 16", lambda: mlp(784, 100, 100, 10), (16, 784), 10)
CASES = {"small": SMALL, "large": LARGE, "resnet": RESNET, "together": TOGETHER, "tiny": TINY}


def seed_available() -> bool:
    return importlib.util.find_spec("bio_transformations") is not None


def seed_convert(model: nn.Module, **settings: Any) -> nn.Module:
    """A copy of the model, converted by the seed's package."""
    from bio_transformations import BioConverter

    converted: nn.Module = BioConverter(**settings)(copy.deepcopy(model))
    return converted
