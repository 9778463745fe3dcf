"""What a value repeats: the bookkeeping of folding."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from itertools import accumulate

import torch
from torch import Tensor


class Unfoldable(Exception):
    """A value must stay repeated in full here; the message says why."""


@dataclass(frozen=True)
class Layout:
    """How the units along one axis of a value come from fewer units of a small value.

    Attributes:
        axis: the axis, counted from the end (negative).
        runs: (units, copies) pairs in order; each unit of the small value stands `copies` times in
            a row in the full one. ``((32, 2), (8, 1))`` is 32 units twice each, then 8 once.
        spread: a unit is a block of neighbours, as long as the axis is long for it (what flatten
            makes of a channel), rather than a single element.
    """

    axis: int
    runs: tuple[tuple[int, int], ...]
    spread: bool = False

    @property
    def small(self) -> int:
        """Units of the small value."""
        return sum(units for units, _ in self.runs)

    @property
    def full(self) -> int:
        """Units of the full value."""
        return sum(units * copies for units, copies in self.runs)

    @property
    def repeats(self) -> bool:
        """Whether the full value is larger than the small one."""
        return any(copies > 1 for _, copies in self.runs)

    @property
    def copies(self) -> int | None:
        """How often every unit stands, if all stand equally often."""
        kinds = {copies for _, copies in self.runs}
        return kinds.pop() if len(kinds) == 1 else None

    def index(self) -> list[int]:
        """For every unit of the full value, its unit in the small one."""
        counts = [copies for units, copies in self.runs for _ in range(units)]
        return [unit for unit, copies in enumerate(counts) for _ in range(copies)]

    def firsts(self) -> list[int]:
        """For every unit of the small value, its first copy in the full one."""
        counts = [copies for units, copies in self.runs for _ in range(units)]
        return list(accumulate(counts, initial=0))[:-1]

    def moved(self, axis: int) -> "Layout":
        """The same along another axis."""
        return replace(self, axis=axis)

    @classmethod
    def joined(cls, axis: int, layouts: Iterable["Layout"]) -> "Layout":
        """The layout of values concatenated along their axis."""
        runs: list[tuple[int, int]] = []
        for layout in layouts:
            for units, copies in layout.runs:
                if runs and runs[-1][1] == copies:
                    runs[-1] = (runs[-1][0] + units, copies)
                else:
                    runs.append((units, copies))
        return cls(axis, tuple(runs))


@dataclass(frozen=True)
class Rep:
    """What is known about a value of the graph.

    Attributes:
        layout: how its units repeat.
        rank: number of dimensions, as far as one knows.
        origins: names of the split layers whose repetition it is.
    """

    layout: Layout
    rank: int | None = None
    origins: frozenset[str] = field(default=frozenset())


def sum_columns(weight: Tensor, layout: Layout, axis: int) -> Tensor:
    """A weight for the full value (axis: its inputs) as a weight for the small value.

    ``W (…, full·s, …)`` becomes ``(…, small·s, …)``: columns that meet equal inputs are added, in
    double precision.
    """
    block = weight.shape[axis] // layout.full
    wide = weight.detach().movedim(axis, 0)
    wide = wide.double() if weight.device.type != "mps" else wide
    parts = []
    for piece, (units, copies) in zip(
        wide.split([u * c * block for u, c in layout.runs]), layout.runs, strict=True
    ):
        apart = piece.unflatten(0, (units, copies, block))
        parts.append(apart.sum(1).flatten(0, 1))
    return torch.cat(parts).movedim(0, axis).to(weight.dtype).contiguous()


def equal_units(values: Tensor, layout: Layout, axis: int = 0) -> Tensor | None:
    """Per-unit values of the small value, if all copies of a unit have equal ones."""
    values = values.detach().movedim(axis, 0)
    if len(values) != layout.full:
        return None
    small = values[layout.firsts()]
    if not torch.equal(small[layout.index()], values):
        return None
    return small.movedim(0, axis).contiguous()
