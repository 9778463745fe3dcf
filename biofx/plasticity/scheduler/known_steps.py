"""Steps of which it is known what they do: nothing, or just −lr·g."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from biofx.plasticity.numerics.rounding import NARROW
from biofx.plasticity.numerics.shards import local
from biofx.plasticity.rules.rule import scalar
from biofx.plasticity.scheduler.binding import ParameterStep


def is_initialising(optimizer: Optimizer, kwargs: Any) -> bool:
    """Whether a step is only there to make the optimizer's state.

    `torch.distributed.checkpoint` takes one before it saves or loads an optimizer without a state:
    with learning rates and gradients of 0. (A learning rate of 0 alone may be a warm-up's.)
    """
    if optimizer.state:
        return False
    if type(optimizer) is torch.optim.SGD and "closure" not in kwargs:
        return False  # it may never have a state, and only that module calls it so
    for group in optimizer.param_groups:
        lr = group.get("lr")
        if isinstance(lr, Tensor) and lr.device.type != "cpu":
            return False  # somebody's own: what it holds is not known without waiting for it
        if lr is None or lr != 0:
            return False
    grads = [p.grad for group in optimizer.param_groups for p in group["params"]]
    return not any(grad is not None and bool(local(grad).any()) for grad in grads)


def keeps_gradients(optimizer: Optimizer) -> bool:
    """Whether a step is known to leave `.grad` as it is, so that gradients can be judged after."""
    return (
        type(optimizer) in (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW)
        and not hasattr(optimizer, "grad_scale")
        and not any(group.get("nesterov") for group in optimizer.param_groups)
    )


def plain_sgd(optimizer: Optimizer, site: ParameterStep) -> bool:
    """Whether the optimizer is known to add −lr·g, g as it stands in `.grad`, and nothing else."""
    group = site.group
    return (
        type(optimizer) is torch.optim.SGD
        and group["momentum"] == 0
        and group["weight_decay"] == 0
        and not hasattr(optimizer, "grad_scale")
        # Of half precision, what was added is not what the weights have moved by.
        and site.weight.dtype not in NARROW
        and site.grad is not None
        and not site.grad.is_sparse
    )


def rate(group: Mapping[str, Any], device: torch.device) -> Tensor:
    """What plain SGD multiplies gradients by before it adds them."""
    lr = group["lr"] if group["maximize"] else -group["lr"]
    return lr.to(device, torch.float32) if isinstance(lr, Tensor) else scalar(float(lr), device)


def scaler_attribute(name: str, optimizers: Iterable[Any]) -> Any:
    """What a `GradScaler` tells one of the optimizers that handle its scale themselves."""
    for one in optimizers:
        value = getattr(one, name, None)
        if value is not None:
            return value
    return None
