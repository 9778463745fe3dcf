"""Which modules are nodes of a graph, and which have graphs of their own."""

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


def is_leaf(module: nn.Module) -> bool:
    """Modules of torch.nn are nodes of a graph, not graphs; `Sequential` is the exception."""
    own = type(module).__module__.startswith(("torch.nn.", "torch.ao.nn."))
    if isinstance(module, torch.jit.ScriptModule):
        return True
    composite = isinstance(module, (nn.Sequential, *CHOOSES_AT_RUN_TIME))
    return own and not composite and type(module).__name__ != "Module"


def bases_of(module: nn.Module) -> list[type]:
    """The classes below `nn.Module` that a module is made of."""
    return [base for base in type(module).__mro__ if base is not nn.Module and base is not object]
