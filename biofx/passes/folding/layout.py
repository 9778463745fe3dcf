"""What a value repeats: the bookkeeping of the fold pass, and the sums of weights it rests on."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from itertools import accumulate

import torch
from torch import Tensor, fx

from biofx.passes.expansion import group_repeat


class Unfoldable(Exception):
    """A value must be repeated in full here; the message says why."""


class Replaced(Exception):
    """A rule has put a plain node in the place of the node."""


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

    def repeated(self, times: int) -> "Layout":
        """Every unit of the full value repeated once more."""
        return replace(self, runs=tuple((units, copies * times) for units, copies in self.runs))

    def index(self) -> list[int]:
        """For every unit of the full value, its unit in the small one."""
        counts = [copies for units, copies in self.runs for _ in range(units)]
        return [unit for unit, copies in enumerate(counts) for _ in range(copies)]

    def firsts(self) -> list[int]:
        """For every unit of the small value, its first copy in the full one."""
        counts = [copies for units, copies in self.runs for _ in range(units)]
        return list(accumulate(counts, initial=0))[:-1]

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
    """A value of the graph as a small value and a layout.

    Attributes:
        node: the node that computes the small value; the full value's own node if nothing repeats.
        layout: how the full value repeats it.
        rank: number of dimensions, if that is certain.
        likely: number of dimensions that it most likely has.
        origins: names of the split layers whose repetition it is.
    """

    node: fx.Node
    layout: Layout
    rank: int | None = None
    likely: int | None = None
    origins: frozenset[str] = field(default=frozenset())


def sum_columns(weight: Tensor, layout: Layout, axis: int) -> Tensor:
    """A weight for the full value (axis: its inputs) as a weight for the small value.

    ``W (…, full·s, …)`` becomes ``(…, small·s, …)``: columns that meet equal inputs are added, in
    double precision.

    Raises:
        Unfoldable: the inputs do not fit the layout.
    """
    size = weight.shape[axis]
    if size % layout.full or (not layout.spread and size != layout.full):
        raise Unfoldable(f"it has {size} inputs, and {layout.full} units feed it")
    block = size // layout.full
    wide = weight.detach().movedim(axis, 0)
    wide = wide.double() if weight.device.type != "mps" else wide
    parts = []
    for piece, (units, copies) in zip(
        wide.split([u * c * block for u, c in layout.runs]), layout.runs, strict=True
    ):
        apart = piece.unflatten(0, (units, copies, block))
        parts.append(apart.sum(1).flatten(0, 1))
    return torch.cat(parts).movedim(0, axis).to(weight.dtype).contiguous()


def equal_units(values: Tensor, layout: Layout) -> Tensor | None:
    """Per-unit values (axis 0) of the small value, if all copies of a unit have equal ones."""
    if len(values) != layout.full:
        return None
    small = values.detach()[layout.firsts()]
    return small if torch.equal(small[layout.index()], values.detach()) else None


def repeat_in_full(
    graph: fx.Graph, rep: Rep, hold_index: Callable[[list[int]], fx.Node]
) -> fx.Node:
    """Nodes that make the full value of the small one."""
    layout, x = rep.layout, rep.node
    if layout.spread:
        x = graph.call_method("unflatten", (x, layout.axis, [layout.small, -1]))
    axis = layout.axis - 1 if layout.spread else layout.axis
    if layout.copies is not None:
        x = graph.call_function(group_repeat, (x, layout.copies, axis))
    else:
        index = hold_index(layout.index())
        x = graph.call_function(torch.index_select, (x, axis, index))
    if layout.spread:
        x = graph.call_method("flatten", (x, axis, axis + 1))
    return x
