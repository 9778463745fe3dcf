"""`Neighbours`: the units on both sides of a parameter."""

import functools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from biofx.synapses.population import Entries, Population
from biofx.synapses.record import Synapses

Belonging = tuple[Population, Entries]


@dataclass(frozen=True)
class Followed:
    """The units of a model that can be followed, found by the parameters on both sides of them.

    Attributes:
        populations: all units of the model, worked out when somebody first asks.
        synapses: {parameter: its synapses}.
    """

    populations: Sequence[Population] = ()
    synapses: Mapping[str, Synapses] = field(default_factory=dict)

    @functools.cached_property
    def held(self) -> frozenset[str]:
        """Names of all parameters that carry synapses."""
        return frozenset(self.synapses)

    @functools.cached_property
    def made(self) -> Mapping[str, list[Population]]:
        """{parameter: the units whose incoming weights it holds}."""
        found = defaultdict(list)
        for population in self._followed():
            found[population.carrier].append(population)
        return found

    @functools.cached_property
    def rows(self) -> Mapping[str, list[Belonging]]:
        """{parameter: units that it holds incoming weights of, and which}."""
        found = defaultdict(list)
        for population in self._followed():
            for entries in population.incoming:
                found[entries.name].append((population, entries))
        return found

    @functools.cached_property
    def read(self) -> Mapping[str, list[Belonging]]:
        """{parameter: what its layer reads}; see `Neighbours.read`."""
        found = defaultdict(list)
        for population in self._followed():
            for reader in population.readers:
                found[reader.weight.name].append((population, reader.weight))
        return found

    def _followed(self) -> list[Population]:
        return [p for p in self.populations if p.reason is None and p.readers]


@dataclass(frozen=True)
class Neighbours:
    """The units on both sides of one parameter, as far as they can be followed.

    Attributes:
        parameter: its name.
        followed: all units of its model.
    """

    parameter: str = ""
    followed: Followed = field(default_factory=Followed)

    @property
    def known(self) -> bool:
        """Whether anything is known of any units of the model."""
        return bool(self.followed.populations)

    @property
    def made(self) -> Sequence[Population]:
        """The units whose incoming weights the parameter holds."""
        return self.followed.made.get(self.parameter, ())

    @property
    def rows(self) -> Sequence[Belonging]:
        """Units that the parameter holds incoming weights of, alone or with others, and which."""
        return self.followed.rows.get(self.parameter, ())

    @property
    def read(self) -> Sequence[Belonging]:
        """Units that the parameter's layer reads, and their columns."""
        return self.followed.read.get(self.parameter, ())

    @property
    def held(self) -> frozenset[str]:
        """Names of all parameters that carry synapses."""
        return self.followed.held
