"""From what was followed to `Population`s: which units are one, and where each is found."""

import functools
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, overload

import torch
from torch import Tensor
from typing_extensions import override

from biofx.passes.units.classes import MIXER, NONE, classes_of, note_several
from biofx.passes.units.flow import Flow, Source
from biofx.passes.units.ids import FIRST, units_in
from biofx.passes.units.regular import located, table_of
from biofx.synapses import Entries, Population, Reader
from biofx.synapses.population import VECTORS


class Populations(Sequence[Population]):
    """The units of every layer, worked out when somebody first asks: few do.

    Args:
        flow, order: as for `populations_of`.
    """

    def __init__(self, flow: Flow, order: Sequence[str]) -> None:
        # The values are the greater part, and are not needed any more.
        self._find = functools.partial(populations_of, replace(flow, values={}), order)

    @functools.cached_property
    def _found(self) -> tuple[Population, ...]:
        found = self._find()
        del self._find
        return found

    @overload
    def __getitem__(self, place: int) -> Population: ...
    @overload
    def __getitem__(self, place: slice) -> tuple[Population, ...]: ...
    @override
    def __getitem__(self, place: int | slice) -> Population | tuple[Population, ...]:
        return self._found[place]

    @override
    def __len__(self) -> int:
        return len(self._found)

    @override
    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and self._found == tuple(other)

    @override
    def __hash__(self) -> int:
        return hash(self._found)

    @override
    def __repr__(self) -> str:
        return repr(self._found)

    @override
    def __reduce__(self) -> tuple[Any, ...]:
        return tuple, (self._found,)


def populations_of(flow: Flow, order: Sequence[str]) -> tuple[Population, ...]:
    """The units of every layer.

    Args:
        flow: what was followed.
        order: names of weight layers, for the order of the result.
    """
    place = {name: k for k, name in enumerate(order)}
    sources = sorted(flow.sources.values(), key=lambda s: place.get(s.layer, len(place)))
    builder = _Builder(flow)
    return tuple(population for source in sources for population in builder.of(source))


@dataclass(frozen=True)
class _Found:
    """Where the units of a group of classes are found: (number of a claim, entries)."""

    entries: tuple[tuple[int, Entries], ...]


class _Builder:
    """Makes populations of what was followed.

    Units to which the same things happen (the same layers read them, the same reason) are one
    population of their layer; otherwise each kind is a block of it.

    Attributes:
        classes: class of each id.
        reason: number of the first reason of each class, `NONE` if there is none.
        claimed: class of each entry of each claim, 0 where it is no unit's.
        fate: a hash of everything that happens to a class; equal where the same happens.
    """

    def __init__(self, flow: Flow) -> None:
        self.flow = flow
        self.classes = classes_of(flow)
        self.reasons = [text for _, text in flow.reasons]
        self.reason = torch.full((flow.total,), NONE, dtype=torch.int64)
        for number, (ids, _) in enumerate(flow.reasons):
            found = self.classes[ids]
            self.reason[found] = self.reason[found].clamp(max=number)
        self.followed = len(self.reasons)  # reasons from here on leave the readers known
        note_several(flow, self.classes, self.reason, self.reasons)
        self.claimed = [self.classes[c.ids] * (c.ids >= FIRST) for c in flow.claims]
        self.fate = torch.zeros(flow.total, dtype=torch.int64)
        touched: list[Tensor] = []
        for number, found in enumerate(self.claimed):
            touched.append(self._mix(found[found >= FIRST], 2 * number + 1))
        for number, source in enumerate(flow.sources.values()):
            self._mix(self.classes[source.ids], 2 * number + 2)
        self.fate = self.fate * MIXER + self.reason
        self.where: dict[int, list[int]] = defaultdict(list)  # {fate: claims}
        for number, unique in enumerate(touched):
            for key in set(self.fate[unique].tolist()):
                self.where[key].append(number)
        self.rank = torch.full((flow.total,), -1)
        self.cache: dict[tuple[int, ...], _Found | None] = {}
        self.shown: dict[int, str] = {}
        self.shared: dict[int, dict[str, None]] = defaultdict(dict)
        for ids, norm in flow.shared:
            for key in set(self.fate[self.classes[units_in(ids)]].tolist()):
                self.shared[key][norm] = None

    def _mix(self, found: Tensor, number: int) -> Tensor:
        unique, counts = found, torch.tensor(1)
        if not _increases(found):
            unique, counts = torch.unique(found, return_counts=True)
        self.fate[unique] = self.fate[unique] * MIXER + number * 1_000_003 + counts
        return unique

    def of(self, source: Source) -> Iterator[Population]:
        """The populations of one layer or block."""
        classes = self.classes[source.ids]
        reason = self.reason[classes]
        lost = (reason < self.followed).nonzero().flatten()
        # (rows, classes unless they are lost)
        groups: list[tuple[Tensor, Tensor | None]] = [
            (rows, None) for rows in _runs(lost, reason[lost])
        ]
        distinct = _distinct(classes[reason >= self.followed])
        fates = self.fate[distinct]
        for key in dict.fromkeys(fates.tolist()):
            groups += [
                (_rows_of(classes, members), members)
                for members in self._regular(distinct[fates == key])
            ]
        groups.sort(key=lambda group: int(group[0][0]))
        for rows, group in groups:
            block = source.block
            if len(groups) > 1:
                block = f"{block}.{_span(rows)}" if block else _span(rows)
            yield (
                self._lost(source, block, rows)
                if group is None
                else self._population(source, block, group)
            )

    def _regular(self, members: Tensor) -> Iterator[Tensor]:
        """Classes in groups whose entries lie regularly: all of them, if that is so."""
        if self._find(members) is not None:
            yield members
            return
        number = self.where[int(self.fate[members[0]])]
        ends: set[int] = set()
        for claim in number:
            table = self._table(claim, members)
            if table is None or len(table) < 3:
                continue
            steps = table[:, 0].diff()
            usual = steps.mode().values
            ends.update((steps != usual).nonzero().flatten().add(1).tolist())
        pieces = members.tensor_split(torch.tensor(sorted(ends), dtype=torch.int64))
        yield from (piece for piece in pieces if len(piece))

    def _lost(self, source: Source, block: str, rows: Tensor) -> Population:
        """Units with a reason: their own entries alone."""
        ids = source.ids[rows]
        incoming: list[Entries] = []
        for number in self.where[int(self.fate[self.classes[ids[0]]])]:
            claim = self.flow.claims[number]
            if claim.role == "incoming" and claim.layer == source.layer:
                found = located(claim, claim.ids, ids, self.rank)
                incoming += found or []
        return Population(
            layer=source.layer, block=block, size=len(rows), incoming=tuple(incoming),
            reason=self.reasons[int(self.reason[self.classes[ids[0]]])],
        )  # fmt: skip

    def _population(self, source: Source, block: str, members: Tensor) -> Population:
        """The population of classes to which the same happens."""
        first = int(members[0])
        other = self.shown.get(first)
        found = self._find(members)
        plain = Population(layer=source.layer, block=block, size=len(members))
        if other is not None:
            why = f"they are factors of the units of {other}, which lists them"
            return replace(plain, reason=why)
        if found is None:
            why = "which entries belong to which of them follows no regular pattern"
            return replace(plain, reason=why)
        number = int(self.reason[first])
        claims = self.flow.claims
        own = [item for item in found.entries if claims[item[0]].layer == source.layer]
        ordered = [*own, *(item for item in found.entries if item not in own)]
        vectors = {
            role: tuple(entry for n, entry in ordered if claims[n].role == role) for role in VECTORS
        }
        population = replace(
            plain,
            incoming=tuple(entry for n, entry in ordered if claims[n].role == "incoming"),
            vectors={role: entries for role, entries in vectors.items() if entries},
            readers=tuple(
                Reader(layer=claims[n].layer, weight=entry, bias=claims[n].bias)
                for n, entry in found.entries
                if claims[n].role == "read"
            ),
            norms=tuple(self.shared.get(int(self.fate[first]), ())),
            reason=self.reasons[number] if number != NONE else None,
        )
        if population.reason is None:
            self.shown.update(dict.fromkeys(members.tolist(), population.name))
            if not population.readers:
                population = replace(population, reason="nothing reads them")
        return population

    def _find(self, members: Tensor) -> _Found | None:
        """Where all entries of some classes are; None if an index map is not affine."""
        key = tuple(members.tolist())
        if key not in self.cache:
            self.cache[key] = self._find_anew(members)
        return self.cache[key]

    def _find_anew(self, members: Tensor) -> _Found | None:
        entries: dict[tuple[str, str, Entries], tuple[int, Entries]] = {}
        for number in self.where[int(self.fate[members[0]])]:
            claim = self.flow.claims[number]
            found = located(claim, self.claimed[number], members, self.rank)
            if found is None:
                return None
            for entry in found:  # once, if a layer that is used twice has claimed it twice
                entries.setdefault((claim.role, claim.layer, entry), (number, entry))
        return _Found(tuple(entries.values()))

    def _table(self, number: int, members: Tensor) -> Tensor | None:
        return table_of(self.claimed[number], members, self.rank)


def _increases(ids: Tensor) -> bool:
    """Whether each comes once, in order: nearly always, and then much is known at once."""
    return bool((ids.diff() > 0).all())


def _rows_of(classes: Tensor, members: Tensor) -> Tensor:
    """Where any of some classes stands."""
    if torch.equal(classes, members):
        return torch.arange(len(classes))
    return torch.isin(classes, members).nonzero().flatten()


def _distinct(classes: Tensor) -> Tensor:
    """Each class once, in the order in which they come."""
    if _increases(classes):
        return classes
    unique, inverse = torch.unique(classes, return_inverse=True)
    places = torch.full((len(unique),), len(classes), dtype=torch.int64)
    places.scatter_reduce_(0, inverse, torch.arange(len(classes)), "amin")
    found: Tensor = unique[places.argsort()]
    return found


def _runs(rows: Tensor, kind: Tensor) -> Iterator[Tensor]:
    """Rows that are neighbours and of one kind."""
    if len(rows):
        ends = ((rows.diff() != 1) | (kind.diff() != 0)).nonzero().flatten() + 1
        yield from rows.tensor_split(ends)


def _span(rows: Tensor) -> str:
    """Rows as a slice, as far as they are one."""
    start, stop = int(rows[0]), int(rows[-1]) + 1
    if len(rows) == stop - start:
        return f"{start}:{stop}"
    steps = rows.diff()
    if bool((steps == steps[0]).all()):
        return f"{start}:{stop}:{int(steps[0])}"
    pieces = list(_runs(rows, torch.zeros_like(rows)))
    told = ",".join(f"{int(piece[0])}:{int(piece[-1]) + 1}" for piece in pieces[:3])
    return told + (",…" if len(pieces) > 3 else "")
