"""Small parameters laid out as the rows of one matrix, so that one call serves all of them."""

import functools
import itertools
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from biofx.plasticity.kernels.layout import strides_of

LENGTH = 128  # elements of a row: what is padded is less than a row of each parameter
SMALL = 2**17  # synapses up to which a parameter is copied into an arena and back at each step


class Arena:
    """Where each of several parameters lies in a matrix of `LENGTH` columns.

    A parameter takes whole rows, in the order of its elements; what is left of its last row is
    padding, which kernels may write to. To rules and kernels it is what a `Shard` is for one
    parameter: what is a number there is one per row here, of shape (rows, 1).

    Args:
        shapes: of the parameters, none of them empty.
        device: where they are.

    Attributes:
        size: rows and columns of the matrix.
        owner: of shape (rows,), int64: which parameter a row belongs to.
        first: of shape (rows, 1), int32: index of the row's first element in its parameter.
        columns: of shape (columns,), int32: 0, 1, …
        count: of shape (rows, 1), float64: how many synapses the row's parameter has.
        padding: places of the padding in the flat matrix, int64.
        ready: kernels that have served this arena, by what they do.
    """

    groups = ()  # of processes: sharded parameters are not laid out so

    def __init__(self, shapes: Sequence[torch.Size], device: torch.device) -> None:
        self.shapes = tuple(shapes)
        counts = [shape.numel() for shape in shapes]
        rows = [-(-count // LENGTH) for count in counts]
        self.size = torch.Size((sum(rows), LENGTH))
        self.rows = rows
        self.lengths = torch.tensor(rows, device=device)
        self.owner = torch.arange(len(rows), device=device).repeat_interleave(self.lengths)
        starts = [torch.arange(n, dtype=torch.int32, device=device) for n in rows]
        self.first = (torch.cat(starts) * LENGTH)[:, None]
        self.columns = torch.arange(LENGTH, dtype=torch.int32, device=device)
        self.numbers = torch.tensor(counts, dtype=torch.float64, device=device)
        places = [
            torch.arange(offset + count, offset + lines * LENGTH, device=device)
            for offset, count, lines in zip(self.offsets, counts, rows, strict=True)
        ]
        self.padding = torch.cat(places)
        self.ready: dict[Any, Any] = {}
        self._gaps: dict[torch.dtype, list[Tensor | None]] = {}
        self._places = [
            (shape, strides_of(shape), offset)
            for shape, offset in zip(self.shapes, self.offsets, strict=True)
        ]

    @property
    def offsets(self) -> list[int]:
        """Where each parameter begins in the flat matrix."""
        return [rows * LENGTH for rows in itertools.accumulate([0, *self.rows[:-1]])]

    @property
    def shape(self) -> torch.Size:
        """As `size`: there is no larger whole."""
        return self.size

    @functools.cached_property
    def count(self) -> Tensor:
        """How many synapses the parameter of each row has, of shape (rows, 1)."""
        return self.spread(self.numbers)

    @functools.cached_property
    def end(self) -> Tensor:
        """As `count`, int32: from this index on, a row is padding."""
        return self.count.int()

    @property
    def numel(self) -> Tensor:
        """As `count`, under the name that a `Shard` has for it."""
        return self.count

    def index(self, device: torch.device) -> Tensor:
        """Index of each element in its parameter, of shape `size`, int32; padding goes on."""
        return self.first + self.columns

    def holds(self, leaf: Tensor) -> bool:
        """Whether a tensor is a scalar, or one run of a value per row or per element."""
        shape = leaf.shape
        whole = shape == self.size or shape == (self.size[0], 1)
        return not shape or (whole and leaf.is_contiguous())

    def empty(self, dtype: torch.dtype) -> Tensor:
        """A matrix for one tensor of each parameter, 0 throughout."""
        return torch.zeros(self.size, dtype=dtype, device=self.owner.device)

    def views(self, matrix: Tensor) -> list[Tensor]:
        """Each parameter's part of a matrix (or of a copy, if it is no one run of memory)."""
        matrix = matrix.contiguous()
        start = matrix.storage_offset()
        return [
            matrix.as_strided(shape, strides, start + offset)
            for shape, strides, offset in self._places
        ]

    def joined(self, parts: Sequence[Tensor]) -> Tensor:
        """A new matrix of one tensor of each parameter, padded with 0."""
        kind = parts[0].dtype
        if kind not in self._gaps:
            zeros = self.owner.new_zeros(LENGTH, dtype=kind)
            lengths = [-shape.numel() % LENGTH for shape in self.shapes]
            self._gaps[kind] = [zeros[:length] if length else None for length in lengths]
        pieces = []
        for part, gap in zip(parts, self._gaps[kind], strict=True):
            pieces.append(part.reshape(-1))
            if gap is not None:
                pieces.append(gap)
        return torch.cat(pieces).view(self.size)

    def clear(self, matrix: Tensor) -> Tensor:
        """The matrix with padding set to 0, in place."""
        if self.padding.numel():
            matrix.view(-1).index_fill_(0, self.padding, 0)
        return matrix

    def spread(self, table: Tensor) -> Tensor:
        """What holds for each parameter, of shape (…, parameters), for its rows: (…, rows, 1)."""
        return table.index_select(-1, self.owner).unsqueeze(-1)

    def total(self, values: Tensor) -> Tensor:
        """Σ over each parameter of float64 values in a matrix, of shape (parameters,)."""
        return added(values.sum(1, dtype=torch.float64), self.lengths)

    def any(self, mask: Tensor) -> list[bool]:
        """For each parameter, whether a mask is true somewhere in it."""
        owners = self.owner[mask.any(1)].tolist()
        present = set(owners)
        return [place in present for place in range(len(self.rows))]

    def largest(self, values: Tensor) -> Tensor:
        """The maximum over each parameter, of shape (parameters,); NaN if one is."""
        return _reduced(values.amax(1), "max", self.lengths)


def added(sums: Tensor, lengths: Tensor) -> Tensor:
    """Σ of each group of sums of rows, in an order that does not depend on the other groups."""
    return _reduced(sums, "sum", lengths)


def _reduced(values: Tensor, how: Literal["sum", "max"], lengths: Tensor) -> Tensor:
    # Without a look whether the lengths add up, which takes longer than the sums.
    return torch.segment_reduce(values, how, lengths=lengths, unsafe=True)


def as_rows(values: Tensor) -> Tensor:
    """The elements of one tensor as an arena would hold them."""
    flat = values.reshape(-1)
    padding = -len(flat) % LENGTH
    return torch.nn.functional.pad(flat, (0, padding)).view(-1, LENGTH)


def total_of(values: Tensor) -> Tensor:
    """Σ of one small tensor, of shape (), in the order that an arena adds in."""
    sums = as_rows(values).sum(1, dtype=torch.float64)
    return added(sums, torch.tensor([len(sums)], device=sums.device))[0]
