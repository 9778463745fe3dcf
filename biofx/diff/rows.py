"""Rows of a picture: one node, a run of nodes, or what a fold stands for."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from biofx.diff.node import DiffNode


@dataclass(kw_only=True)
class Row:
    """One row of the picture.

    Attributes:
        lasts: for each level of the tree, whether this branch is the last one there.
        status: of the node, "fold", or "" for a module with changes inside.
        name: text of the first column; spans the second one too if there is no `node`.
        node: the node that the row shows, None for a row that stands for several.
        like: name of the block that looks the same and is unfolded elsewhere.
        shape: of the last value that the row stands for.
        count: synapses that the row stands for.
    """

    lasts: tuple[bool, ...]
    status: str
    name: str
    node: DiffNode | None = None
    like: str = ""
    shape: tuple[int, ...] | None = None
    count: int = 0


def run_row(nodes: Sequence[DiffNode], lasts: tuple[bool, ...]) -> Row:
    names = []
    for name, same in groupby(node.name for node in nodes):
        times = len(list(same))
        names.append(f"{name} ×{times}" if times > 1 else name)
    return Row(lasts=lasts, status="unchanged", name=", ".join(names), shape=nodes[-1].shape)


def fold_row(
    shown: list[list[DiffNode]], rest: list[list[DiffNode]], like: str, lasts: tuple[bool, ...]
) -> Row:
    nodes = [node for part in rest for node in part]
    modules = [node for node in nodes if node.path is not None] or nodes
    first, last = modules[0].name, modules[-1].name
    span = first if first == last else f"{first} – {last}"
    times = len(rest) // len(shown)
    if len(shown) == 1 or like:
        text = f"like {like or shown[0][0].name}"
        if times > 1:
            noun = "blocks" if any(node.children for node in modules) else "layers"
            text = f"{times:,} {noun} {text}"
    else:
        text = f"{times:,} × the {len(shown)} rows above"
    name = f"{span}: {text}"
    return Row(lasts=lasts, status="fold", name=name, shape=nodes[-1].shape, count=count_of(nodes))


def gap_row(nodes: list[DiffNode], lasts: tuple[bool, ...]) -> Row:
    name = f"{len(nodes):,} more: {tally(*nodes)}"
    return Row(lasts=lasts, status="fold", name=name, count=count_of(nodes))


def count_of(nodes: Sequence[DiffNode]) -> int:
    return sum(inner.count for node in nodes for inner in node.walk() if not inner.again)


_WORDS = {"replaced": "plastic", "opaque": "not traced", "unchanged": "as before"}


def tally(*nodes: DiffNode) -> str:
    """What modules hold, in words: ``"12 plastic, 36 as before"``."""
    leaves = [leaf for node in nodes for leaf in node.walk() if leaf.path and not leaf.quiet]
    counts: Counter[str] = Counter(leaf.status for leaf in leaves if leaf.status != "unchanged")
    counts["unchanged"] = sum(1 for node in nodes for n in node.walk() if n.op and n.quiet)
    order = ("replaced", "split", "skipped", "opaque", "unchanged")
    return ", ".join(f"{counts[s]:,} {_WORDS.get(s, s)}" for s in order if counts[s])
