"""How often units were active: counted by their layers, added up, handed to the rules."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from biofx.errors import PlasticityError
from biofx.plasticity.numerics.shards import replicas
from biofx.plasticity.rules.rule import Context
from biofx.plasticity.scheduler.undo import Undo
from biofx.synapses import COUNTS, Synapses, unwrap


def collect_activity(model: nn.Module, users: Sequence[Context], undo: Undo | None) -> None:
    """Hand the counts since the last step to the rules that need them, over all processes.

    Args:
        model: wrapped or not.
        users: contexts of rules that need activity.
        undo: remembers what was counted.
    """
    counts: list[Tensor] = []
    for context in users:
        buffers = counters(model, context.synapses)
        counts.append(torch.stack(buffers).sum(0).to(torch.float32))
        for buffer in buffers:
            if undo is not None:
                undo.keep_count(buffer)
        torch._foreach_zero_(buffers)
    whole = torch.cat(counts)
    for group in replicas(model):
        dist.all_reduce(whole, group=group)
    parts = torch.split(whole, [len(part) for part in counts])
    for context, part in zip(users, parts, strict=True):
        context.activity = part


def counters(model: nn.Module, synapses: Synapses) -> list[Tensor]:
    """The counters of the layers that use a parameter, one number per post-synaptic unit.

    Of a tied weight (an embedding and the output layer) only those layers count whose output units
    are the parameter's: the others' are its input units.

    Raises:
        PlasticityError: none of the layers counts.
    """
    axis = synapses.post_axis
    units = synapses.shape[axis] * (1 if axis == 0 else synapses.groups)
    modules = [unwrap(model).get_submodule(layer) for layer in synapses.layers]
    counts = [module._buffers.get(COUNTS) for module in modules]
    buffers = [c for c in counts if isinstance(c, Tensor) and tuple(c.shape) == (units,)]
    if not buffers:
        raise PlasticityError(
            f"{synapses.parameter}: its layer {synapses.layers[0]} ({type(modules[0]).__name__}) "
            f"does not count the activity of its {units} output units: transform the model with "
            "ACTIVITY; if it was, this type cannot count: leave it out (overrides, or only=…)"
        )
    return buffers
