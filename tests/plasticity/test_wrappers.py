"""Models inside the wrappers of other libraries, and weights that are no plain numbers."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn, optim

import biofx
from biofx.plasticity import GradScheduler
from biofx.synapses import COUNTS

from .table import make


class PerSample(nn.Module):
    """Holds the model as Opacus does."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._module = module

    def forward(self, x: Tensor) -> Any:
        return self._module(x)


class Adapters(nn.Module):
    """Holds the model deep inside, as PEFT does."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.base_model = nn.ModuleDict({"model": model})

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "base_model":
                raise
            return getattr(self.base_model["model"], name)


def test_a_wrapper_that_calls_the_model() -> None:
    bio = make()
    wrapped = PerSample(bio)
    optimizer = optim.SGD(wrapped.parameters(), lr=0.1)
    scheduler = GradScheduler(wrapped, optimizer)
    wrapped(torch.ones(1, 3, 6, 6)).sum().backward()
    optimizer.step()
    assert scheduler.steps == [1]
    assert biofx.info(wrapped).synapses == biofx.info(bio).synapses


def test_a_wrapper_that_changes_the_model() -> None:
    wrapped = Adapters(make())
    with pytest.raises(
        biofx.ModelError, match=r"Adapters holds .*at base_model\.model.*apply it first and trans"
    ):
        GradScheduler(wrapped, optim.SGD(wrapped.parameters(), lr=0.1))
    with pytest.raises(biofx.ModelError, match=r"Linear was not made by biofx\.transform"):
        biofx.info(nn.Linear(2, 2))


@pytest.mark.filterwarnings("ignore:FSDP is switching:UserWarning")
def test_parameters_that_are_flattened(tmp_path: Path) -> None:
    from torch.distributed.fsdp import FullyShardedDataParallel

    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        flat = FullyShardedDataParallel(make(), use_orig_params=True, device_id=torch.device("cpu"))
        with pytest.raises(biofx.PlasticityError, match=r"use torch\.distributed\.fsdp\.fully"):
            GradScheduler(flat, optim.SGD(flat.parameters(), lr=0.1))
    finally:
        dist.destroy_process_group()


class Quantised(Tensor):
    """A tensor of which only some operations are known."""


def test_weights_of_few_bits_are_left_alone() -> None:
    bio = make()
    fc: Any = bio.get_submodule("fc")
    fc.weight = nn.Parameter(fc.weight.detach().as_subclass(Quantised))  # type: ignore[arg-type]
    optimizer = optim.SGD(bio.parameters(), lr=0.1)
    with pytest.warns(UserWarning, match=r"fc\.weight: its weights are a Quantised.*left alone"):
        scheduler = GradScheduler(bio, optimizer)
    for parameter in bio.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert "fc.weight" not in scheduler.metrics()
    assert "conv.weight" in scheduler.metrics()


class Language(nn.Module):
    """A tied embedding and output layer."""

    def __init__(self, words: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, width)
        self.head = nn.Linear(width, words, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.embedding(x))
        return y


@pytest.mark.parametrize("words", [24, 8], ids=["", "square"])
def test_activity_of_tied_weights(words: int) -> None:
    """The layer counts whose output units are the parameter's: features, not words."""
    config = biofx.BioConfig(fuzzy_lr_distribution="activity", fuzzy_lr_dynamic=True)
    torch.manual_seed(0)
    bio = biofx.transform(Language(words, 8), config)
    (synapses,) = biofx.info(bio).synapses.values()
    optimizer = optim.AdamW(bio.parameters())
    scheduler = GradScheduler(bio, optimizer)
    x = torch.randint(words, (3, 5))
    expected = (bio.get_submodule("embedding")(x).abs() > 0.01).sum((0, 1)).float()
    bio.get_buffer(f"embedding.{COUNTS}").zero_()
    bio(x).square().mean().backward()
    optimizer.step()
    state = scheduler.state_dict()["state"]["FuzzyLearningRates"][synapses.parameter]
    assert synapses.post_axis == 1
    assert torch.equal(state["counts"], expected)
    # A layer that cannot count is refused, by its name.
    silent = make(
        {
            "fuzzy_lr_distribution": "activity",
            "overrides": {"fc": {"fuzzy_lr_distribution": "uniform"}},
        }
    )
    rule = biofx.plasticity.FuzzyLearningRates(distribution="activity", only="fc.*")
    with pytest.raises(biofx.PlasticityError, match=r"fc\.weight: its layer fc .*does not count"):
        GradScheduler(silent, optim.SGD(silent.parameters(), lr=0.1), rules=[rule])
