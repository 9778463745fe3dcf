"""Units: follows the units of each weight layer to the layers that read them."""

from dataclasses import replace

from torch import nn
from torch.fx.passes.infra.pass_base import PassBase, PassResult

from biofx.passes.context import TransformContext
from biofx.passes.units.blocks import Blocks
from biofx.passes.units.flow import Flow
from biofx.passes.units.populations import Populations
from biofx.passes.units.trace import follow


class Units(PassBase):
    """Finds the populations of a recorded graph.

    The graph is run once on id tensors: which unit of which layer does each element belong to?
    Operations that move elements move ids, element-by-element ones pass them on, a column of a
    layer that reads them must see one id. What an operation does to units that is not known is
    not guessed: they have a reason instead of readers.
    """

    def __init__(self, context: TransformContext) -> None:
        self.context = context

    def call(self, graph_module: nn.Module) -> PassResult:
        context = self.context
        flow = follow_units(graph_module, context) if context.captured.whole else None
        context.blocks = Blocks(flow)
        if flow is not None:
            units = Populations(flow, list(context.weights))
            context.wiring = replace(context.wiring, units=units)
        return PassResult(graph_module, False)


def follow_units(graph_module: nn.Module, context: TransformContext) -> Flow:
    """The ids of every value of the graph; see `Flow`."""
    layer_of = {
        str(node.target): layer.name
        for layer in context.weights.values()
        for node in layer.nodes
        if node.op == "call_module"
    }
    return follow(graph_module, context.graph, context.weights, layer_of)


__all__ = ["Blocks", "Flow", "Units", "follow_units"]
