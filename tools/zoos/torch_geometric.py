"""Layers and models of the library torch-geometric."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch_geometric.nn as pyg
from torch import nn
from torch_geometric.nn import models

from zoos.entry import Entry

LIBRARY = "torch-geometric"
NODES, EDGES = 10, 30
MODELS: list[Entry] = []


def graph() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(NODES, 8), torch.randint(0, NODES, (2, EDGES))


def with_edges(size: int = 4) -> tuple[torch.Tensor, ...]:
    return *graph(), torch.randn(EDGES, size)


def typed() -> tuple[torch.Tensor, ...]:
    return *graph(), torch.randint(0, 3, (EDGES,))


def molecule() -> tuple[torch.Tensor, ...]:
    return torch.randint(1, 9, (6,)), torch.randn(6, 3)


class Network(nn.Module):
    """Layers of one kind with a linear layer behind them, as tutorials write it."""

    def __init__(self, *layers: nn.Module, width: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.head = nn.Linear(width, 3)

    def forward(self, x: torch.Tensor, *edges: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = nn.functional.dropout(torch.relu(layer(x, *edges)), 0.5, self.training)
        return self.head(x)


def twice(make: Callable[[int, int], nn.Module]) -> Network:
    return Network(make(8, 16), make(16, 5), width=5)


def add(name: str, make: Callable[[], nn.Module], inputs: Callable[[], Any] = graph) -> None:
    MODELS.append(Entry(name, make, inputs))


def mlp(inner: int, outer: int) -> nn.Module:
    return nn.Sequential(nn.Linear(inner, 16), nn.ReLU(), nn.Linear(16, outer))


LAYERS: dict[str, Callable[[int, int], nn.Module]] = {
    "GCNConv": pyg.GCNConv,
    "SAGEConv": pyg.SAGEConv,
    "GATConv": pyg.GATConv,
    "GATv2Conv": pyg.GATv2Conv,
    "TransformerConv": pyg.TransformerConv,
    "GraphConv": pyg.GraphConv,
    "ChebConv": partial(pyg.ChebConv, K=2),
    "TAGConv": pyg.TAGConv,
    "ARMAConv": pyg.ARMAConv,
    "SGConv": pyg.SGConv,
    "ClusterGCNConv": pyg.ClusterGCNConv,
    "LEConv": pyg.LEConv,
    "FeaStConv": pyg.FeaStConv,
    "ResGatedGraphConv": pyg.ResGatedGraphConv,
    "GENConv": pyg.GENConv,
    "MFConv": pyg.MFConv,
    "MixHopConv": partial(pyg.MixHopConv, powers=[1]),
    "GINConv": lambda a, b: pyg.GINConv(mlp(a, b)),
    "EdgeConv": lambda a, b: pyg.EdgeConv(mlp(2 * a, b)),
}
for title, layer in LAYERS.items():
    add(title, partial(twice, layer))
add("CGConv", lambda: pyg.CGConv(8, dim=4), with_edges)
add("NNConv", lambda: pyg.NNConv(8, 5, mlp(4, 40)), with_edges)
add("GINEConv", lambda: pyg.GINEConv(mlp(8, 5), edge_dim=4), with_edges)
add("GMMConv", lambda: pyg.GMMConv(8, 5, dim=4, kernel_size=2), with_edges)
add("RGCNConv", lambda: Network(pyg.RGCNConv(8, 5, num_relations=3), width=5), typed)
add("RGATConv", lambda: Network(pyg.RGATConv(8, 5, num_relations=3), width=5), typed)
add("FiLMConv", lambda: pyg.FiLMConv(8, 5))
add("GatedGraphConv", lambda: pyg.GatedGraphConv(8, 2))
add("PDNConv", lambda: pyg.PDNConv(8, 5, edge_dim=4, hidden_channels=6), with_edges)
add("PointTransformerConv", lambda: pyg.PointTransformerConv(8, 5),
    lambda: (torch.randn(NODES, 8), torch.randn(NODES, 3), graph()[1]))  # fmt: skip
add("GCN2Conv", lambda: Network(pyg.GCN2Conv(8, 0.1), width=8),
    lambda: (torch.randn(NODES, 8), torch.randn(NODES, 8), graph()[1]))  # fmt: skip
for title in ("GCN", "GraphSAGE", "GIN", "GAT", "EdgeCNN"):
    add(f"models.{title}", partial(getattr(models, title), 8, 16, 2, 3, dropout=0.1, jk="cat"))
add("models.PNA", lambda: models.PNA(8, 15, 2, 3, aggregators=["mean", "max"],
    scalers=["identity", "amplification"], deg=torch.tensor([1, 2, 4, 3])))  # fmt: skip
add("models.GraphUNet", lambda: models.GraphUNet(8, 16, 3, depth=2))
add("models.AttentiveFP", lambda: models.AttentiveFP(8, 16, 3, edge_dim=4, num_layers=2,
    num_timesteps=2), lambda: (*with_edges(), torch.zeros(NODES, dtype=torch.long)))  # fmt: skip
add("models.LINKX", lambda: models.LINKX(NODES, 8, 16, 3, num_layers=2))
add("models.MLP", lambda: models.MLP([8, 16, 3]), lambda: torch.randn(NODES, 8))
add("models.PMLP", lambda: models.PMLP(8, 16, 3, num_layers=2), graph)
add("models.NeuralFingerprint", lambda: models.NeuralFingerprint(8, 16, 3, num_layers=2))
add("models.Polynormer", lambda: models.Polynormer(8, 16, 3, local_layers=1, global_layers=1,
    heads=2), lambda: (*graph(), torch.zeros(NODES, dtype=torch.long)))  # fmt: skip
add("models.SGFormer", lambda: models.SGFormer(8, 16, 3, trans_num_heads=2),
    lambda: (*graph(), torch.zeros(NODES, dtype=torch.long)))  # fmt: skip
add("models.RECT_L", lambda: models.RECT_L(8, 16))
