"""A layer whose forward is a small graph: what splitting makes of it."""

import copy
import inspect
from typing import Any

import torch
from torch import Tensor, fx, nn

from biofx.capture.call import CapturedCodeGen
from biofx.capture.symbolic import SymbolicTracer
from biofx.modules import graphs
from biofx.synapses import Derived, become, mixins_of

_GRAPH, _FORWARD = "_biofx_layer_graph", "_biofx_forward"


class GraphLayer(Derived):
    """A layer that keeps its class, parameters and hooks and runs a graph for its forward."""

    _biofx_private = (_GRAPH, _FORWARD)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the graph of the layer computes."""
        for value in (*args, *kwargs.values()):
            if isinstance(value, Tensor) and value.is_nested and value.layout is torch.strided:
                return _of_parts(self, args, kwargs, value.size(0))
        return self._biofx_forward(self, *args, **kwargs)  # type: ignore[operator]

    def __deepcopy__(self, memo: dict[int, Any]) -> nn.Module:
        fresh: Any = object.__new__(type(self))
        memo[id(self)] = fresh
        fresh.__setstate__(copy.deepcopy(self._biofx_state(), memo))
        return fresh  # type: ignore[no-any-return]

    def _biofx_state(self) -> tuple[Any, ...]:
        return (
            *super()._biofx_state(),
            graphs.to_data(layer_graph(self)),
            layer_graph(self)._codegen,
        )

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        *rest, nodes, codegen = state
        super().__setstate__(tuple(rest))
        graph = graphs.from_data(nodes)
        graph.set_codegen(codegen)
        set_layer_graph(self, graph)


def _of_parts(layer: GraphLayer, args: Any, kwargs: Any, count: int) -> Any:
    """What a layer gives for nested tensors, part by part: few operations take them whole.

    `nn.TransformerEncoder` makes such of what it is given with a mask, in evaluation.
    """

    def part(value: Any, place: int) -> Any:
        return value.unbind()[place] if isinstance(value, Tensor) and value.is_nested else value

    found = [
        layer.forward(
            *[part(v, place) for v in args], **{k: part(v, place) for k, v in kwargs.items()}
        )
        for place in range(count)
    ]

    def joined(values: Any) -> Any:
        return torch.nested.as_nested_tensor(list(values)) if values[0] is not None else None

    if isinstance(found[0], tuple):
        return tuple(joined(values) for values in zip(*found, strict=True))
    return joined(found)


class PackedGraphLayer(GraphLayer):
    """A layer whose graph puts its weights together anew at each call."""

    def flatten_parameters(self) -> None:
        """Nothing: cuDNN cannot keep in one piece what is computed at each call."""


def layer_graph(layer: nn.Module) -> fx.Graph:
    """The graph of a layer that has one."""
    graph: fx.Graph = layer.__dict__[_GRAPH]
    return graph


def set_layer_graph(layer: nn.Module, graph: fx.Graph) -> None:
    """Let a layer run a graph, whose `get_attr` targets are the layer's own attributes."""
    layer.__dict__[_GRAPH] = graph
    layer.__dict__[_FORWARD], _ = graphs.compiled(graph)


def make_graph_layer(
    layer: nn.Module, graph: fx.Graph, kind: type[GraphLayer] = GraphLayer
) -> None:
    """Turn a layer into one that runs a graph, in place."""
    layer.__dict__.pop("forward", None)  # replaced on the instance: the graph was made of it
    become(layer, kind, *mixins_of(layer))
    set_layer_graph(layer, graph)


def trace_layer(layer: nn.Module) -> tuple[fx.Graph, str | None]:
    """The graph of a layer's own forward, and why it could not be traced, if so."""
    tracer = SymbolicTracer(layer, inspect.signature(layer.forward))
    graph = tracer.run()
    graphs.call_forwards(graph)
    graph.set_codegen(CapturedCodeGen(tracer.call.kept(), defaults_only=True))
    return graph, tracer.opaque.get("")
