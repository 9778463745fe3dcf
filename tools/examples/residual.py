"""A small residual network with something of everything that a diff can show; plain PyTorch."""

import torch.nn.functional as F
from torch import Tensor, nn


class Block(nn.Module):
    """Two convolutions and a way around them."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(x + self.norm2(self.conv2(y)))


class Gate(nn.Module):
    """Asks the data what to do, which no graph can hold: it stays Python."""

    def __init__(self, units: int) -> None:
        super().__init__()
        self.excite = nn.Linear(units, units)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.excite(x).sigmoid() if x.mean() > 0 else x


class ResidualNet(nn.Module):
    """(N, 3, H, W) images → (N, 10) logits; the stem is frozen, as after pre-training."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, padding=1).requires_grad_(False)
        self.blocks = nn.Sequential(Block(32), Block(32), Block(32))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.gate = Gate(32)
        self.drop = nn.Dropout(0.2)
        self.classify = nn.Linear(32, 10)

    def forward(self, images: Tensor, mask: Tensor | None = None) -> Tensor:
        x = F.relu(self.stem(images))
        if mask is not None:
            x = x * mask
        x = self.pool(self.blocks(x)).flatten(1)
        return self.classify(self.drop(self.gate(x)))
