"""`Population`: the units of a layer, and everything that belongs to each of them elsewhere."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from biofx.errors import printable


@dataclass(frozen=True, kw_only=True)
class Entries:
    """The entries of one parameter or buffer that belong to the units of a population.

    Along `axis`, unit u owns the indices ``start + u*stride + j*step`` for j = 0 … `count` − 1.
    After flattening a convolution of k places per channel, channel u owns k neighbouring columns
    (``stride=k, count=k``), or every c-th one where channels come last (``stride=1, step=c``).

    Attributes:
        name: qualified name of the parameter or buffer.
        axis: axis of it that the units run along.
        start: index of the first unit's first entry (blocks, concatenations).
        stride: distance between the first entries of neighbouring units.
        count: entries per unit.
        step: distance between the entries of one unit.
    """

    name: str
    axis: int = 0
    start: int = 0
    stride: int = 1
    count: int = 1
    step: int = 1

    def index(self, units: Tensor) -> Tensor:
        """Indices along `axis` of the entries of some units.

        Args:
            units: numbers of units, int64 of shape (n,).

        Returns:
            int64 of shape (n, `count`).
        """
        own = torch.arange(self.count, device=units.device) * self.step
        return self.start + units[:, None] * self.stride + own


@dataclass(frozen=True, kw_only=True)
class Reader:
    """A weight layer that reads the units of a population.

    Attributes:
        layer: qualified name of its module.
        weight: the columns of its weight (along its pre-synaptic axis) that each unit feeds.
        bias: qualified name of its bias, or None.
    """

    layer: str
    weight: Entries
    bias: str | None = None


# What a unit has besides its incoming and outgoing weights.
VECTORS = ("bias", "scale", "shift", "running_mean", "running_var", "other", "constant")


@dataclass(frozen=True, kw_only=True, repr=False)
class Population:
    """The units of one layer, or of one named block of it, and where each is found.

    To silence unit u is to set to 0 its columns in every reader.

    Attributes:
        layer: qualified name of the module whose outputs they are.
        block: name of the block of it ("v" of an attention layer, a gate), "" for the whole layer.
        size: number of units.
        incoming: each unit's own part of the layer's weights, along the post-synaptic axis.
        vectors: entries per unit of the layer's "bias", of norms between the layer and its readers
            ("scale", "shift") and of their statistics ("running_mean", "running_var"); of what else
            is trained for each unit ("other": slopes, thresholds) and of buffers ("constant").
        readers: every weight layer that reads the units; empty if they cannot be followed.
        norms: norms between the layer and its readers whose statistics are taken over the units (a
            layer norm). They keep units apart element by element: a unit that is silenced at its
            readers still counts in the mean and variance that scale the others.
        reason: why these are not units of this layer alone that can be followed to all of their
            readers, or None. Units that several layers make have a reason and readers too: those
            of a residual stream, and those that enter a layer that is used for several others.
    """

    layer: str
    size: int
    block: str = ""
    incoming: tuple[Entries, ...] = ()
    vectors: Mapping[str, tuple[Entries, ...]] = field(default_factory=dict)
    readers: tuple[Reader, ...] = ()
    norms: tuple[str, ...] = ()
    reason: str | None = None

    def __repr__(self) -> str:
        readers = ", ".join(dict.fromkeys(reader.layer for reader in self.readers))
        told = [f"{self.name}: {self.size:,} units"]
        told += [f"read by {readers}"] if readers else []
        told += [self.reason] if self.reason else []
        return printable(f"<Population {'; '.join(told)}>")

    @property
    def carrier(self) -> str:
        """The parameter that holds the units' incoming weights; "" if there is none."""
        return self.incoming[0].name if self.incoming else ""

    @property
    def name(self) -> str:
        """The layer's name, with that of the block."""
        return f"{self.layer}[{self.block}]" if self.block else self.layer
