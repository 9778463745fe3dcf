"""What following units through a graph finds out."""

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx

from biofx.passes.units.ids import CONSTANT, DATA, FIRST, Ids, full, narrowed, tensors, units_in


@dataclass(frozen=True)
class Source:
    """The units that a layer makes: ids `first` to `first` + `size` − 1.

    Attributes:
        layer, block: as in `Population`.
        ids: one per unit.
    """

    layer: str
    block: str
    first: int
    size: int

    @functools.cached_property
    def ids(self) -> Tensor:
        """The id of each unit."""
        return torch.arange(self.first, self.first + self.size)


@dataclass(frozen=True)
class Claim:
    """A parameter or buffer whose entries along one axis belong to units.

    Attributes:
        role: "incoming", "read", or one of `VECTORS`.
        layer: the layer that holds it.
        name, axis: qualified name, and the axis that `ids` run along.
        ids: the id of each index.
        bias: of a layer that reads, the name of its bias.
    """

    role: str
    layer: str
    name: str
    axis: int
    ids: Tensor
    bias: str | None = None


@dataclass(frozen=True)
class Cut:
    """An operation that tells units apart which stood side by side.

    Attributes:
        ids, labels: units, sorted, and the part that each goes to.
        what: the operation, with its place in the user's code.
        known: False for an operation whose treatment of them is not known.
        merges: how many merges of units went before.
    """

    ids: Tensor
    labels: Tensor
    what: str
    known: bool = True
    merges: int = 0


@dataclass
class Flow:
    """The ids of every value of a graph, and what its operations did to units.

    Attributes:
        values: ids of each node's value.
        sources: what makes units.
        claims: which entries of which parameters belong to them.
        merged: pairs of ids that turned out to be one unit: (a, b, whether this joins layers, as a
            sum does and a product does not).
        reasons: (ids, why these units cannot be followed any further).
        shared: (ids, norm whose statistics these units share).
        cuts: what separates units.
        weights: {node of a constant: the model's tensors that it is made of}.
        used: (tensor of the model, why its entries are not those of units alone).
    """

    values: dict[fx.Node, Ids] = field(default_factory=dict)
    sources: dict[tuple[str, str], Source] = field(default_factory=dict)
    claims: list[Claim] = field(default_factory=list)
    merged: list[tuple[Tensor, Tensor, bool]] = field(default_factory=list)
    reasons: list[tuple[Tensor, str]] = field(default_factory=list)
    shared: list[tuple[Tensor, str]] = field(default_factory=list)
    cuts: list[Cut] = field(default_factory=list)
    weights: dict[fx.Node, frozenset[str]] = field(default_factory=dict)
    used: list[tuple[str, str]] = field(default_factory=list)
    total: int = FIRST
    _claimed: dict[tuple[str, str, int], list[Claim]] = field(default_factory=dict)

    def source(self, layer: str, size: int, block: str = "") -> Source:
        """The units of a layer: the same ones each time that it is used."""
        made = self.sources.get((layer, block))
        if made is None:
            made = self.sources[layer, block] = Source(layer, block, self.total, size)
            self.total += size
        return made

    def claim(
        self, role: str, layer: str, name: str, axis: int, ids: Tensor, bias: str | None = None
    ) -> None:
        """Say that entries of a parameter belong to units; once, however often a layer is used.

        Units that share an entry are one: a layer that is used twice has one column for the units
        of both of its inputs. What no unit has made (`DATA`) has its columns too.
        """
        if not len(ids) or ids.amax().item() < DATA:
            return
        part = "read" if role == "read" else "own"  # a bias here may be a scale there
        known = self._claimed.setdefault((part, name, axis), [])
        for other in known:
            self.merge(other.ids, ids, added=True)
            for one, two in ((ids, other.ids), (other.ids, ids)) if role == "read" else ():
                mixed = one[(one >= FIRST) & (two == DATA)]
                self.note(mixed, f"{layer} reads something else in the same place")
        claimed = ((other.role, other.layer, other.ids) for other in known)
        if not any(c[:2] == (role, layer) and torch.equal(ids, c[2]) for c in claimed):
            known.append(Claim(role, layer, name, axis, ids.contiguous(), bias))
            if ids.amax().item() >= FIRST:
                self.claims.append(known[-1])

    def note(self, ids: Ids, why: str) -> None:
        """Say why these units cannot be followed any further."""
        found = units_in(ids)
        if len(found):
            self.reasons.append((found, why))

    def use(self, names: Iterable[str], why: str) -> None:
        """Say what else is done with tensors of the model than what was claimed."""
        self.used += [(name, why) for name in sorted(names)]

    def settle_uses(self) -> None:
        """Give up on units whose weights act elsewhere too; a norm's entries are then no unit's."""
        used = dict(reversed(self.used))
        for claim in self.claims:
            if claim.name in used and claim.role in ("incoming", "bias"):
                self.note(claim.ids, used[claim.name])
        kept = ("incoming", "bias", "read")
        self.claims = [c for c in self.claims if c.name not in used or c.role in kept]

    def lose(self, ids: Ids, why: str) -> int:
        """Give up on a value's units; what it is from there on."""
        self.note(ids, why)
        return DATA

    def unknown(self, ids: Ids, what: str) -> int:
        """Give up on a value's units at an operation that may do anything to them."""
        found = units_in(ids)
        if len(found):
            self._cut(found, torch.arange(len(found)), what, known=False)
        return self.lose(ids, f"{what} is not an operation that biofx can follow units through")

    def merge(self, a: Tensor, b: Tensor, *, added: bool) -> None:
        """Say that the units of two id tensors of one shape are the same, place by place."""
        apart = (a != b) & (a >= FIRST) & (b >= FIRST)
        if not bool(apart.any()):
            return
        pairs = torch.unique(a[apart] * self.total + b[apart])
        self.merged.append((pairs // self.total, pairs % self.total, added))

    def combine(
        self, values: Sequence[Ids], shape: Sequence[int], what: str, *, added: bool
    ) -> Ids:
        """The ids of an element-by-element function of several values.

        Args:
            values: of each argument.
            shape: of the result.
            what: the operation.
            added: it does not vanish with each of its arguments, as a product does.
        """
        carriers: list[Tensor] = []
        others = CONSTANT
        for value in values:
            if isinstance(value, Tensor):
                carriers.append(value)
            else:
                others = max(others, int(value))
        if not carriers:
            return others
        result = carriers[0].expand(tuple(shape))
        for other in carriers[1:]:
            result = self._combined(result, other.expand(tuple(shape)), what, added)
        if others == DATA and added:
            self.note(result, f"{what} joins them with what no weight layer makes")
        return result

    def _combined(self, a: Tensor, b: Tensor, what: str, added: bool) -> Tensor:
        shape = a.shape
        a, b = narrowed(a, b)
        if torch.equal(a, b):
            return a.expand(shape)
        if not added:
            a, b = self._without_factors(a, b, what)
        self.merge(a, b, added=added)
        if added:
            for one, other in ((a, b), (b, a)):
                mixed = (one >= FIRST) & (other == DATA)
                if bool(mixed.any()):
                    self.note(one[mixed], f"{what} joins them with what no weight layer makes")
        either = torch.where(b >= FIRST, b, torch.maximum(a, b))
        return torch.where(a >= FIRST, a, either).expand(shape)

    def _without_factors(self, a: Tensor, b: Tensor, what: str) -> tuple[Tensor, Tensor]:
        """Give up on units that scale several others each: a gate of a whole head."""
        both = (a >= FIRST) & (b >= FIRST)
        pairs = torch.unique(a[both] * self.total + b[both])
        sides = [pairs // self.total, pairs % self.total]
        shared = [unique[counts > 1] for unique, counts in map(_counted, sides)]
        values = [a, b]
        for place in (0, 1):
            if len(shared[place]) and not len(shared[1 - place]):
                self.note(shared[place], f"{what} scales several units by each of them")
                values[place] = values[place].masked_fill(
                    torch.isin(values[place], shared[place]), DATA
                )
        return values[0], values[1]

    def columns(self, ids: Ids, axis: int, size: int, what: str) -> Tensor:
        """The one unit at each place of an axis; units that share a place become one."""
        if not isinstance(ids, Tensor):
            return full(ids, (size,))
        (small,) = narrowed(ids)
        lines = small.movedim(axis, -1)
        lines = lines.expand(*lines.shape[:-1], size).reshape(-1, size)
        result = lines.amax(0)
        if len(lines) > 1:
            self.merge(lines, result.expand_as(lines), added=True)
            mixed = (lines == DATA).any(0) & (result >= FIRST)
            if bool(mixed.any()):
                self.note(result[mixed], f"{what} reads something else in the same place")
        return result

    def _cut(self, ids: Tensor, labels: Tensor, what: str, *, known: bool = True) -> None:
        self.cuts.append(Cut(ids, labels, what, known, len(self.merged)))

    def cut(self, before: Ids, after: Ids, what: str) -> None:
        """Note what an operation that moves elements has separated."""
        parts = [units_in(part) for part in tensors(after)]
        whole = units_in(before)
        if len(whole) < 2:
            return
        if any(len(part) < len(whole) for part in parts):
            labels = torch.zeros(len(whole), dtype=torch.int64)
            for number, part in enumerate(parts):
                labels = labels * 31 + torch.isin(whole, part) * (number + 1)
            self._cut(whole, labels, what)
        if len(parts) == 1 and len(parts[0]) == len(whole):
            blocks = _blocks(tensors(after)[0], whole)
            if blocks is not None:
                self._cut(whole, blocks, what)


def _counted(ids: Tensor) -> tuple[Tensor, Tensor]:
    unique: Tensor
    unique, counts = torch.unique(ids, return_counts=True)
    return unique, counts


def _blocks(ids: Tensor, units: Tensor) -> Tensor | None:
    """Which block each unit is in, where they run along several axes; None along one."""
    (small,) = narrowed(ids)
    axes = [axis for axis in range(small.dim()) if small.shape[axis] > 1]
    if len(axes) < 2:
        return None
    axes = [axis for axis in axes if not repeats_along(small, axis)]
    if len(axes) < 2:
        return None
    # the innermost axis on which units vary is that of a block
    rows = first_places(small, axes)
    labels = torch.zeros(len(units), dtype=torch.int64)
    number = torch.arange(rows.shape[0])[:, None].expand_as(rows)
    valid = rows >= FIRST
    labels[torch.searchsorted(units, rows[valid])] = number[valid]
    return labels


def repeats_along(ids: Tensor, axis: int) -> bool:
    return bool((ids == ids.narrow(axis, 0, 1)).all())


def first_places(ids: Tensor, axes: Sequence[int]) -> Tensor:
    """Ids as (blocks, units of a block) of the axes on which they vary."""
    for axis in range(ids.dim()):
        if axis not in axes:
            ids = ids.narrow(axis, 0, 1)
    return (
        ids.reshape(-1, ids.shape[axes[-1]])
        if axes[-1] == ids.dim() - 1
        else (ids.movedim(axes[-1], -1).reshape(-1, ids.shape[axes[-1]]))
    )
