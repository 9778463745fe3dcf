"""Which modules are nodes of a graph, and which have graphs of their own."""

import functools

import torch
from torch import nn

# torch.nn modules whose forward chooses between implementations at run time.
CHOOSES_AT_RUN_TIME = (
    nn.Transformer,
    nn.TransformerEncoder,
    nn.TransformerDecoder,
    nn.TransformerEncoderLayer,
    nn.TransformerDecoderLayer,
)
# torch.nn leaves that do not simply return one tensor.
RETURNS_MORE = (
    nn.MultiheadAttention, nn.RNNBase, nn.LSTMCell, nn.AdaptiveLogSoftmaxWithLoss,
    nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d,
    nn.AdaptiveMaxPool3d, nn.FractionalMaxPool2d, nn.FractionalMaxPool3d,
)  # fmt: skip


# These ask the type: `isinstance` looks for `__class__` too, which is watched during a capture.


def is_leaf(module: nn.Module) -> bool:
    """Modules of torch.nn are nodes of a graph, not graphs; `Sequential` is the exception."""
    kind: type = type(module)
    return _is_leaf(kind)


def returns_one_tensor(module: nn.Module) -> bool:
    """Whether a module is a leaf of torch.nn that simply returns one tensor."""
    kind: type = type(module)
    return _returns_one_tensor(kind)


@functools.lru_cache(maxsize=1024)
def _is_leaf(kind: type) -> bool:
    if issubclass(kind, torch.jit.ScriptModule):
        return True
    own = kind.__module__.startswith(("torch.nn.", "torch.ao.nn."))
    composite = issubclass(kind, (nn.Sequential, *CHOOSES_AT_RUN_TIME))
    return own and not composite and kind.__name__ != "Module"


@functools.lru_cache(maxsize=1024)
def _returns_one_tensor(kind: type) -> bool:
    more = RETURNS_MORE + CHOOSES_AT_RUN_TIME
    return kind.__module__.startswith("torch.nn.modules") and not issubclass(kind, more)


def bases_of(module: nn.Module) -> list[type]:
    """The classes below `nn.Module` that a module is made of."""
    return [base for base in type(module).__mro__ if base is not nn.Module and base is not object]
