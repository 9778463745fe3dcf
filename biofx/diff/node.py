"""`DiffNode`: one line of a diff, before anybody decides how to print it."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

Status = Literal["unchanged", "replaced", "split", "inserted", "skipped", "opaque"]

# Graph nodes that only bring values in and out; a diff leaves them out.
PLUMBING = frozenset({"placeholder", "get_attr", "output"})


@dataclass(kw_only=True)
class DiffNode:
    """A graph node, or a module whose nodes stand together, and what became of it.

    Attributes:
        name: what its parent calls it: a module's relative path, else the function's name.
        op: opcode of the graph node (``"call_module"``, ``"call_function"``, …); empty for a module
            that is a group of nodes, or that the graph does not call.
        node: name of the graph node.
        path: qualified name of the module, None where the node is no module.
        status: "unchanged", "replaced" by a bio-augmented layer, "split" into Γ synapses per
            connection, "inserted", "skipped" with a reason, or "opaque": its inside could not be
            traced, with a reason. A module counts as unchanged if there are only changes inside.
        old, new: class or function names before and after; `old` is empty if it was inserted.
        reason: why it was skipped, is opaque, or was not split.
        shape: shape of its value, where example inputs were given.
        place: ``file:line`` of the user's code that calls it.
        inputs: names of the graph nodes whose values it takes, inputs of the model included.
        parameters: number of parameters of the module, each counted once.
        synapses: names of the parameters whose synapses it carries.
        count: number of synapses that no layer before it has.
        settings: what is particular to its synapses, in words.
        rank, output: of a weight layer, as in `Synapses`.
        plumbing: it only takes a value out of a tuple or an object, or puts one together.
        again: the module was called before; its first call stands for it in a picture.
        children: graph nodes and modules inside, in the order of execution; what the graph does
            not call comes last.
    """

    name: str
    op: str = ""
    node: str = ""
    path: str | None = None
    status: Status = "unchanged"
    old: str = ""
    new: str = ""
    reason: str | None = None
    shape: tuple[int, ...] | None = None
    place: str = ""
    inputs: tuple[str, ...] = ()
    parameters: int = 0
    synapses: tuple[str, ...] = ()
    count: int = 0
    settings: str = ""
    rank: int | None = None
    output: bool = False
    plumbing: bool = False
    again: bool = False
    children: list["DiffNode"] = field(default_factory=list)

    @property
    def quiet(self) -> bool:
        """Whether neither it nor anything inside it is worth a line of its own."""
        return self.status == "unchanged" and all(child.quiet for child in self.children)

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
        for key in ("node", "old", "new", "reason", "place", "parameters", "count", "settings",
                    "output", "plumbing", "again"):  # fmt: skip
            if getattr(self, key):
                found[key] = getattr(self, key)
        for key in ("synapses", "inputs"):
            if getattr(self, key):
                found[key] = list(getattr(self, key))
        if self.shape is not None:
            found["shape"] = list(self.shape)
        if self.rank is not None:
            found["rank"] = self.rank
        if self.children:
            found["children"] = [child.to_dict() for child in self.children]
        return found
