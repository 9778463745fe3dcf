"""The vocabulary of the pictures: markers, colours; settings, reasons and assumptions in words."""

from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Literal

from biofx.config import BioConfig, Distribution
from biofx.diff.text import natural, without_places
from biofx.synapses import Layer, Record, Synapses

if TYPE_CHECKING:
    from biofx.diff.graph import GraphDiff

# What stands in the first column; a marker says the same as the colour.
MARKS = {
    "replaced": "~",
    "split": "+",
    "inserted": "+",
    "skipped": "!",
    "opaque": "#",
    "unchanged": "·",
    "fold": "⋮",
    "": " ",
}
STYLES = {
    "replaced": "cyan",
    "split": "green",
    "inserted": "green",
    "skipped": "yellow",
    "opaque": "magenta",
    "unchanged": "dim",
    "fold": "dim",
    "": "",
}
LEGEND = {
    "replaced": "plastic",
    "split": "plastic and split",
    "skipped": "no plasticity",
    "opaque": "not traced",
    "unchanged": "as it was",
    "fold": "folded",
}


# --- settings ------------------------------------------------------------------------------------


def plasticity(config: BioConfig) -> str:
    """What every layer gets: ``uniform ν=0.16 · Γ=2 in groups · crystallize every step``."""
    told = [_factors(config)]
    if config.weight_splitting_Gamma > 1:
        told.append(_gamma(config.weight_splitting_Gamma, config.weight_splitting_mode))
    every = {
        "volume-dependent rate": config.volume_dependent_every,
        "crystallize": config.crystallize_every,
        "rejuvenate": config.rejuvenate_every,
        "unit turnover": config.unit_turnover_every,
    }
    told += [f"{name} every {'step' if n == 1 else f'{n} steps'}" for name, n in every.items() if n]
    if config.restore_strength:
        told.append(f"restore k={config.restore_strength:g}")
    if config.apply_dales_principle:
        told.append(_dale(config))
    return " · ".join(told)


def _factors(config: BioConfig) -> str:
    """How the factors of learning rates are drawn."""
    kind = config.fuzzy_lr_distribution
    if kind is Distribution.BASELINE:
        return "equal learning rates"
    dynamic = " dynamic" if config.fuzzy_lr_dynamic else ""
    return f"{kind} ν={config.fuzzy_learning_rate_factor_nu:g}{dynamic}"


def _gamma(gamma: int, mode: str | None) -> str:
    return f"Γ={gamma} {'in groups' if mode == 'group' else 'expanded'}"


def _dale(config: BioConfig) -> str:
    return "Dale" if config.dale_axis == "pre" else f"Dale ({config.dale_axis})"


_FACTORS = ("fuzzy_lr_distribution", "fuzzy_learning_rate_factor_nu", "fuzzy_lr_dynamic")
_SPLIT = ("weight_splitting_Gamma", "weight_splitting_mode")


def differences(record: Record, synapses: Synapses) -> str:
    """The settings of one layer that are not the model's: ``lognormal ν=0.3 · base_lr=0.2``."""
    base, own = record.config, synapses.config
    if own is base:
        return ""
    changed = [
        name
        for name in {**base.to_dict(), **own.to_dict()}
        if getattr(base, name) != getattr(own, name)
    ]
    told = []
    if any(name in _FACTORS for name in changed):
        told.append(_factors(own))
    if any(name in _SPLIT for name in changed) and synapses.split is not None:
        told.append(_gamma(synapses.gamma, synapses.split))
    if "apply_dales_principle" in changed or "dale_axis" in changed:
        told.append(_dale(own) if own.apply_dales_principle else "no Dale")
    rest = [name for name in changed if name not in (*_FACTORS, *_SPLIT)]
    told += [
        f"{name}={_short(getattr(own, name))}"
        for name in rest
        if name not in ("apply_dales_principle", "dale_axis")
    ]
    return " · ".join(told)


def _short(value: object) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return str(getattr(value, "__name__", value))


def overriding(record: Record) -> list[str]:
    """The globs of `overrides` that some layer matches."""
    return [
        glob
        for glob in record.config.overrides
        if any(fnmatchcase(name, glob) for name in record.layers)
    ]


def own_synapses(record: Record, layer: Layer) -> list[Synapses]:
    """The synapses of a layer that no layer before it has."""
    found = [record.synapses[name] for name in layer.parameters]
    return [item for item in found if item.layers[0] == layer.name]


def particular(record: Record, layer: Layer) -> str:
    """What is particular to the synapses of one layer; empty where it is as everywhere."""
    own = [record.synapses[name] for name in layer.parameters]
    told = dict.fromkeys(text for item in own if (text := differences(record, item)))
    if own and own[0].layers[0] != layer.name:
        told[f"shared with {own[0].layers[0] or 'the model'}"] = None
    if layer.output:
        told["output"] = None
    if layer.action == "skipped":
        told = {"frozen" if (layer.reason or "").startswith("frozen") else "none": None}
    return " · ".join(told)


# --- reasons -------------------------------------------------------------------------------------


@dataclass
class Reason:
    """Why some modules are not what was asked for.

    Attributes:
        kind: "skipped", "not split", "opaque" (not traced) or "note".
        text: the reason; numbers that differ between the modules are left out.
        names: of the modules.
    """

    kind: Literal["skipped", "not split", "not traced", "note"]
    text: str
    names: list[str]


def reasons(record: Record) -> tuple[list[Reason], dict[str, int]]:
    """Every reason once, and {reason as the record has it: its number}."""
    found: dict[tuple[str, str], Reason] = {}
    alike: dict[tuple[str, str], list[str]] = {}
    for kind, name, reason in _reasons(record):
        key = kind, without_places(reason)
        entry = found.setdefault(key, Reason(kind, reason, []))  # type: ignore[arg-type]
        entry.names.append(name)
        alike.setdefault(key, []).append(reason)
        if entry.text != reason:
            entry.text = key[1]
    places = {key: number for number, key in enumerate(found, 1)}
    numbers = {
        (f"not split: {reason}" if key[0] == "not split" else reason): places[key]
        for key, members in alike.items()
        for reason in members
    }
    return list(found.values()), numbers


def _reasons(record: Record) -> Iterator[tuple[str, str, str]]:
    order = {"skipped": 0, "not traced": 1, "not split": 2, "note": 3}
    found = [("not traced", name, reason) for name, reason in record.opaque.items()]
    for name, layer in record.layers.items():
        if not layer.reason:
            continue
        if layer.action == "skipped":
            found.append(("skipped", name, layer.reason))
        elif layer.reason.startswith("not split: "):
            found.append(("not split", name, layer.reason.removeprefix("not split: ")))
        else:
            found.append(("note", name, layer.reason))
    yield from sorted(found, key=lambda item: order[item[0]])


# --- what is known, and what is taken for granted ------------------------------------------------


def function(diff: "GraphDiff") -> tuple[str, str]:
    """(what became of the model's function, its style)."""
    layers = [layer for layer in diff.record.layers.values() if layer.action == "split"]
    if diff.function == "changed":
        groups = sum(
            any(diff.record.synapses[p].split == "group" for p in layer.parameters)
            for layer in layers
        )
        noun = "layer" if groups == 1 else "layers"
        return f"changed as asked for: {groups:,} {noun} split in groups of units", "bold red"
    if diff.function == "rounding":
        return "unchanged by construction, up to rounding (split layers are expanded)", "green"
    return "unchanged by construction, to the bit", "green"


def wiring(record: Record) -> str:
    """What is known about what feeds what."""
    if not record.wiring.known:
        return f"unknown for {len(record.wiring.unknown):,} of {len(record.layers):,} layers"
    mode = "training" if record.training else "evaluation"
    how = f"one run in {mode} mode" if record.whole else "tracing, without example inputs"
    return f"known, from {how}"


# What an assumption of each kind means, and what to do about it.
MEANING = {
    "data": "The graph shows the way that these data took. torch.where keeps both ways in it.",
    "constant": "The graph keeps that tensor. Make it a buffer if it belongs to the model.",
    "state": "The model itself goes on doing so; only the graph leaves it out.",
    "random": "The graph shows one draw. example_inputs show the calls that draw with torch.",
    "default": "The graph describes such calls; example_inputs can give other arguments.",
    "hook": "The model's own forward registers it. A forward made of the graph is refused.",
    "backward": "No forward is made of the graph. example_inputs show Function.apply(x) whole.",
    "shared": "Calls of either model change it. Give its class a __deepcopy__ to keep them apart.",
    "outputs": "Layers taken for outputs are not split. example_inputs show which they are.",
}
_BRANCHES = ("__bool__", "bool", ".bool()", ".is_nonzero()")


def assumed(record: Record, kind: str) -> list[str]:
    """The assumptions of one kind, a line each: ``gpt.py:14: branches on data: …``."""
    found = [item for item in record.assumptions if item.kind == kind]
    if kind == "default" and len(found) > 1:
        names = ", ".join(item.what.removeprefix("called with ") for item in found)
        return [f"called with {names}"]
    lines = dict.fromkeys(
        (f"{item.where}: " if item.where else "") + _what(kind, item.what) for item in found
    )
    return sorted(lines, key=natural)


def _what(kind: str, what: str) -> str:
    if kind != "data":
        return what
    call, gave, value = what.partition(" gave ")
    if not gave:
        return what
    verb = (
        "branches on" if call in _BRANCHES or value in ("True", "False") else "takes a value from"
    )
    return f"{verb} data: {call} was {value}"
