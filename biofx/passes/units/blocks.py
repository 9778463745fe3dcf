"""Blocks: which units of a layer the graph tells apart, so that groups of Γ must not mix them."""

import math
import operator
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, fx, nn

from biofx.capture.location import place_of
from biofx.passes.context import WeightLayer
from biofx.passes.units.classes import classes_of
from biofx.passes.units.flow import Flow, Source
from biofx.passes.units.operations import OPERATIONS, words
from biofx.passes.units.trace import name_of


@dataclass(frozen=True)
class Problem:
    """Why a layer must not be split; `by_gamma`: another Γ may do."""

    reason: str
    by_gamma: bool = True


@dataclass(frozen=True)
class Separation:
    """An operation that separates units of a layer.

    Attributes:
        labels: the part that each unit goes to.
        what: the operation, with its place in the user's code.
        known: False if what it does to them is not known.
    """

    labels: Tensor
    what: str
    known: bool = True

    def problem(self, gamma: int) -> "Problem | None":
        """Why units must not stand for each other in groups of Γ, or None."""
        size = len(self.labels)
        if not self.known:
            why = f"{self.what} reads its units, and what it does to them is not known"
            return Problem(why, by_gamma=False)
        changes = (self.labels.diff() != 0).nonzero().flatten() + 1
        if not bool((changes % gamma).any()):
            return None
        ends = [0, *changes.tolist(), size]
        blocks = sorted({b - a for a, b in pairwise(ends)})
        told = " and ".join(map(str, blocks[:3])) + (" …" if len(blocks) > 3 else "")
        plural = "" if blocks == [1] else "s"
        return Problem(
            f"Γ={gamma} would mix blocks of {told} unit{plural}, which {self.what} tells apart"
        )


class Blocks:
    """What separates the units of each layer.

    Args:
        flow: what was followed on a recorded graph, or None; then only operations that stand next
            to a layer, with nothing but element-by-element ones between, are looked at.
    """

    def __init__(self, flow: Flow | None) -> None:
        self._flow = flow

    @cached_property
    def _separations(self) -> Mapping[str, list[tuple[Source, list[Separation]]]]:
        flow = self._flow
        assert flow is not None
        sources = list(flow.sources.values())
        found: list[dict[tuple[int, ...], Separation]] = [{} for _ in sources]
        firsts = torch.tensor([source.first for source in sources])
        classes, done = torch.arange(flow.total), 0
        for cut in flow.cuts:
            # Units that were merged before the cut share its fate, those merged later do not.
            classes, done = classes_of(flow, classes, done, cut.merges), cut.merges
            labels = torch.full((flow.total,), -1)
            labels[classes[cut.ids]] = cut.labels
            labels = labels[classes]
            touched = (labels >= 0).nonzero().flatten()
            for number in torch.unique(torch.searchsorted(firsts, touched, right=True)).tolist():
                number -= 1
                source = sources[number]
                mine = labels[source.first : source.first + source.size]
                if not cut.known:
                    found[number].setdefault((), Separation(mine, cut.what, known=False))
                elif not bool((mine == mine[0]).all()):
                    key = tuple((mine.diff() != 0).nonzero().flatten().tolist())
                    found[number].setdefault(key, Separation(mine, cut.what))
        result: dict[str, list[tuple[Source, list[Separation]]]] = defaultdict(list)
        for source, separations in zip(sources, found, strict=True):
            result[source.layer].append((source, list(separations.values())))
        return result

    def problem(self, layer: WeightLayer, units: int, gamma: int) -> Problem | None:
        """Why Γ units of a layer in a row must not be made one, or None.

        Args:
            layer: the layer.
            units: how many units it has.
            gamma: Γ.
        """
        if self._flow is None:
            found = (s.problem(gamma) for s in _neighbours(layer, units))
            return next((problem for problem in found if problem is not None), None)
        for source, separations in self._separations.get(layer.name, ()):
            if source.size % gamma:
                name = f" of {source.block!r}" if source.block else ""
                return Problem(f"Γ={gamma} does not divide the {source.size} units{name}")
            for separation in separations:
                problem = separation.problem(gamma)
                if problem is not None:
                    return problem
        return None


# --- without shapes -----------------------------------------------------------------------------


def _neighbours(layer: WeightLayer, units: int) -> Iterator[Separation]:
    """What separates a layer's units in a graph without shapes, as far as its arguments show."""
    module: Any = layer.module
    axis = layer.axes[0].units
    if isinstance(module, nn.RNNBase | nn.RNNCellBase):
        axis, units = -1, getattr(module, "proj_size", 0) or module.hidden_size
        units *= 2 if getattr(module, "bidirectional", False) else 1
    if axis is None:
        return
    seen: set[fx.Node] = set()
    waiting = [user for node in layer.nodes for user in node.users]
    while waiting:
        node = waiting.pop()
        if node in seen or node.op == "output":
            continue
        seen.add(node)
        if node.op == "call_module":
            continue
        name, known = name_of(node)
        what = f"{name} ({place})" if (place := place_of(node)) else name
        if not known or name not in OPERATIONS:
            continue
        sizes = _sizes(node, name, units, axis)
        if sizes is not None:
            labels = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
            yield Separation(labels[:units], what)
        elif name not in _REARRANGE:
            waiting += node.users


_REARRANGE = frozenset(
    words("""
    view reshape flatten transpose permute unflatten cat stack matmul bmm einsum unbind
""")
)


_COUNTS = ("chunks", "split_size", "split_size_or_sections", "split_sizes")


def _sizes(node: fx.Node, name: str, units: int, axis: int) -> list[int] | None:
    """Sizes of the blocks into which an operation cuts the axis of units; None if it does not."""
    args = list(node.args[1:])
    dim = node.kwargs.get("dim")
    if name in ("chunk", "unsafe_chunk", "split", "split_with_sizes", "tensor_split"):
        by: Any = args[0] if args else next(
            (node.kwargs[key] for key in _COUNTS if key in node.kwargs), None
        )  # fmt: skip
        if dim is None:
            dim = args[1] if len(args) > 1 else 0
        if not isinstance(dim, int) or not _may_be(dim, axis):
            return None
        if isinstance(by, list | tuple) and name != "tensor_split":
            ints = [int(size) for size in by if isinstance(size, int)]
            return ints if len(ints) == len(by) and sum(ints) == units else None
        if not isinstance(by, int) or by < 1:
            return None
        size = math.ceil(units / by) if "chunk" in name or name == "tensor_split" else by
        return _equal(units, size)
    if name == "glu":
        return [units // 2, units - units // 2]
    if name in ("view", "reshape", "unflatten"):
        shape = args[-1] if args and isinstance(args[-1], list | tuple) else args
        last = shape[-1] if shape else None
        fits = isinstance(last, int) and 0 < last < units and units % last == 0 and axis == -1
        return _equal(units, last) if fits else None  # type: ignore[arg-type]
    if node.target is operator.getitem and args:
        return _sliced(args[0], units, axis)
    return None


def _sliced(index: Any, units: int, axis: int) -> list[int] | None:
    places = index if isinstance(index, tuple) else (index,)
    for place, entry in enumerate(places):
        from_end = place - len(places) if Ellipsis in places else place
        if not isinstance(entry, slice) or not _may_be(from_end, axis):
            continue
        if any(not isinstance(v, int | None) for v in (entry.start, entry.stop, entry.step)):
            continue
        inside = torch.zeros(units, dtype=torch.int64)
        inside[entry] = 1
        if bool(inside.all()) or not bool(inside.any()):
            continue
        ends = [0, *((inside.diff() != 0).nonzero().flatten() + 1).tolist(), units]
        return [b - a for a, b in pairwise(ends)]
    return None


def _may_be(dim: int, axis: int) -> bool:
    """Whether an axis, counted from either end, may be that of the units, counted from the end."""
    return dim == axis if dim < 0 else dim > 0


def _equal(units: int, size: int) -> list[int]:
    whole, rest = divmod(units, size)
    return [size] * whole + ([rest] if rest else [])
