"""Which weight layer feeds which, as far as that is known."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from biofx.synapses.population import Population

if TYPE_CHECKING:
    import networkx


@dataclass(frozen=True, kw_only=True, repr=False)
class Wiring:
    """What feeds what.

    Attributes:
        edges: (from, to) pairs of weight layers with no other weight layer between them.
        order: all weight layers whose place is known, in topological order.
        outputs: the weight layers with none downstream.
        units: the units of the layers, with what reads them, where example inputs were given.
        unknown: {layer or module: why it is not known what it feeds or what feeds it}.
    """

    edges: tuple[tuple[str, str], ...] = ()
    order: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    units: Sequence[Population] = ()
    unknown: Mapping[str, str] = field(default_factory=dict)

    def __repr__(self) -> str:
        known = "known" if self.known else f"unknown for {len(self.unknown):,}"
        return (
            f"<Wiring: {known}; layers: {len(self.order):,}, edges: {len(self.edges):,}, outputs: "
            f"{len(self.outputs):,}, populations of units: {len(self.units):,}>"
        )

    @property
    def known(self) -> bool:
        """Whether the wiring of every weight layer is known."""
        return not self.unknown

    @property
    def graph(self) -> "networkx.DiGraph[str]":
        """The edges as a networkx digraph; its nodes are the names in `order`."""
        import networkx

        graph: networkx.DiGraph[str] = networkx.DiGraph()
        graph.add_nodes_from(self.order)
        graph.add_edges_from(self.edges)
        return graph
