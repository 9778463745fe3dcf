"""Split: Γ synapses stand where one stood (multi-synaptic connectivity)."""

import functools
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.infra.pass_base import PassBase, PassResult
from torch.nn import functional as F

from biofx.capture import Captured, install
from biofx.capture.leaves import CHOOSES_AT_RUN_TIME
from biofx.capture.patches import recording
from biofx.errors import ConfigError
from biofx.passes.draft import Draft, Provenance, WeightLayer, function_name
from biofx.passes.expansion import group_repeat, group_sum
from biofx.passes.mentions import READ_WEIGHTS, leads_to
from biofx.synapses import Axes, Synapses
from biofx.synapses.record import RECORD

_CONVS = {torch.conv1d, torch.conv2d, torch.conv3d}
_TRANSPOSED = {torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d}
_WEIGHT_OPS = {F.linear, torch.addmm, *_CONVS, *_TRANSPOSED}


class Split(PassBase):
    """Turns every layer to be split into a small graph of its own with explicit expansion nodes.

    The nodes live in the layer's graph, not in its parent's, so that every way of calling the
    layer (a graph, Python code, a hook) gets the same split function.

    - ``group``: φ, sum of Γ consecutive output units, each sum repeated Γ times. Where φ is the
      identity the weight itself is summed first, which is the same and Γ times less work.
    - ``expand``: the weight gets Γ synapses per connection, which the graph sums.
    """

    def __init__(self, draft: Draft) -> None:
        self.draft = draft
        self._readers: dict[nn.Module, bool] = {}

    def requires(self, graph_module: nn.Module) -> None:
        assert self.draft.layers, "augment runs before split"

    def call(self, graph_module: nn.Module) -> PassResult:
        chosen: list[WeightLayer] = []
        bad: list[str] = []
        for layer in self.draft.weights.values():
            gamma = self.draft.config.for_layer(layer.name).weight_splitting_Gamma
            if gamma <= 1 or self.draft.layers[layer.name].action == "skipped":
                continue
            reason = self._reason(layer, self._synapses(layer), gamma)
            if reason is None:
                chosen.append(layer)
                continue
            self._note(layer, reason)
            if "divide" in reason:
                bad.append(f"{layer.name or '(the model)'}: {reason}")
        self._capture(chosen)
        split = 0
        for layer in chosen:
            reason = self._split(graph_module, layer, self._synapses(layer))
            if reason is None:
                split += 1
            else:
                self._note(layer, reason)
        if bad and not split:
            raise ConfigError(
                "no layer can be split: " + "; ".join(bad[:5]) + "; choose another "
                "weight_splitting_Gamma, or set it per layer with overrides"
            )
        return PassResult(graph_module, bool(split))

    def ensures(self, graph_module: nn.Module) -> None:
        for layer in self.draft.layers.values():
            if layer.action == "split":
                graph_module.get_submodule(layer.name).graph.lint()  # type: ignore[union-attr, operator]

    def _synapses(self, layer: WeightLayer) -> Synapses:
        return self.draft.synapses[self.draft.layers[layer.name].parameters[0]]

    def _reason(self, layer: WeightLayer, synapses: Synapses, gamma: int) -> str | None:
        axes = layer.axes[0]
        units = synapses.shape[synapses.post_axis]
        if synapses.kind.startswith("conv_transpose"):
            units *= synapses.groups
        if layer.module.__dict__.get("_needs_graph"):
            return "it was split before"
        if self._in_part(layer.name):
            return "it belongs to a part that was transformed before"
        if layer.output:
            return "output layer"
        if axes.whole is not None:
            return axes.whole
        if axes.kind != synapses.kind:
            return f"its weight is tied to that of {synapses.layers[0]}, a layer of another kind"
        if units % gamma:
            return f"Γ={gamma} does not divide its {units} output units"
        if layer.name in self.draft.read_directly:
            return "its weight is also used without calling it"
        reader = self._opaque_reader(layer.name)
        if reader is not None:
            return f"{reader or 'the model'} is opaque and may read its weight without calling it"
        if synapses.kind.startswith("conv_transpose") and not isinstance(layer.module, Captured):
            calls = [node for node in layer.nodes if node.op == "call_module"]
            if any(len(node.args) + len(node.kwargs) > 1 for node in calls):
                return "it is called with output_size"
            if not calls and layer.name.rpartition(".")[0] in self.draft.opaque:
                return "Python code calls it, perhaps with output_size"
        if not layer.reached:
            return "nothing shows that it is called"
        if synapses.config.weight_splitting_mode == "expand":
            if len(synapses.layers) > 1 or synapses.layers[0] != layer.name:
                return "its weight is tied"
            if synapses.kind.startswith("conv_transpose") and synapses.groups > 1:
                return "a grouped transposed convolution cannot be expanded"
        return None

    @functools.cached_property
    def _modules(self) -> dict[str, nn.Module]:
        return {name: module for module, name in self.draft.session.names.items()}

    def _opaque_reader(self, name: str) -> str | None:
        """An opaque module above the layer whose Python code mentions weights, if there is one."""
        above = name
        while above:
            above = above.rpartition(".")[0]
            module = self._modules[above]
            python = above in self.draft.opaque and not isinstance(module, CHOOSES_AT_RUN_TIME)
            if python and self._reads_weights(module):
                return above
        return None

    def _in_part(self, name: str) -> bool:
        """Whether a layer belongs to a module that `biofx.transform` made."""
        while name and RECORD not in vars(self._modules[name]):
            name = name.rpartition(".")[0]
        return bool(name)

    def _reads_weights(self, module: nn.Module) -> bool:
        if module not in self._readers:
            self._readers[module] = leads_to(module, READ_WEIGHTS)
        return self._readers[module]

    def _note(self, layer: WeightLayer, reason: str) -> None:
        record = self.draft.layers[layer.name]
        self.draft.layers[layer.name] = replace(record, reason=f"not split: {reason}")

    def _capture(self, layers: Sequence[WeightLayer]) -> None:
        """Give each layer a graph, where it can have one."""
        session = self.draft.session
        plain = [layer.module for layer in layers if not isinstance(layer.module, Captured)]
        with recording(session) if plain else nullcontext():
            captures = [session.capture(module, None) for module in plain]
        for module, capture in zip(plain, captures, strict=True):
            if capture is not None:
                install(module, capture)

    def _split(self, root: nn.Module, layer: WeightLayer, synapses: Synapses) -> str | None:
        module = layer.module
        if not isinstance(module, Captured):
            return f"its forward cannot be traced: {self.draft.session.opaque[module]}"
        config = synapses.config
        gamma = config.weight_splitting_Gamma
        op = _weight_op(module.graph, layer.axes[0].parameter)
        if op is None:
            return "its graph holds no single weight op"
        if config.weight_splitting_mode == "group" and layer.axes[0].units is None:
            return "its Axes do not say on which axis of its output the units lie (units=…)"
        if config.weight_splitting_mode == "expand":
            split = self._expand(module, op, layer.axes[0], synapses)
        else:
            split = self._group(module, op, layer.axes[0], synapses)
        module.__dict__["_needs_graph"] = True
        self._forbid_fusing(root, layer.name)
        module.__dict__["_synapses"] = (split,)
        self.draft.synapses[split.parameter] = split
        record = self.draft.layers[layer.name]
        new = f"{type(module).__name__} ×{gamma}"
        self.draft.layers[layer.name] = replace(record, action="split", new_type=new, reason=None)
        for node in layer.nodes:
            node.meta["biofx"] = replace(node.meta["biofx"], by="split", new=new)
        return None

    def _forbid_fusing(self, root: nn.Module, name: str) -> None:
        """Keep a transformer layer from its fused kernel, which reads weights and calls nothing."""
        while name:
            name = name.rpartition(".")[0]
            above = root.get_submodule(name)
            if isinstance(above, nn.TransformerEncoderLayer):
                above.__dict__["activation_relu_or_gelu"] = 0

    def _group(self, module: Captured, op: fx.Node, axes: Axes, synapses: Synapses) -> Synapses:
        gamma = synapses.config.weight_splitting_Gamma
        graph = module.graph
        output = graph.output_node()
        phi = _phi(synapses.config.weight_splitting_activation_function)
        assert axes.units is not None
        per_group = synapses.shape[synapses.post_axis]
        if not synapses.kind.startswith("conv_transpose"):
            per_group //= synapses.groups
        bound = op.target in _SIGNATURES and output.args[0] is op
        if phi is None and bound and per_group % gamma == 0:
            # Σ(Wx + b) = (ΣW)x + Σb: sum the weight, not the units
            arguments = _bind(op)
            for name, axis in (("weight", synapses.post_axis), ("bias", 0)):
                if arguments.get(name) is not None:
                    with graph.inserting_before(op):
                        arguments[name] = self._insert(
                            graph, group_sum, (arguments[name], gamma, axis), f"Γ={gamma}"
                        )
            op.args, op.kwargs = (), arguments
            value: Any = op
        else:
            value = output.args[0]
            with graph.inserting_before(output):
                if phi is not None:
                    value = self._insert_phi(module, value, phi)
                value = self._insert(graph, group_sum, (value, gamma, axes.units), f"Γ={gamma}")
        with graph.inserting_before(output):
            value = self._insert(graph, group_repeat, (value, gamma, axes.units), f"Γ={gamma}")
        output.args = (value,)
        return replace(synapses, gamma=gamma, split="group")

    def _expand(self, module: Captured, op: fx.Node, axes: Axes, synapses: Synapses) -> Synapses:
        gamma = synapses.config.weight_splitting_Gamma
        axis = synapses.post_axis
        graph = module.graph
        weight = next(
            node for node in graph.nodes if node.op == "get_attr" and node.target == axes.parameter
        )
        with graph.inserting_after(weight):
            total = self._insert(graph, group_sum, (weight, gamma, axis), f"Γ={gamma}")
        weight.replace_all_uses_with(total, delete_user_cb=lambda user: user is not total)
        old = module.get_parameter(axes.parameter)
        with torch.no_grad():
            wide = group_repeat(old.detach(), gamma, axis) / gamma
        module._parameters[axes.parameter] = nn.Parameter(wide, requires_grad=old.requires_grad)
        module.__dict__["_bundles"] = (axes.parameter, gamma, axis)
        module.register_load_state_dict_pre_hook(_load_plain_weight)  # type: ignore[no-untyped-call]
        return replace(synapses, gamma=gamma, split="expand", shape=tuple(wide.shape))

    def _insert(self, graph: fx.Graph, target: Any, args: tuple[Any, ...], why: str) -> fx.Node:
        node = graph.call_function(target, args)
        node.meta["biofx"] = Provenance(
            "inserted", by="split", new=function_name(target), reason=why
        )
        return node

    def _insert_phi(self, module: Captured, value: Any, phi: Callable[[Any], Any]) -> fx.Node:
        if isinstance(phi, nn.Module):
            module.add_module("weight_splitting_activation_function", phi)
            node = module.graph.call_module("weight_splitting_activation_function", (value,))
            name = type(phi).__name__
        else:
            node = module.graph.call_function(phi, (value,))
            name = function_name(phi)
        node.meta["biofx"] = Provenance("inserted", by="split", new=name, reason="φ")
        return node


def _phi(function: Callable[[Any], Any] | str) -> Callable[[Any], Any] | None:
    """φ as a callable; None for the identity."""
    if isinstance(function, str):
        if function == "identity":
            return None
        found = getattr(F, function, None) or getattr(torch, function, None)
        if not callable(found):
            raise ConfigError(
                f"weight_splitting_activation_function={function!r} is not a function of "
                "torch.nn.functional"
            )
        return found  # type: ignore[no-any-return]
    if isinstance(function, nn.Identity):
        return None
    if isinstance(function, nn.Module) and any(True for _ in function.parameters()):
        raise ConfigError("weight_splitting_activation_function must have no parameters")
    return function


def _weight_op(graph: fx.Graph, parameter: str) -> fx.Node | None:
    ops = [node for node in graph.nodes if node.target in _WEIGHT_OPS]
    reads = [n for n in graph.nodes if n.op == "get_attr" and n.target == parameter]
    return ops[0] if len(ops) == 1 and len(reads) == 1 else None


_CONV_ARGUMENTS = "input weight bias stride padding dilation groups"
_TRANSPOSED_ARGUMENTS = "input weight bias stride padding output_padding groups dilation"
_SIGNATURES: dict[Any, str] = {
    F.linear: "input weight bias",
    **dict.fromkeys(_CONVS, _CONV_ARGUMENTS),
    **dict.fromkeys(_TRANSPOSED, _TRANSPOSED_ARGUMENTS),
}


def _bind(op: fx.Node) -> dict[str, Any]:
    """The arguments of a weight op by name."""
    return dict(zip(_SIGNATURES[op.target].split(), op.args, strict=False)) | dict(op.kwargs)


def _load_plain_weight(
    module: nn.Module, state_dict: dict[str, Tensor], prefix: str, *_: Any
) -> None:
    """Let an expanded layer take the weight of the plain one: each bundle sums to the original."""
    parameter, gamma, axis = module.__dict__["_bundles"]
    key = prefix + parameter
    wide = module.get_parameter(parameter).shape
    plain = state_dict.get(key)
    if plain is not None and plain.dim() == len(wide) and plain.shape[axis] * gamma == wide[axis]:
        state_dict[key] = group_repeat(plain, gamma, axis) / gamma
