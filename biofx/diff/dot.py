"""The diff as a graph for Graphviz: operations and what flows between them, in their modules."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from biofx.diff.node import DiffNode
from biofx.diff.text import clean, compact, measured

if TYPE_CHECKING:
    from biofx.diff.graph import GraphDiff

# (fill, border) by status; the text is dark on all of them
_COLOURS = {
    "replaced": ("#d5eef5", "#0e7490"),
    "split": ("#d6f2dc", "#15803d"),
    "inserted": ("#d6f2dc", "#15803d"),
    "skipped": ("#fdf0cd", "#a16207"),
    "opaque": ("#f3ddf7", "#a21caf"),
    "unchanged": ("#f6f7f8", "#c3c8ce"),
}


def to_dot(diff: "GraphDiff") -> str:
    """The graph in Graphviz's language: a box for each operation, a frame for each module."""
    shown = {node.node: node for node in diff.tree.walk() if node.op}
    inputs = dict.fromkeys(
        source
        for node in shown.values()
        for source in node.inputs
        if source in diff.sources and source not in shown
    )
    lines = [
        f"digraph {_quoted(diff.tree.old)} {{",
        '  rankdir=TB; compound=true; fontname="Helvetica"; bgcolor="transparent";',
        '  node [shape=box, style="rounded,filled", height=0.3];',
        '  node [fontname="Helvetica", fontsize=11];',
        '  edge [color="#8a929b", arrowsize=0.7];',
        *(
            f'  {_quoted(name)} [label={_quoted(diff.sources[name])}, shape=plain, style=""];'
            for name in inputs
        ),
        *_inside(diff.tree, 1, iter(range(1_000_000_000))),
        *(
            f"  {_quoted(source)} -> {_quoted(node.node)};"
            for node in shown.values()
            for source in node.inputs
            if source in shown or source in inputs
        ),
        "}",
    ]
    return "\n".join(lines) + "\n"


def _inside(parent: DiffNode, depth: int, numbers: Iterator[int]) -> Iterator[str]:
    indent = "  " * depth
    for node in parent.children:
        if not node.op and any(inner.op for inner in node.walk()):
            fill, border = _COLOURS[node.status]
            yield f"{indent}subgraph cluster_{next(numbers)} {{"
            look = f'color="{border}"; bgcolor="{fill}"; style="rounded"'
            look = look if node.status != "unchanged" else 'color="#c3c8ce"; style="rounded"'
            yield f'{indent}  label={_label(node)}; {look}; fontsize=10; labeljust="l";'
            yield from _inside(node, depth + 1, numbers)
            yield f"{indent}}}"
            continue
        fill, border = _COLOURS[node.status]
        look = "" if node.op else ', style="rounded,filled,dashed"'
        name = node.node or f"module {node.path}"
        yield (
            f"{indent}{_quoted(name)} [label={_label(node)}, "
            f'fillcolor="{fill}", color="{border}"{look}, tooltip={_quoted(node.reason or "")}];'
        )
        yield from _inside(node, depth, numbers)


def _label(node: DiffNode) -> str:
    parts = [node.name]
    if node.path is not None and node.old:
        parts[0] = f"{node.name}  {node.old}"
    if node.count:
        parts.append(f"{compact(node.count)} synapses")
    if node.shape is not None and not (node.children and not node.op):
        parts.append(measured(node.shape))
    return _quoted(*parts)


def _quoted(*lines: str) -> str:
    """A string of Graphviz: control characters written out, backslashes and quotes escaped."""
    safe = [clean(line).replace("\\", "\\\\").replace('"', '\\"') for line in lines]
    return '"' + "\\n".join(safe) + '"'
