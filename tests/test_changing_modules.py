"""Modules that a run changes: their hash, the shape of their buffers."""

from pathlib import Path

import pytest
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


class Remembering(nn.Module):
    """A state that is empty until a batch has told its size, as in spiking networks."""

    state: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.register_buffer("state", torch.zeros(0), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.state.shape != x.shape:
            self.state = torch.zeros_like(x)
        decay = max([0.5], default=0.5)  # which TorchScript does not compile
        self.state = self.state * decay + self.fc(x).detach()
        return self.fc(self.state)


def test_a_hash_may_change() -> None:
    model, x = Measured(), torch.randn(3, 4)
    bio = biofx.transform(model, example_inputs=x)
    assert torch.equal(bio(x), model(x))
    assert any("metric.total" in a.what for a in biofx.info(bio).assumptions)
    biofx.verify(bio, model, x)


def test_a_trace_that_would_keep_a_state_is_refused(tmp_path: Path) -> None:
    bio = biofx.transform(Remembering(), example_inputs=torch.randn(3, 4)).eval()
    with pytest.raises(biofx.ExportError, match="a buffer another shape"):
        biofx.export(bio, tmp_path / "model.pt", example_inputs=torch.randn(3, 4))
