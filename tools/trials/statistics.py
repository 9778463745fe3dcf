"""Means and 95 % t-intervals, of values and of differences paired by seed."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from scipy import stats

FEWEST = 3  # seeds below which no interval is given


class Interval(NamedTuple):
    """A mean and the half-width of its 95 % t-interval; None where there are too few values."""

    mean: float
    half: float | None
    count: int

    def __str__(self) -> str:
        if self.half is None:
            return f"{self.mean:+.3f} (no interval: {self.count} seeds)"
        return f"{self.mean:+.3f} ± {self.half:.3f}"

    @property
    def verdict(self) -> str:
        """What the interval says."""
        if self.half is None:
            return f"too few seeds for an interval (it takes {FEWEST})"
        if abs(self.mean) <= self.half:
            return "no effect found"
        return "better" if self.mean > 0 else "worse"


def interval(values: Sequence[float]) -> Interval:
    """The mean of some values and its 95 % t-interval."""
    count = len(values)
    mean = sum(values) / count
    if count < FEWEST:
        return Interval(mean, None, count)
    variance = sum((value - mean) ** 2 for value in values) / (count - 1)
    factor = float(stats.t.ppf(0.975, count - 1))
    return Interval(mean, factor * math.sqrt(variance / count), count)


def paired(first: Sequence[float], second: Sequence[float]) -> Interval:
    """The interval of first − second, seed by seed."""
    return interval([a - b for a, b in zip(first, second, strict=True)])


def fifth(tasks: Sequence[float], *, last: bool) -> float:
    """Mean of the first or the last 20 % of the tasks, of one at least."""
    count = max(round(len(tasks) / 5), 1)
    part = tasks[-count:] if last else tasks[:count]
    return sum(part) / count


def score(result: dict[str, Any], name: str) -> float:
    """One number of a protocol's result."""
    if name in ("first", "last"):
        return fifth(result["tasks"], last=name == "last")
    return float(result[name])
