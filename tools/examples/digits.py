"""A small convolutional network for 8 × 8 grey-scale digits; plain PyTorch, no biofx in it."""

import torch.nn.functional as F
from torch import Tensor, nn


class DigitNet(nn.Module):
    """(N, 1, 8, 8) pixels in [0, 1] → (N, 10) logits."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        self.hidden = nn.Linear(32 * 4 * 4, 64)
        self.classify = nn.Linear(64, 10)

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.features(pixels).flatten(1)
        x = F.dropout(F.relu(self.hidden(x)), 0.25, self.training)
        return self.classify(x)
