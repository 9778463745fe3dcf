"""`History`: samples of a run, at most so many, as plain arrays and bytes. Loads no torch."""

from __future__ import annotations

import base64
import math
from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

FORMAT = 1
KIND = "biofx history"
FACTOR_BINS = 40  # of 0.05, from 0 to 2; the last is open
UPDATE_BINS = 32  # of a quarter of a decade, from 1e-8 to 1; both ends are open
MISSING = float("nan")
MARKS = 64  # replacements of one synapse that are remembered


@dataclass
class Snapshot:
    """A parameter's weights at one moment: a matrix of some, and a histogram of a sample.

    Attributes:
        step: optimizer steps taken before.
        matrix: rows × columns weights, post- × pre-synaptic, row by row, as signed square roots:
            ±127 is ±`scale`.
        histogram: `packed` shares of equal bins from `low` to `high`, which leave out the tails.
    """

    step: int
    rows: int
    columns: int
    scale: float
    matrix: bytes
    low: float
    high: float
    histogram: bytes


@dataclass
class Synapse:
    """One synapse followed: a place in the parameter, and what stood there at each sample.

    Attributes:
        place: (post-synaptic, pre-synaptic) row and column of the weight matrix.
        born: the step at which it is first known; 0 for one that was there from the start.
        weight, factor: one number per sample, NaN before its birth.
        replaced: steps at which it died and a new synapse took its place.
    """

    index: int
    place: tuple[int, int]
    born: int
    weight: array[float]
    factor: array[float]
    replaced: list[int] = field(default_factory=list)


@dataclass
class LayerHistory:
    """What was seen of one parameter.

    Attributes:
        facts: what does not change: names, shape, rules.
        numbers: {metric: one number per sample, NaN where there was none}.
        factors, updates: `packed` histograms, one per sample.
        replaced: synapses replaced since the history began.
    """

    facts: dict[str, Any]
    numbers: dict[str, array[float]] = field(default_factory=dict)
    factors: list[bytes] = field(default_factory=list)
    updates: list[bytes] = field(default_factory=list)
    replaced: int = 0
    before: Snapshot | None = None
    after: Snapshot | None = None
    synapses: list[Synapse] = field(default_factory=list)

    def add(self, length: int, numbers: Mapping[str, float]) -> None:
        """One more sample of each metric, `length` having been taken before."""
        for name in numbers:
            if name not in self.numbers:
                self.numbers[name] = array("f", [MISSING] * length)
        for name, values in self.numbers.items():
            values.append(numbers.get(name, MISSING))

    def drop(self, place: int) -> None:
        """Forget one sample."""
        del self.factors[place], self.updates[place]
        for values in self.numbers.values():
            del values[place]
        for synapse in self.synapses:
            del synapse.weight[place], synapse.factor[place]


@dataclass
class History:
    """A run as it was seen at some of its steps.

    Attributes:
        facts: of the run: model, rules, seed, biofx version, steps between samples.
        tree: {module name: class name} of every module that holds a layer.
        skipped: weight layers without plasticity: name, type, reason.
        limit: most samples kept.
        steps: optimizer steps taken at each sample, ascending.
        layers: {parameter name: LayerHistory}.
    """

    facts: dict[str, Any]
    tree: dict[str, str]
    skipped: list[dict[str, str]]
    limit: int
    steps: list[int] = field(default_factory=list)
    layers: dict[str, LayerHistory] = field(default_factory=dict)

    def thin(self, every: int) -> None:
        """Forget samples beyond the limit, so that those left lie evenly in log(step + every).

        The first and the last stay. What is forgotten depends on nothing but the steps.
        """
        while len(self.steps) > max(self.limit, 2):
            spread = [
                (after + every) / (before + every)
                for before, after in zip(self.steps, self.steps[2:], strict=False)
            ]
            place = 1 + spread.index(min(spread))
            del self.steps[place]
            for layer in self.layers.values():
                layer.drop(place)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON: numbers with 4 significant digits, None for none."""
        return {
            "kind": KIND,
            "format": FORMAT,
            **self.facts,
            "tree": self.tree,
            "skipped": self.skipped,
            "limit": self.limit,
            "steps": self.steps,
            "layers": [_layer_dict(layer) for layer in self.layers.values()],
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> History:
        """The history that `to_dict` wrote.

        Raises:
            KeyError, TypeError, ValueError: something in it is missing or of the wrong type.
        """
        fixed = ("kind", "format", "tree", "skipped", "limit", "steps", "layers")
        layers = [_layer(entry) for entry in content["layers"]]
        return cls(
            facts={name: value for name, value in content.items() if name not in fixed},
            tree=dict(content["tree"]),
            skipped=list(content["skipped"]),
            limit=int(content["limit"]),
            steps=[int(step) for step in content["steps"]],
            layers={layer.facts["name"]: layer for layer in layers},
        )


def packed(shares: list[float]) -> bytes:
    """Shares from 0 to 1 as bytes of their square roots, so that small ones stay visible."""
    return bytes(round(255 * math.sqrt(min(max(share, 0.0), 1.0))) for share in shares)


def short(value: float) -> float | None:
    """A number with 4 significant digits; None if it is not finite."""
    return float(f"{value:.4g}") if math.isfinite(value) else None


def _text(values: bytes) -> str:
    return base64.b64encode(values).decode("ascii")


def _shorts(values: array[float]) -> list[float | None]:
    return [short(value) for value in values]


def _floats(values: list[float | None]) -> array[float]:
    return array("f", [MISSING if value is None else value for value in values])


def _layer_dict(layer: LayerHistory) -> dict[str, Any]:
    return {
        **layer.facts,
        "numbers": {name: _shorts(values) for name, values in layer.numbers.items()},
        "factors": _text(b"".join(layer.factors)),
        "updates": _text(b"".join(layer.updates)),
        "replaced": layer.replaced,
        "before": _snapshot_dict(layer.before),
        "after": _snapshot_dict(layer.after),
        "synapses": [
            {
                "index": synapse.index,
                "place": list(synapse.place),
                "born": synapse.born,
                "weight": _shorts(synapse.weight),
                "factor": _shorts(synapse.factor),
                "replaced": synapse.replaced,
            }
            for synapse in layer.synapses
        ],
    }


def _snapshot_dict(snapshot: Snapshot | None) -> dict[str, Any] | None:
    if snapshot is None:
        return None
    return {
        "step": snapshot.step,
        "rows": snapshot.rows,
        "columns": snapshot.columns,
        "scale": short(snapshot.scale),
        "matrix": _text(snapshot.matrix),
        "low": short(snapshot.low),
        "high": short(snapshot.high),
        "histogram": _text(snapshot.histogram),
    }


def _layer(content: Mapping[str, Any]) -> LayerHistory:
    fixed = ("numbers", "factors", "updates", "replaced", "before", "after", "synapses")
    return LayerHistory(
        facts={name: value for name, value in content.items() if name not in fixed},
        numbers={name: _floats(values) for name, values in content["numbers"].items()},
        factors=_rows(content["factors"], FACTOR_BINS),
        updates=_rows(content["updates"], UPDATE_BINS),
        replaced=int(content["replaced"]),
        before=_snapshot(content["before"]),
        after=_snapshot(content["after"]),
        synapses=[
            Synapse(
                index=int(entry["index"]),
                place=(int(entry["place"][0]), int(entry["place"][1])),
                born=int(entry["born"]),
                weight=_floats(entry["weight"]),
                factor=_floats(entry["factor"]),
                replaced=[int(step) for step in entry["replaced"]],
            )
            for entry in content["synapses"]
        ],
    )


def _snapshot(content: Mapping[str, Any] | None) -> Snapshot | None:
    if content is None:
        return None
    return Snapshot(
        step=int(content["step"]),
        rows=int(content["rows"]),
        columns=int(content["columns"]),
        scale=float(content["scale"]),
        matrix=base64.b64decode(content["matrix"], validate=True),
        low=float(content["low"]),
        high=float(content["high"]),
        histogram=base64.b64decode(content["histogram"], validate=True),
    )


def _rows(text: str, width: int) -> list[bytes]:
    content = base64.b64decode(text, validate=True)
    if len(content) % width:
        raise ValueError(f"{len(content)} bytes are not rows of {width}")
    return [content[start : start + width] for start in range(0, len(content), width)]
