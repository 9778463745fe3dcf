"""What optimizers keep for each weight, when a synapse is new: start values, places, few bits."""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from biofx.errors import PlasticityError
from biofx.plasticity.kernels.base import Kernels
from biofx.plasticity.numerics.shards import Shard, local
from biofx.plasticity.scheduler.entries import fits, is_near, tensors_in
from biofx.plasticity.scheduler.trial import PLAIN, Traits

# Floating-point numbers of one byte, whose 0 is 0.
_BYTES = frozenset(
    {torch.float8_e4m3fn, torch.float8_e4m3fnuz, torch.float8_e5m2, torch.float8_e5m2fnuz}
)


def innermost(optimizer: Any) -> tuple[Any, tuple[Any, ...]]:
    """The optimizer that moves the weights, and those that are wrapped around it.

    Wrappers (Lookahead, SAM, Opacus's, Accelerate's, `PostLocalSGDOptimizer`) hold an optimizer of
    the same parameters, and do what they do before and after its step: factors belong to that.
    """
    around: list[Any] = []
    while (inner := _inner(optimizer)) is not None and len(around) < 8:
        around.append(optimizer)
        optimizer = inner
    return optimizer, tuple(around)


def state_of(optimizer: Any, parameter: Tensor) -> dict[str, Any]:
    """What an optimizer keeps for a parameter, or the one in it that does its work (ZeRO's)."""
    state: dict[str, Any] = getattr(optimizer, "state", {}).get(parameter, {})
    inner = getattr(optimizer, "optim", None)
    return state_of(inner, parameter) if not state and isinstance(inner, Optimizer) else state


def warn_of_lost_state(optimizer: Optimizer, states: Iterable[Mapping[str, Any]]) -> None:
    """Warn if an optimizer has taken steps before the first one of its scheduler.

    Args:
        optimizer: before a step.
        states: what it keeps for some parameters.
    """
    # An optimizer's `k` may count steps (schedule-free) or be a setting (Lookahead).
    starts = optimizer.defaults
    counts = [state["step"] for state in states if "step" in state] + [
        group[key]
        for group in optimizer.param_groups
        for key in ("step", "k")
        if key in group and not (starts.get(key) and group[key] == starts[key])
    ]
    numbers = [
        float(count)
        for count in counts
        if isinstance(count, int | float) or (isinstance(count, Tensor) and count.numel() == 1)
    ]
    steps = int(max(numbers, default=0))
    if steps > 1:  # one may have been there to make the state
        warnings.warn(
            f"{type(optimizer).__name__} has taken {steps} steps, but its GradScheduler none: "
            "rules start from nothing. If this run was resumed from a checkpoint, save "
            "scheduler.state_dict() with it and load it too",
            UserWarning,
            stacklevel=2,
        )


def start_afresh(
    name: str,
    states: Sequence[Mapping[str, Any]],
    fresh: Tensor,
    *,
    weight: Tensor,
    traits: Traits = PLAIN,
    shard: Shard,
    kernels: Kernels,
) -> None:
    """Give new synapses the optimizer state that it made for the first ones.

    Args:
        name: of the parameter.
        states: what the optimizer, and those around it, keep for the parameter.
        fresh: a mask of the weight's local shape, true where a synapse is new.
        weight: the local weights; entries that hold places of weights get these.
        traits: what the entries of the first state mean.
        shard, kernels: of the parameter.

    Raises:
        PlasticityError: an entry cannot be reset.
    """
    plain = []
    for place, state in enumerate(states):
        known = place == 0 and traits.tried
        for key, value in _entries(state, fresh):
            if known and key in traits.mixed:
                continue
            if value.is_sparse:  # SGD's momentum of an embedding; it need not be coalesced
                value._values().masked_fill_(fresh[value._indices().unbind()], 0)
                continue
            if not is_plain(value):
                _clear(name, key, value, state, fresh)
                continue
            value = value.view(fresh.shape)
            if (known and key in traits.positions) or (
                not known and is_near(value[~fresh], weight[~fresh])
            ):
                value.copy_(torch.where(fresh, weight.to(value.dtype), value))
            elif known and traits.starts.get(key):
                value.masked_fill_(fresh, traits.starts[key])
            else:
                plain.append(value)
    kernels.fill(plain, fresh, 0.0, shard=shard)


def _inner(optimizer: Any) -> Optimizer | None:
    held = _parameters(optimizer)
    for value in vars(optimizer).values() if hasattr(optimizer, "__dict__") else ():
        if isinstance(value, Optimizer) and value is not optimizer and held == _parameters(value):
            return value
    # Accelerate's and other wrappers that take no hooks
    inner = getattr(optimizer, "optimizer", None)
    hookable = hasattr(optimizer, "_optimizer_step_pre_hooks")
    return inner if not hookable and isinstance(inner, Optimizer) else None


def _parameters(optimizer: Any) -> set[int]:
    groups = getattr(optimizer, "param_groups", None) or ()
    return {id(parameter) for group in groups for parameter in group["params"]}


def _entries(state: Mapping[str, Any], fresh: Tensor) -> list[tuple[str, Tensor]]:
    """Entries with a number, or a code of one, for each local weight."""
    found = []
    for key, value in state.items():
        for tensor in map(local, tensors_in(value)):
            coded = tensor.dtype in (torch.uint8, torch.int8) and tensor.shape == fresh.shape
            number = tensor.is_floating_point() and fits(tensor, fresh.shape)
            if tensor.dim() and (number or coded):
                found.append((key, tensor))
    return found


def is_plain(value: Any) -> bool:
    """Whether a kernel can write into its memory: no subclass, no codes, no single bytes."""
    return type(value) is Tensor and value.is_floating_point() and value.element_size() > 1


def _clear(name: str, key: str, value: Tensor, state: Mapping[str, Any], fresh: Tensor) -> None:
    """Set entries of few bits to 0: those of new synapses alone, to the bit."""
    codes, levels = _coded(key, value, state)
    if codes is not None and codes.shape == fresh.shape:
        zero = 0  # of a floating-point type: all of its bits
        if levels is not None:
            nulls = (levels == 0).nonzero()
            if nulls.numel():
                zero = int(nulls[0])
            else:
                codes = None
        if codes is not None:
            codes.masked_fill_(fresh, zero)
            return
    raise PlasticityError(
        f"{name}: new synapses have no past, but {key!r} of the optimizer's state "
        f"({type(value).__name__}, {value.dtype}) cannot be set to 0 for them alone; use an "
        "optimizer whose state is 8-bit or wider and holds 0, such as AdamW8bit, or leave "
        "Rejuvenate out (only=…, rejuvenate_every=0)"
    )


def _coded(
    key: str, value: Tensor, state: Mapping[str, Any]
) -> tuple[Tensor | None, Tensor | None]:
    """The codes of an entry, one byte each, and the level that each code stands for.

    Torchao's entries hold both themselves; bitsandbytes has ``state1`` and, beside it, ``qmap1``.
    """
    codes, levels = getattr(value, "codes", value), getattr(value, "qmap", None)
    if type(codes) is Tensor and codes.dtype in _BYTES:
        return codes.view(torch.uint8), None
    if isinstance(codes, Tensor) and codes is not value:
        return (codes, levels) if isinstance(levels, Tensor) else (None, None)
    levels = state.get(key.replace("state", "qmap"))
    if type(value) is Tensor and key.startswith("state") and isinstance(levels, Tensor):
        return value, levels
    return None, None
