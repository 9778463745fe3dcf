"""Recurrent layers and attention over weights that are computed: what such a layer runs when split.

PyTorch's own modules read their parameters from themselves. Here the same computations take them as
arguments, as nodes of a graph.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

# What decides, besides weights, what a recurrent layer computes.
_SETTINGS = (
    "mode", "input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout",
    "bidirectional", "proj_size", "nonlinearity",
)  # fmt: skip
_CELL_WEIGHTS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


def settings_of(layer: nn.Module) -> dict[str, Any]:
    """The settings of a recurrent layer or cell, as plain values."""
    held = vars(layer)
    return {name: held[name] for name in _SETTINGS if name in held}


def recurrent(
    input: Any, hx: Any, weights: Sequence[Tensor | None], kind: str,
    settings: Mapping[str, Any], training: bool,
) -> Any:  # fmt: skip
    """`nn.RNN`, `nn.LSTM`, `nn.GRU` or a cell, with these weights.

    Args:
        input, hx: as for the layer; packed sequences too.
        weights: in the order of the layer's `_flat_weights`; of a cell, weights and biases.
        kind: name of the class in `torch.nn`.
        settings: see `settings_of`.
        training: whether dropout acts.
    """
    cls = getattr(nn, kind)
    layer = object.__new__(cls)  # it runs torch's forward on what it is given, and holds nothing
    layer.__dict__.update(settings, training=training)
    if issubclass(cls, nn.RNNCellBase):
        layer.__dict__.update(zip(_CELL_WEIGHTS, weights, strict=True))
    else:
        names: dict[str, Any] = {"_flat_weights_names": [], "_flat_weight_refs": []}
        layer.__dict__.update(names, _flat_weights=list(weights))
    return layer.forward(input, hx)


def attention(
    query: Tensor, key: Tensor, value: Tensor, masks: Mapping[str, Any],
    weights: Mapping[str, Any], settings: Mapping[str, Any], training: bool,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """`nn.MultiheadAttention` with these weights, never by its fused kernel.

    Args:
        query, key, value: as for the layer.
        masks: its other arguments, by name.
        weights: arguments of `multi_head_attention_forward` that are weights, by name.
        settings: "batch_first", and other arguments of that function.
        training: whether dropout acts.
    """
    options = dict(settings)
    swapped = bool(options.pop("batch_first")) and query.dim() == 3
    if swapped:
        turned = {id(t): t.transpose(1, 0) for t in (query, key, value)}
        query, key, value = (turned[id(t)] for t in (query, key, value))
    result, seen = F.multi_head_attention_forward(
        query, key, value, training=training, **masks, **weights, **options
    )
    return (result.transpose(1, 0) if swapped else result), seen
