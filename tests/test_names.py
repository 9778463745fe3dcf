"""Attributes of the user's keep their meaning, whatever biofx and FX call things of their own."""

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import biofx

# Names that biofx, or the GraphModule that it makes of a model, has used for something.
NAMES = (
    "_state", "_base", "_mixins", "_private", "_prefix", "_synapses", "synapses", "_unit_axis",
    "activity", "_bundles", "_graph", "_code", "_lineno_map", "_tracer_cls", "_replace_hooks",
    "meta", "shape_env", "graph", "code", "recompile", "_layer_graph", "_layer_forward",
    "_graph_constants", "_graph_runs",
)  # fmt: skip
CONFIGS = (
    biofx.BioConfig(fuzzy_lr_distribution="activity"),
    biofx.BioConfig(weight_splitting_Gamma=2, weight_splitting_mode="expand"),
)


class Own(nn.Linear):
    """A layer with a factor under any name."""

    def __init__(self, name: str, kind: str) -> None:
        super().__init__(8, 8)
        self.name = name
        if kind == "buffer":
            self.register_buffer(name, torch.tensor(2.0))
        else:
            setattr(self, name, {"factor": 2.0})

    def forward(self, x: Tensor) -> Tensor:
        held: Any = getattr(self, self.name)
        return super().forward(x) * (held["factor"] if isinstance(held, dict) else held)


class Holder(nn.Module):
    """A model with such a factor, over a layer with another."""

    def __init__(self, name: str, kind: str) -> None:
        super().__init__()
        self.layer = Own(name, kind)
        self.out = nn.Linear(8, 3)
        self.name = name
        if kind == "buffer":
            self.register_buffer(name, torch.tensor(3.0))
        else:
            setattr(self, name, {"factor": 3.0})

    def forward(self, x: Tensor) -> Tensor:
        held: Any = getattr(self, self.name)
        return self.out(self.layer(x)) * (held["factor"] if isinstance(held, dict) else held)


@pytest.mark.parametrize("kind", ["buffer", "dict"])
@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_biofx_uses_stays_the_users(name: str, kind: str) -> None:
    model, x = Holder(name, kind), torch.randn(4, 8)
    expected = model(x)
    for config in CONFIGS:
        bio = biofx.transform(model, config, example_inputs=x)
        ways = (bio, copy.deepcopy(bio), pickle.loads(pickle.dumps(bio)), biofx.plain(bio))
        for way in ways:
            torch.testing.assert_close(way(x), expected)
        assert isinstance(biofx.info(ways[2]).graph, fx.Graph)
        assert list(bio.state_dict()) == list(model.state_dict())


def test_what_a_graph_reads_from_outside_takes_no_attribute_of_the_users() -> None:
    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)
            self._tensor_constant0 = torch.full((4,), 2.0)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x) * OUTSIDE + self._tensor_constant0

    model, x = Table(), torch.randn(2, 4)
    bio = biofx.transform(model, example_inputs=x)
    assert torch.equal(bio(x), model(x))


OUTSIDE = torch.full((4,), 5.0)


def test_methods_and_guarded_attributes_are_the_users() -> None:
    class Guarded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)
            self.made = True

        def __setattr__(self, name: str, value: Any) -> None:
            if name != "training" and "made" in vars(self):
                raise AttributeError(f"{name} cannot be changed")
            super().__setattr__(name, value)

        def _state(self, x: Tensor) -> Tensor:
            return self.fc(x)

        def forward(self, x: Tensor) -> Tensor:
            return self._state(x).relu()

    model, x = Guarded(), torch.randn(2, 4)
    bio = biofx.transform(model, example_inputs=x)
    assert torch.equal(bio(x), model(x))
    assert torch.equal(biofx.plain(bio)(x), model(x))


def test_a_graph_module_keeps_its_meta() -> None:
    model = fx.symbolic_trace(nn.Sequential(nn.Linear(4, 4), nn.ReLU()))
    model.meta["from"] = "elsewhere"
    assert biofx.transform(model).meta["from"] == "elsewhere"


def test_an_attribute_is_no_global_variable_of_its_name() -> None:
    class Holds(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.GLOBAL = nn.Linear(4, 4)
            self.act = lambda x: self.GLOBAL(x).relu()

        def forward(self, x: Tensor) -> Tensor:
            return self.act(x)

    x = torch.randn(2, 4)
    globals()["GLOBAL"] = model = Holds()  # as in a script: `model = Model()`, and `self.model`
    try:
        assert torch.equal(biofx.transform(model)(x), model(x))
    finally:
        del globals()["GLOBAL"]


class Dual(fx.GraphModule):
    """One graph in training and one in evaluation, as torchvision's feature extractors have."""

    def __init__(self, model: nn.Module, training: fx.Graph, evaluation: fx.Graph) -> None:
        super().__init__(model, training)
        self.graphs = {True: training, False: evaluation}

    def train(self, mode: bool = True) -> "Dual":
        if mode is not self.training:
            self.graph = self.graphs[mode]
        return super().train(mode)


def test_a_graph_module_may_change_its_graph(tmp_path: Path) -> None:
    layers = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    whole, first = fx.Tracer().trace(layers), fx.Tracer().trace(layers[:1])
    model, x = Dual(layers, whole, first), torch.randn(3, 4)
    bio = biofx.transform(model, example_inputs=x)
    for mode in (True, False, True):
        assert torch.equal(bio.train(mode)(x), model.train(mode)(x))
    biofx.verify(bio, model, x)
    assert biofx.export(bio, tmp_path / "model.pt2", example_inputs=x).difference == 0.0
