"""`Neighbours`: the units on both sides of a parameter."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from biofx.synapses.population import Entries, Population
from biofx.synapses.record import Synapses


@dataclass(frozen=True, kw_only=True)
class Neighbours:
    """The units on both sides of one parameter, as far as they can be followed.

    Attributes:
        known: whether anything is known of any units of the model.
        made: the units whose incoming weights the parameter holds.
        read: units that the parameter's layer reads, their columns, and the synapses that hold
            their incoming weights (None if they carry none).
        held: names of all parameters that carry synapses.
    """

    known: bool = False
    made: tuple[Population, ...] = ()
    read: tuple[tuple[Population, Entries, Synapses | None], ...] = ()
    held: frozenset[str] = frozenset()

    @classmethod
    def of(
        cls, parameter: str, populations: Sequence[Population], synapses: Mapping[str, Synapses]
    ) -> Self:
        """Those of one parameter."""
        followed = [p for p in populations if p.reason is None and p.readers]
        return cls(
            known=bool(populations),
            made=tuple(p for p in followed if p.carrier == parameter),
            read=tuple(
                (p, reader.weight, synapses.get(p.carrier))
                for p in followed
                for reader in p.readers
                if reader.weight.name == parameter
            ),
            held=frozenset(synapses),
        )
