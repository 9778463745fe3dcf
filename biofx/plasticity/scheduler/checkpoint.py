"""A scheduler's state as tensors and plain values, and what must agree before it is taken back."""

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from biofx.errors import CheckpointError
from biofx.plasticity.numerics.shards import is_sharded

if TYPE_CHECKING:
    from biofx.plasticity.scheduler.binding import Binding
    from biofx.plasticity.scheduler.engine import Engine

VERSION = 1
SHOWN = 8  # differences that a message lists

States = dict[str, dict[str, dict[str, Any]]]


def fingerprint(engine: "Engine", **more: Any) -> str:
    """What a run must share with the one that wrote its checkpoint, as JSON.

    One string: a distributed checkpoint stores each leaf of a state dict on its own.
    """
    served = {
        key: {
            name: rule.settings(synapses)
            for name, synapses in engine.synapses.items()
            if rule.serves(synapses)
        }
        for key, rule in zip(engine.keys, engine.rules, strict=True)
    }
    shapes = {name: list(synapses.shape) for name, synapses in engine.synapses.items()}
    content = {"seed": engine.seed, **more, "rules": served, "shapes": shapes}
    return json.dumps(content, default=str)


def check(text: Any, engine: "Engine", **more: Any) -> None:
    """Compare a checkpoint's fingerprint with the scheduler's.

    Raises:
        CheckpointError: they differ; the message names the differences.
    """
    try:
        theirs = json.loads(text)
    except (TypeError, ValueError):
        raise CheckpointError("this is not a checkpoint of a GradScheduler") from None
    ours = json.loads(fingerprint(engine, **more))
    problems = [
        f"{name} is {theirs.get(name)!r} in the checkpoint and {value!r} here"
        for name, value in ours.items()
        if name not in ("rules", "shapes") and theirs.get(name) != value
    ]
    problems += _different(theirs["shapes"], ours["shapes"], "parameter {}", "has shape {}")
    if list(theirs["rules"]) != list(ours["rules"]):
        problems.append(
            f"the checkpoint's rules are {list(theirs['rules'])}, here they are "
            f"{list(ours['rules'])}"
        )
    else:
        for rule, parameters in ours["rules"].items():
            problems += _different_settings(rule, theirs["rules"][rule], parameters)
    if problems:
        more_of_them = f"; and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        raise CheckpointError(
            "the checkpoint belongs to another run: " + "; ".join(problems[:SHOWN]) + more_of_them
        )


def _different(theirs: dict[str, Any], ours: dict[str, Any], what: str, detail: str) -> list[str]:
    problems = []
    for name in {**theirs, **ours}:
        if name not in ours:
            problems.append(f"{what.format(name)} is only in the checkpoint")
        elif name not in theirs:
            problems.append(f"{what.format(name)} is not in the checkpoint")
        elif theirs[name] != ours[name]:
            problems.append(
                f"{what.format(name)} {detail.format(theirs[name])} in the checkpoint and "
                f"{ours[name]} here"
            )
    return problems


def _different_settings(rule: str, theirs: dict[str, Any], ours: dict[str, Any]) -> list[str]:
    problems = []
    for name in {**theirs, **ours}:
        if name not in theirs or name not in ours:
            place = "here" if name in ours else "in the checkpoint"
            problems.append(f"{rule} serves {name} only {place}")
            continue
        problems += [
            f"{name}: {rule}'s {field} is {theirs[name].get(field)!r} in the checkpoint and "
            f"{ours[name].get(field)!r} here"
            for field in {**theirs[name], **ours[name]}
            if theirs[name].get(field) != ours[name].get(field)
        ]
    return problems


def collect(engine: "Engine") -> States:
    """{rule: {parameter: state}}; tensors share memory with the scheduler's, as in optimizers."""
    states: States = {key: {} for key in engine.keys}
    for name, binding in engine.bindings.items():
        for key, state in _states(binding).items():
            if state:
                states[key][name] = {
                    field: _global(value, binding) for field, value in state.items()
                }
    for name, waiting in engine.waiting.items():
        for key, state in waiting.items():
            states[key][name] = dict(state)
    return {key: parameters for key, parameters in states.items() if parameters}


def spread(engine: "Engine", states: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> None:
    """Give states back to the rules; those of parameters not bound yet wait for them."""
    by_parameter: States = {}
    for key, parameters in states.items():
        for name, state in parameters.items():
            by_parameter.setdefault(name, {})[key] = dict(state)
    engine.waiting = {}
    engine.drop_activity()
    for name, binding in engine.bindings.items():
        # What a checkpoint says nothing of had no state yet: a layer that was thawed later.
        for rule, context in binding.pairs:
            context.state = {}
            rule.prepare(context)
        restore(binding, by_parameter.pop(name, {}))
    engine.waiting = by_parameter


def restore(binding: "Binding", found: Mapping[str, Mapping[str, Any]]) -> None:
    """Give one parameter's states back.

    Raises:
        CheckpointError: a tensor's shape is not that of the scheduler's own.
    """
    for _, context in binding.pairs:
        context.memo.clear()
    for key, state in _states(binding).items():
        for field, value in found.get(key, {}).items():
            own = state.get(field)
            if not isinstance(value, Tensor):
                state[field] = value
                continue
            value = _local(value, binding)
            if isinstance(own, Tensor) and own.shape != value.shape:
                raise CheckpointError(
                    f"{binding.name}: {key}'s {field} has shape {tuple(value.shape)} in the "
                    f"checkpoint and {tuple(own.shape)} here"
                )
            if isinstance(own, Tensor):
                own.copy_(value)
            else:
                state[field] = value.to(binding.pairs[0][1].weight.device, copy=True)


def _states(binding: "Binding") -> dict[str, dict[str, Any]]:
    return {context.rule: context.state for _, context in binding.pairs}


def _global(value: Any, binding: "Binding") -> Any:
    """A per-synapse tensor of a DTensor parameter, as a DTensor."""
    shard = binding.shard
    if binding.layout is None or not isinstance(value, Tensor) or value.shape != shard.size:
        return value
    from torch.distributed.tensor import DTensor

    mesh, placements = binding.layout
    stride = torch.empty(shard.shape, device="meta").stride()
    return DTensor.from_local(
        value, mesh, placements, run_check=False, shape=torch.Size(shard.shape), stride=stride
    )


def _local(value: Tensor, binding: "Binding") -> Tensor:
    """The local part of a tensor from a checkpoint, however that was sharded."""
    shard = binding.shard
    if is_sharded(value):
        placed = (value.device_mesh, tuple(value.placements))  # type: ignore[attr-defined]
        if binding.layout is not None and placed == (
            binding.layout[0],
            tuple(binding.layout[1]),
        ):
            return value.to_local()  # type: ignore[attr-defined,no-any-return]
        value = value.full_tensor()  # type: ignore[attr-defined]
    if shard.size != shard.shape and tuple(value.shape) == shard.shape:
        return shard.part(value)
    return value
