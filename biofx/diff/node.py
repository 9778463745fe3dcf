"""`DiffNode`: one line of a diff, before anybody decides how to print it."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

Status = Literal["unchanged", "replaced", "inserted", "skipped", "opaque"]

# Nodes that only bring values in and out of a graph; a picture leaves them out.
PLUMBING = frozenset({"placeholder", "get_attr", "output"})


@dataclass(kw_only=True)
class DiffNode:
    """A graph node, or a module that no graph calls, and what became of it.

    Attributes:
        name: what its parent calls it: a module's relative path, else the graph node's name.
        op: opcode of the graph node (``"call_module"``, ``"call_function"``, …); empty for the
            model itself and for modules that only Python code calls.
        path: qualified name of the module, None where the node is no module.
        status: "unchanged", "replaced" by a bio-augmented layer, "inserted", "skipped" with a
            reason, or "opaque": a module that stays Python, with a reason. A module counts as
            unchanged if it is called as before, even if there are changes inside.
        old, new: class or function names before and after; `old` is empty if it was inserted.
        reason: why it was skipped, stays Python, or was not split.
        shape: shape of its value, where example inputs were given.
        parameters: number of parameters of the module, each counted once.
        synapses: names of the parameters whose synapses it carries.
        rank, output: of a weight layer, as in `Synapses`.
        assumes: what its graph was captured for, e.g. ``"mask=None"``; other calls run Python.
        notes: anything else one should know: tied parameters, a graph that is stale, ….
        again: the module was called before; what is inside stands there.
        children: nodes of its graph in the order of execution, or modules as registered.
    """

    name: str
    op: str = ""
    path: str | None = None
    status: Status = "unchanged"
    old: str = ""
    new: str = ""
    reason: str | None = None
    shape: tuple[int, ...] | None = None
    parameters: int = 0
    synapses: tuple[str, ...] = ()
    rank: int | None = None
    output: bool = False
    assumes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    again: bool = False
    children: list["DiffNode"] = field(default_factory=list)

    @property
    def plumbing(self) -> bool:
        """Whether it only brings a value into its graph or out of it."""
        return self.op in PLUMBING and self.status == "unchanged"

    @property
    def quiet(self) -> bool:
        """Whether neither it nor anything inside it is worth a line of its own."""
        return (
            self.status == "unchanged"
            and not self.notes
            and all(child.quiet for child in self.children)
        )

    def walk(self) -> Iterator["DiffNode"]:
        """This node and everything inside it, in the order of execution."""
        yield self
        for child in self.children:
            yield from child.walk()

    def to_dict(self) -> dict[str, Any]:
        """Plain values; what is empty is left out, but for name, op and status."""
        found: dict[str, Any] = {"name": self.name, "op": self.op, "status": self.status}
        if self.path is not None:
            found["path"] = self.path
        for key in ("old", "new", "reason", "parameters", "output", "again"):
            if getattr(self, key):
                found[key] = getattr(self, key)
        for key in ("shape", "synapses", "assumes", "notes"):
            if getattr(self, key):
                found[key] = list(getattr(self, key))
        if self.shape == ():
            found["shape"] = []
        if self.rank is not None:
            found["rank"] = self.rank
        if self.children:
            found["children"] = [child.to_dict() for child in self.children]
        return found
