"""Loggers, told by their methods: real TensorBoard, and stand-ins for the others."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import biofx
from biofx.integrations.logging import log
from biofx.plasticity import GradScheduler


def trained() -> GradScheduler:
    torch.manual_seed(0)
    model = biofx.transform(nn.Sequential(nn.Linear(200, 100), nn.ReLU(), nn.Linear(100, 2)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = GradScheduler(model, optimizer)
    model(torch.randn(4, 200)).square().sum().backward()
    optimizer.step()
    return scheduler


def test_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    scheduler = trained()
    writer = SummaryWriter(str(tmp_path))
    log(scheduler, writer, 7)
    log(scheduler, writer, 8, histograms=False)
    writer.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    found = events.Scalars("plasticity/0/factor_mean")
    assert [one.step for one in found] == [7, 8]
    assert found[0].value == pytest.approx(scheduler.scalars()["plasticity/0/factor_mean"])
    histograms = events.Histograms("plasticity/0/factors")
    assert [one.step for one in histograms] == [7]
    assert 0.84 <= histograms[0].histogram_value.min <= histograms[0].histogram_value.max <= 1.16
    assert set(events.Tags()["histograms"]) == {"plasticity/0/factors", "plasticity/2/factors"}


class Histogram:
    def __init__(self, np_histogram: Any) -> None:
        self.counts, self.edges = np_histogram


class WandbLike:
    Histogram = Histogram

    def __init__(self) -> None:
        self.calls: list[tuple[dict[str, Any], int]] = []

    def log(self, content: dict[str, Any], step: int) -> None:
        self.calls.append((content, step))


def test_weights_and_biases() -> None:
    scheduler, writer = trained(), WandbLike()
    log(scheduler, writer)
    (content, step) = writer.calls[0]
    assert step == 1
    assert content["plasticity/2/factor_std"] == scheduler.scalars()["plasticity/2/factor_std"]
    histogram = content["plasticity/2/factors"]
    assert sum(histogram.counts) == 200
    assert len(histogram.edges) == len(histogram.counts) + 1
    assert sum(content["plasticity/0/factors"].counts) <= 16_384


class MlflowLike:
    def __init__(self) -> None:
        self.metrics: dict[str, float] = {}
        self.files: dict[str, Any] = {}

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        self.metrics = metrics
        self.step = step

    def log_dict(self, content: Any, path: str) -> None:
        self.files[path] = content


def test_mlflow() -> None:
    scheduler, writer = trained(), MlflowLike()
    log(scheduler, writer, 12)
    assert writer.metrics == scheduler.scalars()
    assert writer.step == 12
    assert sum(writer.files["plasticity/2/factors/00000012.json"]["counts"]) == 200


def test_before_the_first_step_there_are_no_factors() -> None:
    model = biofx.transform(nn.Sequential(nn.Linear(2, 2)))
    scheduler = GradScheduler(model, torch.optim.SGD(model.parameters(), lr=0.1))
    writer = MlflowLike()
    log(scheduler, writer)
    assert not any("factor" in name for name in writer.metrics)


@pytest.mark.parametrize("writer", [None, 3, object(), "runs"])
def test_what_cannot_log_is_refused(writer: Any) -> None:
    with pytest.raises(biofx.PlasticityError, match="has none of the methods add_scalar"):
        log(trained(), writer)
    with pytest.raises(biofx.PlasticityError, match="expected a GradScheduler"):
        log(writer, WandbLike())
