"""Which modules are one node of a graph."""

import torch
from torch import nn

from biofx.synapses import axes_of, original_class

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)


def is_leaf(module: nn.Module) -> bool:
    """Whether a module is one node: a weight layer, or a layer of torch.nn without layers inside.

    Containers and transformer layers of torch.nn are not: what they hold is wired visibly.
    """
    if isinstance(module, torch.jit.ScriptModule) or axes_of(module):
        return True
    kind = original_class(module)
    return (
        kind.__module__.startswith(("torch.nn.", "torch.ao.nn."))
        and not isinstance(module, _CONTAINERS)
        and not module._modules
    )


def has_hooks(module: nn.Module) -> bool:
    """Whether calling a module runs more than its forward."""
    return bool(module._forward_hooks or module._forward_pre_hooks)
