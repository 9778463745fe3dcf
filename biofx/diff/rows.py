"""Rows of the picture: one node, a run of nodes, or what a fold stands for."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from biofx.diff.node import DiffNode, Status


@dataclass(kw_only=True)
class Row:
    """One row of the picture.

    Attributes:
        lasts: for each level of the tree, whether this branch is the last one there.
        name: text of the first column; spans the second one too if `span`.
        node: the node that the row shows, None for a row that stands for several.
        count: how many nodes the name lists.
        like: name of the block that looks the same and is unfolded elsewhere.
        notes: what goes into the notes, or below the row.
    """

    lasts: tuple[bool, ...]
    status: str
    name: str
    count: int = 1
    span: bool = False
    node: DiffNode | None = None
    like: str = ""
    shape: tuple[int, ...] | None = None
    parameters: int = 0
    notes: tuple[str, ...] = ()


def row_of(node: DiffNode, lasts: tuple[bool, ...]) -> Row:
    notes = []
    if not node.again:  # then the type says so, and the rest stands above
        word = {"opaque": "stays Python: ", "skipped": "skipped: "}.get(node.status, "")
        notes = [word + node.reason] if node.reason and node.status != "inserted" else []
        notes += node.notes
    return Row(
        lasts=lasts,
        status=node.status if node.status != "unchanged" or node.quiet else "",
        name=node.name,
        node=node,
        shape=node.shape,
        parameters=node.parameters,
        notes=tuple(notes),
    )


def run_of(nodes: Sequence[DiffNode], lasts: tuple[bool, ...]) -> Row:
    return Row(
        lasts=lasts,
        status=nodes[0].status,
        name=", ".join(_names(nodes)),
        count=len(nodes),
        span=True,
        shape=nodes[-1].shape,
        parameters=sum(node.parameters for node in nodes if not node.again),
    )


def _names(nodes: Sequence[DiffNode]) -> list[str]:
    """Names of nodes, with repetitions counted: ``relu ×2``, ``group_sum(weight, bias)``."""
    names = [n.name if n.path is not None or n.status == "inserted" else n.new for n in nodes]
    found: list[str] = []
    for name, same in groupby(names):
        times = len(list(same))
        head, bracket, argument = name.partition("(")
        if bracket and found and found[-1].startswith(f"{head}("):
            found[-1] = f"{found[-1][:-1]}, {argument}"
        else:
            found.append(f"{name} ×{times}" if times > 1 else name)
    return found


def fold_of(
    shown: list[list[DiffNode]], rest: list[list[DiffNode]], like: str, lasts: tuple[bool, ...]
) -> Row:
    nodes = [node for part in rest for node in part]
    modules = [node for node in nodes if node.path is not None] or nodes
    first, last = modules[0].name, modules[-1].name
    span = first if first == last else f"{first} – {last}"
    times = len(rest) // len(shown)
    if like:
        text = f"like {like}" if times == 1 else f"{times} blocks like {like}"
    elif len(shown) == 1:
        base = shown[0][0].name
        noun = "blocks" if any(n.children for n in shown[0]) else "nodes"
        text = f"like {base}" if times == 1 else f"{times} {noun} like {base}"
    else:
        text = f"{times:,} × the {len(shown)} rows above"
    return Row(
        lasts=lasts,
        status="fold",
        name=f"{span}: {text}",
        span=True,
        shape=nodes[-1].shape,
        parameters=sum(node.parameters for node in nodes if not node.again),
    )


def gap_of(nodes: list[DiffNode], lasts: tuple[bool, ...]) -> Row:
    return Row(
        lasts=lasts,
        status="fold",
        name=f"{len(nodes):,} more nodes: {_tally(nodes)}",
        span=True,
        parameters=sum(node.parameters for node in nodes if not node.again),
    )


def inside(node: DiffNode) -> str:
    """What a module holds, in words: ``"inside: 12 replaced, 36 unchanged"``."""
    nodes = [inner for inner in node.walk() if inner is not node and not inner.plumbing]
    return f"inside: {_tally(nodes)}"


def _tally(nodes: Sequence[DiffNode]) -> str:
    counts = Counter(node.status for node in nodes)
    order: tuple[Status, ...] = ("replaced", "inserted", "skipped", "opaque", "unchanged")
    return ", ".join(f"{counts[status]:,} {status}" for status in order if counts[status])
