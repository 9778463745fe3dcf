"""Splits recurrent layers and attention, whose weights are packed: gates, or q, k and v."""

import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import fx, nn

from biofx.capture.call import Call, CapturedCodeGen
from biofx.modules.lowering import group_repeat, group_sum
from biofx.modules.packed import attention, recurrent, settings_of
from biofx.passes.context import WeightLayer
from biofx.passes.expansion import expand_parameter
from biofx.passes.split_graph import insert
from biofx.synapses import Synapses, original_class

# Types that run a graph over their split weights. A class with another forward is refused.
_RECURRENT = (nn.RNN, nn.LSTM, nn.GRU, nn.RNNCell, nn.LSTMCell, nn.GRUCell)
_TYPES = (*_RECURRENT, nn.MultiheadAttention)
_MASKS = ("key_padding_mask", "need_weights", "attn_mask", "average_attn_weights", "is_causal")


def is_packed(module: nn.Module) -> bool:
    """Whether a layer's weights are those of several functions."""
    return isinstance(module, nn.RNNBase | nn.RNNCellBase | nn.MultiheadAttention)


def block_of(module: Any) -> tuple[int, str]:
    """(size, name) of the blocks of units that must not be mixed."""
    if isinstance(module, nn.MultiheadAttention):
        return module.head_dim, "an attention head"
    sizes = [module.hidden_size, getattr(module, "proj_size", 0)]
    return min(size for size in sizes if size), "a gate"


def packed_refusal(module: nn.Module, gamma: int, identity: bool, mode: str) -> str | None:
    """Why a packed layer cannot be split with any Γ, or None."""
    own = next((kind for kind in _TYPES if isinstance(module, kind)), None)
    cls = original_class(module)
    if own is None or cls.forward is not own.forward:
        return f"{cls.__name__} has a forward of its own"
    if mode == "group" and not identity:
        return "weight_splitting_activation_function cannot act inside of it"
    return None


def split_packed(layer: WeightLayer, synapses: list[Synapses]) -> tuple[fx.Graph, list[Synapses]]:
    """The graph of a split recurrent or attention layer, and its synapses then.

    In mode group, Γ consecutive rows of each gate (of q, k and v) are summed, and the sums stand Γ
    times; in mode expand, Γ synapses per connection are summed.
    """
    module: Any = layer.module
    config = synapses[0].config
    expand = config.weight_splitting_mode == "expand"
    names = {axes.parameter: entry for axes, entry in zip(layer.axes, synapses, strict=True)}
    signature = inspect.signature(next(k for k in _TYPES if isinstance(module, k)).forward)
    parameters = list(signature.parameters.values())[1:]
    call = Call(tuple(parameters), {}, free=True)  # which is for any arguments
    graph = fx.Graph()
    placeholders = {}
    for parameter in parameters:
        target, default = call.placeholder(parameter.name)
        node = graph.create_node("placeholder", target, default, name=parameter.name)
        placeholders[parameter.name] = node

    def weight(name: str) -> fx.Node | None:
        held = module._parameters.get(name)
        if held is None:
            return None
        node = graph.get_attr(name)
        split = name in names
        if expand and split:
            return insert(graph, group_sum, (node, config.weight_splitting_Gamma, 0))
        if not expand and (split or name.startswith(("bias_ih", "bias_hh", "in_proj_bias"))):
            total = insert(graph, group_sum, (node, config.weight_splitting_Gamma, 0))
            return insert(graph, group_repeat, (total, config.weight_splitting_Gamma, 0))
        return node

    training = graph.get_attr("training")
    if isinstance(module, nn.MultiheadAttention):
        result = _attention(graph, module, placeholders, weight, training)
    else:
        result = _recurrent(graph, module, placeholders, weight, training)
    graph.output(result)
    graph.set_codegen(CapturedCodeGen(call, defaults_only=True))
    if expand:
        split = [expand_parameter(module, name, 0, entry) for name, entry in names.items()]
    else:
        gamma = config.weight_splitting_Gamma
        split = [replace(entry, gamma=gamma, split="group") for entry in names.values()]
    return graph, split


def _recurrent(
    graph: fx.Graph, module: Any, given: dict[str, fx.Node],
    weight: Callable[[str], fx.Node | None], training: fx.Node,
) -> fx.Node:  # fmt: skip
    if isinstance(module, nn.RNNCellBase):
        names = ["weight_ih", "weight_hh", "bias_ih", "bias_hh"]
    else:
        names = list(module._flat_weights_names)
    weights = [weight(name) for name in names]
    kind = next(k.__name__ for k in _RECURRENT if isinstance(module, k))
    arguments = (given["input"], given["hx"], weights, kind, settings_of(module), training)
    return graph.call_function(recurrent, arguments)


def _attention(
    graph: fx.Graph, module: nn.MultiheadAttention, given: dict[str, fx.Node],
    weight: Callable[[str], fx.Node | None], training: fx.Node,
) -> fx.Node:  # fmt: skip
    packed = module._qkv_same_embed_dim
    weights: dict[str, Any] = {
        "in_proj_weight": weight("in_proj_weight") if packed else None,
        "in_proj_bias": weight("in_proj_bias"),
        "bias_k": weight("bias_k"),
        "bias_v": weight("bias_v"),
        "out_proj_weight": graph.get_attr("out_proj.weight"),
        "out_proj_bias": None if module.out_proj.bias is None else graph.get_attr("out_proj.bias"),
    }
    if not packed:
        weights |= {f"{part}_proj_weight": weight(f"{part}_proj_weight") for part in "qkv"}
    settings = {
        "batch_first": module.batch_first,
        "embed_dim_to_check": module.embed_dim,
        "num_heads": module.num_heads,
        "add_zero_attn": module.add_zero_attn,
        "dropout_p": module.dropout,
        "use_separate_proj_weight": not packed,
    }
    masks = {name: given[name] for name in _MASKS}
    inputs = (given["query"], given["key"], given["value"])
    return graph.call_function(attention, (*inputs, masks, weights, settings, training))
