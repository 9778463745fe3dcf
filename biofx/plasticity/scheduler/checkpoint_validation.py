"""Validates a checkpoint as a whole before anything of it is taken: its bytes come from outside."""

import json
import reprlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Never

import torch
from torch import Tensor

from biofx.errors import CheckpointError, printable
from biofx.plasticity.numerics.shards import shard_of
from biofx.plasticity.rules.rule import Rule
from biofx.plasticity.scheduler import newborns
from biofx.plasticity.scheduler.binding import Binding
from biofx.plasticity.scheduler.checkpoint import VERSION, fingerprint, part_of
from biofx.synapses import unwrap

if TYPE_CHECKING:
    from biofx.plasticity.scheduler.engine import Engine

SHOWN = 8  # differences that a message lists
MOST_STEPS = 2**62  # steps key random numbers, which takes 64-bit arithmetic

Limits = tuple[float, float] | frozenset[str]

# A whole number may stand for a fractional one that happened to be whole.
_ALSO: dict[type, tuple[type, ...]] = {int: (), float: (int,), bool: (), str: ()}

_short = reprlib.Repr()
_short.maxstring = _short.maxother = 80
_short.maxlist = 12


@dataclass(frozen=True)
class Accepted:
    """What a valid checkpoint says: steps per optimizer, {parameter: {rule: {field: value}}}.

    `held` are the parameters that rules had seen, which need have no state of them; `observers` the
    states of those who watched the scheduler; each validates its own.
    """

    steps: list[int]
    states: dict[str, dict[str, dict[str, Any]]]
    held: set[str]
    observers: dict[str, Mapping[str, Any]]


def accepted(
    state_dict: Any,
    engine: "Engine",
    *,
    optimizers: int,
    apply: str,
    names: Collection[str] | None = None,
) -> Accepted:
    """Everything that a checkpoint says, if all of it can be taken.

    Args:
        state_dict: the checkpoint.
        engine: the rules.
        optimizers: how many count steps.
        apply: where factors act.
        names: the parameters whose state it may hold; None means all.

    Raises:
        CheckpointError: it is no checkpoint, is damaged, or belongs to another run; the message
            names what and where. Nothing has been changed.
    """
    if not isinstance(state_dict, Mapping) or "fingerprint" not in state_dict:
        raise CheckpointError("this is not a checkpoint of a GradScheduler")
    for field, kind in (("fingerprint", str), ("steps", Sequence), ("state", Mapping)):
        if not isinstance(state_dict.get(field), kind) or (
            kind is Sequence and isinstance(state_dict[field], str | bytes)
        ):
            raise CheckpointError(f"the checkpoint is incomplete: it has no {field!r}")
    version = state_dict.get("version")
    if type(version) is not int or version != VERSION:
        raise CheckpointError(
            f"the checkpoint has version {shown(version)}; this biofx reads version {VERSION}"
        )
    theirs = _parsed(state_dict["fingerprint"])
    _compare(theirs, json.loads(fingerprint(engine, apply=apply)))
    steps = _steps(state_dict["steps"], optimizers)
    names = list(engine.kept()) if names is None else names
    states = _by_parameter(state_dict["state"], engine, names)
    held = {name for name in names if name in theirs.get("held", [])}
    for name in names:
        found = states.get(name, {})
        _check_parameter(name, found, engine, held=name in held)
    return Accepted(steps, states, held, _observers(state_dict.get("observers", {})))


def _observers(states: Any) -> dict[str, Mapping[str, Any]]:
    if not isinstance(states, Mapping) or not all(
        isinstance(key, str) and isinstance(state, Mapping) for key, state in states.items()
    ):
        raise CheckpointError(
            f"the checkpoint is damaged: its observers are {shown(states)}, no states by name"
        )
    return dict(states)


def shown(value: Any) -> str:
    """A value from a checkpoint as a short piece of a message."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)} and type {value.dtype}"
    return printable(_short.repr(value))


def _refuse(what: str) -> Never:
    raise CheckpointError(f"the checkpoint is damaged: {printable(what)}")


def _parsed(text: str) -> dict[str, Any]:
    """A fingerprint, of whose parts nothing but the shape is known to be right."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        _refuse("its fingerprint is not readable")
    if not isinstance(found, dict):
        _refuse("its fingerprint is not readable")
    rules, shapes = found.get("rules"), found.get("shapes")
    settings = [
        values
        for parameters in (rules.values() if isinstance(rules, dict) else [None])
        for values in (parameters.values() if isinstance(parameters, dict) else [None])
    ]
    if not isinstance(shapes, dict) or not all(isinstance(values, dict) for values in settings):
        _refuse("its fingerprint does not list rules, settings and shapes")
    if not isinstance(found.get("held", []), list):
        _refuse("its fingerprint does not list the parameters that it holds")
    return found


def _compare(theirs: dict[str, Any], ours: dict[str, Any]) -> None:
    problems = [
        f"{name} is {shown(theirs.get(name))} in the checkpoint and {value!r} here"
        for name, value in ours.items()
        if name not in ("rules", "shapes", "held") and theirs.get(name) != value
    ]
    problems += _different_shapes(theirs["shapes"], ours["shapes"])
    if list(theirs["rules"]) != list(ours["rules"]):
        problems.append(
            f"the checkpoint's rules are {shown(list(theirs['rules']))}, here they are "
            f"{list(ours['rules'])}"
        )
    else:
        for rule, parameters in ours["rules"].items():
            problems += _different_settings(rule, theirs["rules"][rule], parameters)
    if problems:
        more_of_them = f"; and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        raise CheckpointError(
            "the checkpoint belongs to another run: "
            + printable("; ".join(problems[:SHOWN]))
            + more_of_them
        )


def _different_shapes(theirs: dict[str, Any], ours: dict[str, Any]) -> Iterator[str]:
    for name in {**theirs, **ours}:
        if name not in ours:
            yield f"parameter {name[:200]} is only in the checkpoint"
        elif name not in theirs:
            yield f"parameter {name} is not in the checkpoint"
        elif theirs[name] != ours[name]:
            yield (
                f"parameter {name} has shape {shown(theirs[name])} in the checkpoint and "
                f"{ours[name]} here"
            )


def _different_settings(rule: str, theirs: dict[str, Any], ours: dict[str, Any]) -> Iterator[str]:
    for name in {**theirs, **ours}:
        if name not in theirs or name not in ours:
            place = "here" if name in ours else "in the checkpoint"
            yield f"{rule} serves {name[:200]} only {place}"
            continue
        for field in {**theirs[name], **ours[name]}:
            if theirs[name].get(field) != ours[name].get(field):
                yield (
                    f"{name}: {rule}'s {field[:200]} is {shown(theirs[name].get(field))} in the "
                    f"checkpoint and {ours[name].get(field)!r} here"
                )


def _steps(steps: Sequence[Any], optimizers: int) -> list[int]:
    if len(steps) != optimizers:
        raise CheckpointError(
            f"the checkpoint is of {len(steps)} optimizers, this scheduler has {optimizers}"
        )
    for count in steps:
        if type(count) is not int or not 0 <= count < MOST_STEPS:
            _refuse(f"steps holds {shown(count)}, which is no number of steps")
    return list(steps)


def _by_parameter(
    states: Mapping[Any, Any], engine: "Engine", names: Collection[str]
) -> dict[str, dict[str, dict[str, Any]]]:
    """{parameter: {rule: {field: value}}}, all of whose names are known here."""
    rules = dict(zip(engine.keys, engine.rules, strict=True))
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for key, parameters in states.items():
        if key not in rules:
            _refuse(f"its state has the rule {shown(key)}, which its fingerprint does not list")
        if not isinstance(parameters, Mapping):
            _refuse(f"{key}'s state is {shown(parameters)}, not a mapping of parameters")
        for name, state in parameters.items():
            if name not in names or not rules[key].serves(engine.synapses[name]):
                _refuse(
                    f"its state has the parameter {shown(name)}, which {key} does not serve here"
                )
            if not isinstance(state, Mapping) or not all(isinstance(f, str) for f in state):
                _refuse(f"{key}'s state of {name} is {shown(state)}, not a mapping of its fields")
            found.setdefault(name, {})[key] = dict(state)
    return found


def _check_parameter(
    name: str, found: dict[str, dict[str, Any]], engine: "Engine", *, held: bool
) -> None:
    """Compare what a checkpoint says of one parameter with what the rules would prepare.

    Args:
        name: of the parameter.
        found: {rule: {field: value}}; values become local parts where the parameter is bound.
        engine: the rules.
        held: whether the run that wrote the checkpoint says that it holds this parameter's state.
    """
    bound = engine.bindings.get(name)
    if not found and not (bound and held):
        return
    if bound is not None:  # it may have another name by now, as a pruned one has
        if not bound.pairs:
            return
        weight, shard, layout = bound.pairs[0][1].weight, bound.shard, bound.layout
    else:
        weight, layout = unwrap(engine.model).get_parameter(name), None
        if weight.is_meta:
            return  # nothing can be bound to it before it has data
        shard = shard_of(weight, name)
    blank = Binding(name, shard, engine.contexts(name, weight, shard), layout)
    for rule, context in blank.pairs:
        rule.prepare(context)
        key = context.rule
        if key not in found and not (bound and held):
            continue
        if newborns.REMEMBERS.keys() & found.get(key, {}).keys():
            newborns.make_room(context.state, blank)
        _check_fields(f"{key}'s", name, found.get(key, {}), rule, context.state)
        for field, value in found.get(key, {}).items():
            where = f"{key}'s {field} of {name}"
            own = context.state.get(field)
            if isinstance(value, Tensor):
                _check_tensor(where, value)
                value = part_of(value, blank)
                if bound is not None:
                    found[key][field] = value
            _check_kind(f"{name}: {key}'s {field}", where, value, own)
            limits = {**newborns.REMEMBERS, **(_remembered(rule) or {})}
            _check_range(where, value, limits.get(field.rpartition(".")[2]))


def _check_fields(
    whose: str, name: str, found: Mapping[str, Any], rule: Rule, own: Mapping[str, Any]
) -> None:
    keeps = _remembered(rule)
    for field in found:
        if keeps is not None and field not in own:
            _refuse(f"{whose} state of {name} has {shown(field)}, which the rule does not keep")
    for field in own:
        # A rule of the user's own may keep what it likes.
        if field not in found and (keeps is not None or field in newborns.REMEMBERS):
            _refuse(f"{whose} {field} of {name} is missing")


def _remembered(rule: Rule) -> Mapping[str, Limits] | None:
    """`Rule.remembers`, not inherited: a subclass may keep more."""
    own: Mapping[str, Limits] | None = vars(type(rule)).get("remembers")
    return own


def _check_tensor(where: str, value: Tensor) -> None:
    if value.is_meta:
        _refuse(f"{where} has no data (meta device)")
    if value.layout != torch.strided:
        _refuse(f"{where} is {value.layout}, not an ordinary tensor")


def _check_kind(place: str, where: str, value: Any, own: Any) -> None:
    """A tensor for a tensor of the same shape and sort, a number for a number."""
    if isinstance(own, Tensor):
        if not isinstance(value, Tensor):
            _refuse(f"{where} is {shown(value)}, not a tensor")
        if own.shape != value.shape:
            raise CheckpointError(
                printable(
                    f"{place} has shape {tuple(value.shape)} in the checkpoint and "
                    f"{tuple(own.shape)} here"
                )
            )
        if _sort(own.dtype) != _sort(value.dtype):
            _refuse(f"{where} holds {value.dtype} where {own.dtype} is kept")
    elif type(own) in (int, float, bool, str) and type(value) not in (type(own), *_ALSO[type(own)]):
        _refuse(f"{where} is {shown(value)}, not of type {type(own).__name__}")


def _sort(dtype: torch.dtype) -> tuple[bool, bool, bool]:
    return dtype.is_floating_point, dtype.is_complex, dtype == torch.bool


def _check_range(where: str, value: Any, limits: Limits | None) -> None:
    if limits is None:
        return
    if isinstance(limits, frozenset):
        if value not in limits:
            _refuse(f"{where} is {shown(value)}, none of {sorted(limits)}")
        return
    low, high = limits
    numbers = value if isinstance(value, Tensor) else torch.tensor(float(value))
    if numbers.is_floating_point() and numbers.itemsize == 1:
        numbers = numbers.float()  # PyTorch has no comparisons for them
    wrong = ~((numbers >= low) & (numbers <= high) & torch.isfinite(numbers))
    bad = int(wrong.sum())
    if bad:
        first = numbers[wrong].flatten()[0].item()
        of = (
            f"has {bad} of {numbers.numel()} values, such as" if isinstance(value, Tensor) else "is"
        )
        _refuse(f"{where} {of} {first!r}, outside [{low:g}, {high:g}]")
