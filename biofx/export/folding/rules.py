"""The rules of folding: what each operation makes of a value that repeats.

A rule gets the analysis and a node, and gives what is known about the node's value. It raises
`Unfoldable` where the operation does not keep the repetition.
"""

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

from biofx.export.folding.analysis import Analysis, Rule
from biofx.export.folding.elementwise import (
    ACTIVATIONS,
    BINARY,
    DROPOUT,
    OPERATORS,
    UNARY,
    activation,
    dropout,
    pointwise,
)
from biofx.export.folding.layout import Rep, Unfoldable
from biofx.export.folding.norms import NORM_RANKS, norm
from biofx.export.folding.shapes import item, permute, reshape, size, transpose, unsqueeze
from biofx.export.folding.spatial import POOLS, cat, pad, pool, reduce, resize, softmax
from biofx.export.folding.weights import SPATIAL, WEIGHT_FUNCTIONS, class_key, function, layer


def unknown(analysis: Analysis, node: fx.Node) -> Rep | None:
    """An operation that may do anything."""
    if analysis.repeats(node):
        raise Unfoldable("nothing is known about what it keeps")
    return None


def rule_of(target: Any) -> Rule:
    """The rule of a function, a method's name or a module's class."""
    try:
        return _RULES.get(class_key(target), unknown)
    except TypeError:  # not hashable
        return unknown


def _rules() -> dict[Any, Rule]:
    table: dict[Any, Rule] = {}
    for name in (*UNARY, *BINARY):
        table[name] = table[f"{name}_"] = pointwise
        table.update((getattr(home, name), pointwise) for home in (torch, F) if hasattr(home, name))
    table.update((getattr(operator, name), pointwise) for name in OPERATORS)
    table.update((getattr(F, name), dropout) for name in DROPOUT)
    table.update(dict.fromkeys(ACTIVATIONS, activation))
    table.update((key, layer) for key in SPATIAL if isinstance(key, type | str))
    table.update(dict.fromkeys(WEIGHT_FUNCTIONS, function))
    table.update(dict.fromkeys((*NORM_RANKS, nn.LayerNorm, nn.GroupNorm, nn.PReLU), norm))
    table.update(dict.fromkeys(POOLS, pool))
    by_rule: dict[Callable[..., Any], tuple[Any, ...]] = {
        reshape: (torch.flatten, torch.reshape, nn.Flatten, "flatten", "view", "reshape"),
        transpose: (torch.transpose, torch.swapaxes, "transpose", "swapaxes"),
        permute: (torch.permute, "permute"),
        unsqueeze: (torch.unsqueeze, "unsqueeze"),
        item: (operator.getitem,),
        size: (getattr, "size", "dim"),
        pad: (F.pad,),
        resize: (F.interpolate, nn.Upsample, nn.UpsamplingBilinear2d, nn.UpsamplingNearest2d),
        reduce: (torch.mean, torch.sum, torch.amax, torch.amin, "mean", "sum", "amax", "amin"),
        softmax: (torch.softmax, F.softmax, torch.log_softmax, F.log_softmax, "softmax",
                  "log_softmax", nn.Softmax, nn.LogSoftmax),
        cat: (torch.cat, torch.concat, torch.concatenate),
    }  # fmt: skip
    for rule, targets in by_rule.items():
        table.update(dict.fromkeys(targets, rule))
    return table


_RULES = _rules()
