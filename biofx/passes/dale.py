"""Dale: which synapses obey Dale's principle, and whether they can."""

from dataclasses import replace

from torch import nn
from torch.fx.passes.infra.pass_base import PassBase, PassResult

from biofx.errors import ConfigError
from biofx.passes.context import TransformContext


class Dale(PassBase):
    """Marks the nodes whose outgoing weights share one sign per unit.

    The graph computes the same: signs are set and kept by the rule `DalesPrinciple`, which
    projects the weights back after each step. A parameter that serves two layers obeys the
    principle in its first layer's sense.
    """

    def __init__(self, context: TransformContext) -> None:
        self.context = context

    def requires(self, graph_module: nn.Module) -> None:
        assert self.context.layers, "augment runs before dale"

    def call(self, graph_module: nn.Module) -> PassResult:
        marked = False
        for synapses in self.context.synapses.values():
            if not synapses.config.apply_dales_principle:
                continue
            if synapses.kind == "bilinear":
                raise ConfigError(
                    f"{synapses.parameter}: Dale's principle is not defined for a layer with two "
                    f'inputs; turn it off there with overrides={{"{synapses.layers[0]}": '
                    '{"apply_dales_principle": False}}'
                )
            for name in synapses.layers:
                for node in self.context.weights[name].nodes:
                    mark = node.meta["biofx"]
                    node.meta["biofx"] = replace(mark, by=f"{mark.by}, dale")
                    marked = True
        return PassResult(graph_module, marked)

    def ensures(self, graph_module: nn.Module) -> None:
        for synapses in self.context.synapses.values():
            if synapses.config.apply_dales_principle:
                assert synapses.post_axis != synapses.pre_axis
