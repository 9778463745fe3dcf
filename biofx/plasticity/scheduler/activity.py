"""How often units were active: counted by their layers, added up, handed to the rules."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from biofx.errors import PlasticityError
from biofx.plasticity.numerics.shards import replicas
from biofx.plasticity.rules.rule import Context
from biofx.synapses import Synapses, unwrap


def collect_activity(model: nn.Module, users: Sequence[Context]) -> None:
    """Hand the counts since the last step to the rules that need them, over all processes.

    Args:
        model: wrapped or not.
        users: contexts of rules that need activity.
    """
    counts: list[Tensor] = []
    for context in users:
        buffers = counters(model, context.synapses)
        counts.append(torch.stack(buffers).sum(0).to(torch.float32))
        torch._foreach_zero_(buffers)
    whole = torch.cat(counts)
    for group in replicas(model):
        dist.all_reduce(whole, group=group)
    parts = torch.split(whole, [len(part) for part in counts])
    for context, part in zip(users, parts, strict=True):
        context.activity = part


def counters(model: nn.Module, synapses: Synapses) -> list[Tensor]:
    """The counters of the layers that use a parameter, one number per post-synaptic unit.

    Raises:
        PlasticityError: a layer does not count.
    """
    axis = synapses.post_axis
    units = synapses.shape[axis] * (1 if axis == 0 else synapses.groups)
    buffers = []
    for layer in synapses.layers:
        module = unwrap(model).get_submodule(layer)
        counts = getattr(module, "activity", None)
        if not isinstance(counts, Tensor) or tuple(counts.shape) != (units,):
            raise PlasticityError(
                f"{synapses.parameter}: its layer {layer} ({type(module).__name__}) does not count "
                f"the activity of its {units} output units: transform the model with ACTIVITY; "
                "if it was, this type cannot count: leave it out (overrides, or only=…)"
            )
        buffers.append(counts)
    return buffers
