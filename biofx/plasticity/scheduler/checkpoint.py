"""A scheduler's state as tensors and plain values, and how it is given back."""

import json
from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from biofx.plasticity.numerics.shards import is_sharded

if TYPE_CHECKING:
    from biofx.plasticity.scheduler.binding import Binding
    from biofx.plasticity.scheduler.engine import Engine

VERSION = 1

States = dict[str, dict[str, dict[str, Any]]]


def fingerprint(engine: "Engine", names: Collection[str] | None = None, **more: Any) -> str:
    """What a run must share with the one that wrote its checkpoint, as JSON.

    One string: a distributed checkpoint stores each leaf of a state dict on its own. "held" are the
    parameters whose state is in it: one that is lost on the way is missed. Of `names`, or of all.
    Their weights are not begun again.
    A layer that is left alone, because it was changed, is in no checkpoint.
    """
    kept = engine.kept()
    served = {
        key: {
            name: rule.settings(synapses)
            for name, synapses in kept.items()
            if rule.serves(synapses)
        }
        for key, rule in zip(engine.keys, engine.rules, strict=True)
    }
    shapes = {name: list(synapses.shape) for name, synapses in kept.items()}
    content = {
        "seed": engine.seed,
        **more,
        "rules": served,
        "shapes": shapes,
        "held": _among(
            [*engine.bindings, *sorted(engine.begun.difference(engine.bindings))],
            kept if names is None else names,
        ),
    }
    return json.dumps(content, default=str)


def collect(engine: "Engine", names: Collection[str] | None = None) -> States:
    """{rule: {parameter: state}}, of some parameters or all.

    Tensors share memory with the scheduler's, as in optimizers.
    """
    names = engine.kept() if names is None else names
    states: States = {key: {} for key in engine.keys}
    for name in _among(engine.bindings, names):
        binding = engine.bindings[name]
        for key, state in _states(binding).items():
            if state:
                states[key][name] = {
                    field: _global(value, binding) for field, value in state.items()
                }
    for name in _among(engine.waiting, names):
        for key, state in engine.waiting[name].items():
            states[key][name] = dict(state)
    return {key: parameters for key, parameters in states.items() if parameters}


def by_parameter(states: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> States:
    """{parameter: {rule: state}} of {rule: {parameter: state}}."""
    found: States = {}
    for key, parameters in states.items():
        for name, state in parameters.items():
            found.setdefault(name, {})[key] = dict(state)
    return found


@torch.no_grad()
def spread(
    engine: "Engine",
    states: Mapping[str, Mapping[str, Mapping[str, Any]]],
    names: Collection[str] | None = None,
    held: Collection[str] = (),
) -> None:
    """Give valid states, {parameter: {rule: {field: value}}}, to the rules.

    Those of parameters that are not bound yet wait for them.

    Args:
        engine: the rules.
        states: of parameters.
        names: the parameters whose state is replaced; None means all.
        held: those that rules had seen, which need have no state of them.
    """
    names = engine.kept() if names is None else names
    engine.begun.difference_update(names)
    engine.begun.update(held)
    for name in _among(engine.waiting, names):
        del engine.waiting[name]
    for name, rules in states.items():
        if name not in engine.bindings:
            engine.waiting[name] = {key: dict(state) for key, state in rules.items()}
    for name in _among(engine.bindings, names):
        binding = engine.bindings[name]
        engine.drop_activity(binding)
        if name not in held and name not in states:
            # A layer that was thawed later: its rules begin when it is, as they did then.
            del engine.bindings[name]
            continue
        for rule, context in binding.pairs:
            context.state = {}
            rule.prepare(context)
        binding.stepped, binding.expressions, binding.factors = False, (), ()
        binding.numbers.clear()
        restore(binding, states.get(name, {}))


@torch.no_grad()
def restore(binding: "Binding", found: Mapping[str, Mapping[str, Any]]) -> None:
    """Give one parameter's states back."""
    for _, context in binding.pairs:
        context.memo.clear()
    for key, state in _states(binding).items():
        for field, value in found.get(key, {}).items():
            own = state.get(field)
            if not isinstance(value, Tensor):
                state[field] = value
                continue
            value = part_of(value.detach(), binding)
            if isinstance(own, Tensor):
                own.copy_(value)
            else:
                state[field] = value.to(binding.pairs[0][1].weight.device, copy=True)


def _among(found: Iterable[str], names: Collection[str]) -> list[str]:
    return [name for name in found if name in names]


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


def part_of(value: Tensor, binding: "Binding") -> Tensor:
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
