"""Split: Γ synapses stand where one stood (multi-synaptic connectivity)."""

from collections import defaultdict
from dataclasses import dataclass, replace
from typing import Any

from torch import fx, nn
from torch.fx.passes.infra.pass_base import PassBase, PassResult

from biofx.capture import Assumption
from biofx.capture.call import FORWARD_ONLY
from biofx.capture.memory import held, items
from biofx.errors import ConfigError
from biofx.modules.graph_layer import (
    GraphLayer,
    PackedGraphLayer,
    layer_graph,
    make_graph_layer,
    trace_layer,
)
from biofx.modules.packed import attention, recurrent
from biofx.passes.context import TransformContext, WeightLayer, join
from biofx.passes.expansion import widened
from biofx.passes.split_graph import WEIGHT_OPS, activation, expand, group, weight_op
from biofx.passes.split_packed import block_of, is_packed, packed_refusal, split_packed
from biofx.passes.topology import REMEDY
from biofx.synapses import Synapses, original_class
from biofx.synapses.record import RECORD


@dataclass(frozen=True)
class Refusal:
    """Why a layer is not split; `by_gamma`: another Γ would do."""

    reason: str
    by_gamma: bool = False


class Split(PassBase):
    """Turns every layer to be split into a small graph of its own with explicit expansion nodes.

    The layer runs that graph, so that every way of calling the layer gets the same split function;
    the graph of the model shows the same nodes in its place.

    - ``group``: φ, sum of Γ consecutive output units, each sum repeated Γ times. Where φ is the
      identity the weight itself is summed first, which is the same and Γ times less work.
    - ``expand``: the weight gets Γ synapses per connection, which the graph sums.
    """

    def __init__(self, context: TransformContext) -> None:
        self.context = context
        self._modules = {name: module for module, name in context.names.items()}
        self._places: dict[int, list[str]] = defaultdict(list)  # of a parameter, by its id

    def requires(self, graph_module: nn.Module) -> None:
        assert self.context.layers, "augment runs before split"

    def call(self, graph_module: nn.Module) -> PassResult:
        split, bad = 0, []
        for place, value in items(held(dict(graph_module.named_modules()))):
            if isinstance(value, nn.Parameter):
                self._places[id(value)].append(place)
        for layer in list(self.context.weights.values()):
            gamma = self.context.config.for_layer(layer.name).weight_splitting_Gamma
            if gamma <= 1 or self.context.layers[layer.name].action == "skipped":
                continue
            synapses = self.context.synapses[self.context.layers[layer.name].parameters[0]]
            refusal = self._refusal(layer, synapses, gamma) or self._split(
                graph_module, layer, synapses
            )
            if refusal is None:
                split += 1
                continue
            record = self.context.layers[layer.name]
            self.context.layers[layer.name] = replace(record, reason=f"not split: {refusal.reason}")
            if refusal.by_gamma:
                bad.append(f"{layer.name or '(the model)'}: {refusal.reason}")
        if bad and not split:
            raise ConfigError(
                "no layer can be split: " + "; ".join(bad[:5]) + "; choose another "
                "weight_splitting_Gamma, or set it per layer with overrides"
            )
        wide = {n: s for n, s in self.context.synapses.items() if s.split == "expand"}
        wiring = self.context.wiring
        if wide:
            self.context.wiring = replace(wiring, units=widened(wiring.units, wide))
        on_data = any(assumed.kind == "data" for assumed in self.context.captured.assumptions)
        if on_data and any(s.split == "group" for s in self.context.synapses.values()):
            why = "the way of the unsplit model; split in groups, layers may lead another way"
            self.context.assumptions.append(Assumption("data", why))
        return PassResult(graph_module, bool(split))

    def ensures(self, graph_module: nn.Module) -> None:
        self.context.graph.lint()

    # --- whether ---------------------------------------------------------------------------------

    def _refusal(self, layer: WeightLayer, synapses: Synapses, gamma: int) -> Refusal | None:
        axes = layer.axes[0]
        units = synapses.shape[synapses.post_axis]
        if synapses.kind.startswith("conv_transpose"):
            units *= synapses.groups
        if isinstance(layer.module, GraphLayer):
            return Refusal("it was split before")
        if self._in_part(layer.name):
            return Refusal("it belongs to a part that was transformed before")
        if axes.whole is not None:
            return Refusal(axes.whole)
        if axes.kind != synapses.kind:
            tied = synapses.layers[0]
            return Refusal(f"its weight is tied to that of {tied}, a layer of another kind")
        if layer.unknown is not None:
            return Refusal(f"its place is {REMEDY}: {layer.unknown}")
        if layer.output:
            return Refusal("output layer")
        if layer.returned:
            return Refusal("its output is a result of the model")
        if is_packed(layer.module):
            refusal = self._packed_refusal(layer, synapses, gamma)
            if refusal is not None:
                return refusal
        elif units % gamma:
            return Refusal(f"Γ={gamma} does not divide its {units} output units", by_gamma=True)
        if layer.name in self.context.read_directly:
            return Refusal("its weight is also used without calling it")
        if not (layer.reached or self.context.config.outputs):
            return Refusal("nothing shows that it is called")
        if synapses.kind.startswith("conv_transpose"):
            if any(len(node.args) + len(node.kwargs) > 1 for node in layer.nodes):
                return Refusal("it is called with output_size")
            if synapses.config.weight_splitting_mode == "expand" and synapses.groups > 1:
                return Refusal("a grouped transposed convolution cannot be expanded")
        if synapses.config.weight_splitting_mode == "expand":
            if len(synapses.layers) > 1 or synapses.layers[0] != layer.name:
                return Refusal("its weight is tied")
            places = self._places[id(getattr(layer.module, axes.parameter))]
            own = join(layer.name, axes.parameter)
            # Recurrent layers keep a list of their weights, which follows.
            if len(places) > 1 and not is_packed(layer.module):
                other = next(place for place in places if place != own)
                return Refusal(f"the model also holds its weight as {other}")
            if self.context.captured.measured.intersection(
                self.context.layers[layer.name].parameters
            ):
                return Refusal("the forward asks for the size of its weight")
            return None
        assert self.context.blocks is not None, "units are followed before split"
        found = self.context.blocks.problem(layer, units, gamma)
        return Refusal(found.reason, by_gamma=found.by_gamma) if found is not None else None

    def _packed_refusal(self, layer: WeightLayer, synapses: Synapses, gamma: int) -> Refusal | None:
        config = synapses.config
        identity = activation(config.weight_splitting_activation_function) is None
        reason = packed_refusal(layer.module, gamma, identity, config.weight_splitting_mode)
        if reason is not None:
            return Refusal(reason)
        known = self.context.layers[layer.name].parameters
        if len(known) != len(layer.axes):
            return Refusal("some of its weights are tied to each other")
        if any(len(self.context.synapses[name].layers) > 1 for name in known):
            return Refusal("its weight is tied")
        size, block = block_of(layer.module)
        if config.weight_splitting_mode == "group" and size % gamma:
            reason = f"Γ={gamma} does not divide the {size} units of {block}"
            return Refusal(reason, by_gamma=True)
        return None

    def _in_part(self, name: str) -> bool:
        """Whether a layer belongs to a module that `biofx.transform` made."""
        while name and RECORD not in vars(self._modules[name]):
            name = name.rpartition(".")[0]
        return bool(name)

    # --- how -------------------------------------------------------------------------------------

    def _split(self, root: nn.Module, layer: WeightLayer, synapses: Synapses) -> Refusal | None:
        module, config = layer.module, synapses.config
        gamma = config.weight_splitting_Gamma
        if is_packed(module):
            self._split_packed(root, layer, gamma)
            return None
        graph, problem = trace_layer(module)
        if problem is not None:
            return Refusal(f"its forward cannot be traced: {problem}")
        op = weight_op(graph, layer.axes[0].parameter)
        if op is None:
            return Refusal("its graph holds no single weight op")
        if config.weight_splitting_mode == "expand":
            split = expand(module, graph, layer.axes[0], synapses)
        elif layer.axes[0].units is None:
            return Refusal(
                "its Axes do not say on which axis of its output the units lie (units=…)"
            )
        else:
            split = group(module, graph, op, layer.axes[0], synapses)
        make_graph_layer(module, graph)
        self._note(root, layer, gamma, [split])
        return None

    def _split_packed(self, root: nn.Module, layer: WeightLayer, gamma: int) -> None:
        names = self.context.layers[layer.name].parameters
        known = [self.context.synapses[name] for name in names]
        graph, split = split_packed(layer, known)
        make_graph_layer(layer.module, graph, PackedGraphLayer)
        self._note(root, layer, gamma, split)

    def _note(self, root: nn.Module, layer: WeightLayer, gamma: int, split: list[Synapses]) -> None:
        """Write down that a layer is split, and show its graph in the model's."""
        module = layer.module
        _forbid_fusing(root, layer.name)
        module.__dict__["_biofx_synapses"] = tuple(split)
        self.context.synapses.update({entry.parameter: entry for entry in split})
        record = self.context.layers[layer.name]
        new = f"{type(module).__name__} ×{gamma}"
        self.context.layers[layer.name] = replace(record, action="split", new_type=new, reason=None)
        layer.nodes = [
            self._show(node, layer, new) for node in layer.nodes if node.op == "call_module"
        ]

    def _show(self, node: fx.Node, layer: WeightLayer, new: str) -> fx.Node:
        """Put the layer's graph into the model's, in place of the node that calls it."""
        graph, inner = self.context.graph, layer_graph(layer.module)
        bound = inner._codegen.call.bind(node.args, node.kwargs)  # type: ignore[attr-defined]
        values: dict[fx.Node, Any] = {}
        marked = node
        kind = original_class(layer.module)
        where = {
            **node.meta.get("nn_module_stack", {}),
            layer.name: (layer.name, f"{kind.__module__}.{kind.__qualname__}"),
        }
        with graph.inserting_before(node):
            for step in inner.nodes:
                if step.op == "placeholder":
                    values[step] = bound[str(step.target).lstrip("*")]
                elif step.op == "output":
                    result = values[step.args[0]]
                    node.replace_all_uses_with(result)
                    if "tensor_meta" in node.meta:  # its shape and type are as before
                        result.meta["tensor_meta"] = node.meta["tensor_meta"]
                else:
                    fresh = graph.node_copy(step, values.__getitem__)
                    fresh.meta = {**step.meta, **node.meta, "nn_module_stack": where}
                    fresh.meta["biofx"] = step.meta.get("biofx")
                    fresh.meta.pop("tensor_meta", None)
                    fresh.meta.pop(FORWARD_ONLY, None)
                    if step.op in ("get_attr", "call_module"):
                        fresh.target = join(layer.name, step.target)
                    if step.target in (*WEIGHT_OPS, recurrent, attention):
                        marked = fresh
                        fresh.meta["biofx"] = replace(node.meta["biofx"], by="split", new=new)
                    elif fresh.meta["biofx"] is None:
                        del fresh.meta["biofx"]
                    values[step] = fresh
        graph.erase_node(node)
        return marked


def _forbid_fusing(root: nn.Module, name: str) -> None:
    """Keep a transformer layer from its fused kernel, which reads weights and calls nothing."""
    while name:
        name = name.rpartition(".")[0]
        above = root.get_submodule(name)
        if isinstance(above, nn.TransformerEncoderLayer):
            above.__dict__["activation_relu_or_gelu"] = 0
