"""Populations held against Torch-Pruning's dependency graph (Fang et al., CVPR 2023)."""

from typing import Any

import pytest
import torch
from torch import nn

import biofx
from biofx.synapses import Population
from tests.test_units import TABLE

tp = pytest.importorskip("torch_pruning")

# Layers on whose units both say the same, by architecture.
AGREE = {
    "MLP": {"0", "2"},
    "conv net": {"features.0", "features.4", "head.0"},
    "residual": {"stem", "a", "b"},
    "depthwise": {"project"},
    "dense": {"c"},
    "gated": {"packed", "gate"},
    "squeeze and excite": {"conv", "a", "next"},
    "attention, matmul": {"out"},
    "attention, einsum": {"out"},
    "attention, fused": {"out"},
    "transformer layer": {"linear1"},
    "GPT": {"blocks.0.up", "blocks.1.up"},
    "upsampled": {"shuffled"},
    "scaled": {"a", "b"},
}
# Where they differ, and why; tests/test_units.py shows by numbers that the populations are right.
DIFFER = {
    "channels last": {"conv"},  # it takes the flattened columns of a channel for neighbours
    "dense": {"a", "b"},  # inputs of the model take no columns in its concatenations
    "depthwise": {"expand", "depthwise"},  # it removes a depthwise layer's unit with its input
    "gated": {"glu"},  # it does not know F.glu
    "GPT": {"blocks.0.out", "blocks.0.down", "blocks.1.out", "blocks.1.down"},  # nor embeddings
    "upsampled": {"down"},  # the input of a transposed convolution, by another name
}
_REMOVE = {nn.Linear: "prune_linear_out_channels", nn.Conv2d: "prune_conv_out_channels"}

Places = set[tuple[str, str, int]]


def removed(graph: Any, names: dict[nn.Module, str], layer: nn.Module, unit: int) -> Places:
    """(layer, side, index) of all that Torch-Pruning removes with a unit."""
    name = _REMOVE[type(layer)]  # type: ignore[index]
    if isinstance(layer, nn.Conv2d) and layer.groups > 1:
        name = "prune_depthwise_conv_out_channels"
    group = graph.get_pruning_group(layer, getattr(tp, name), idxs=[unit])
    found = set()
    for dependency, indices in group:
        module, side = dependency.target.module, dependency.handler.__name__
        if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            found |= {(names[module], "out" if "out" in side else "in", int(i)) for i in indices}
    return found


def places(population: Population, unit: int) -> Places:
    """The same of a population."""
    one = torch.tensor([unit])
    own = {
        (entries.name.rpartition(".")[0], "out", int(i))
        for entries in population.incoming
        for i in entries.index(one).flatten()
    }
    return own | {
        (reader.layer, "in" if reader.weight.axis else "rows", int(i))
        for reader in population.readers
        for i in reader.weight.index(one).flatten()
    }


@pytest.mark.filterwarnings("ignore")  # of that library's own
@pytest.mark.parametrize("name", AGREE)
def test_populations_are_the_groups_of_torch_pruning(name: str) -> None:
    torch.manual_seed(0)
    model, inputs = TABLE[name][0]()
    model.eval()
    graph = tp.DependencyGraph().build_dependency(model, example_inputs=inputs)
    names = {module: name for name, module in model.named_modules()}
    bio = biofx.transform(model, example_inputs=inputs)
    agree, differ = set(), set()
    for population in biofx.info(bio).wiring.units:
        layer = model.get_submodule(population.layer)
        if population.readers and not population.block and type(layer) in _REMOVE:
            unit = population.size // 2
            same = removed(graph, names, layer, unit) == places(population, unit)
            (agree if same else differ).add(population.layer)
    assert agree >= AGREE[name]
    assert differ <= DIFFER.get(name, set())
