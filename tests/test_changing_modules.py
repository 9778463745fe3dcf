"""Modules that a run changes: their hash, the shape of their buffers."""

import torch
from torch import Tensor, nn

import biofx


class Metric(nn.Module):
    """Its hash is that of its state, as those of torchmetrics have it."""

    def __init__(self) -> None:
        super().__init__()
        self.total = torch.zeros(())

    def __hash__(self) -> int:
        return hash((type(self).__name__, id(self.total)))

    def forward(self, x: Tensor) -> Tensor:
        self.total = self.total + x.detach().sum()
        return self.total


class Measured(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.metric = nn.Linear(4, 4), Metric()

    def forward(self, x: Tensor) -> Tensor:
        y = self.fc(x)
        self.metric(y)
        return self.fc(y)


def test_a_hash_may_change() -> None:
    model, x = Measured(), torch.randn(3, 4)
    bio = biofx.transform(model, example_inputs=x)
    assert torch.equal(bio(x), model(x))
    assert any("metric.total" in a.what for a in biofx.info(bio).assumptions)
    biofx.verify(bio, model, x)
