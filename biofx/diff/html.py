"""The diff as a page: the same tree, to open and close, with every reason where it belongs."""

from collections.abc import Iterator, Sequence
from html import escape
from typing import TYPE_CHECKING

from biofx.diff import words
from biofx.diff.assets import SCRIPT, STYLE
from biofx.diff.fold import Emitter, Folding, Item
from biofx.diff.node import DiffNode
from biofx.diff.rows import fold_row, run_row
from biofx.diff.text import clean, compact, listed, measured

if TYPE_CHECKING:
    from biofx.diff.graph import GraphDiff

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


def page(diff: "GraphDiff") -> str:
    """A whole page. It loads nothing, and works without a network."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_say(diff.tree.old)} · biofx</title>\n</head>\n"
        f'<body class="biofx-page">\n{fragment(diff)}\n</body>\n</html>\n'
    )


def fragment(diff: "GraphDiff") -> str:
    """The same as a part of a page, for notebooks."""
    reasons, _ = words.reasons(diff.record)
    drawn = _Drawn(diff)
    shapes = ("tree shaped", "<span>Output</span>") if drawn.shaped else ("tree", "")
    return "\n".join(
        [
            f'<div class="biofx"><style>{STYLE}</style>',
            *_header(diff),
            *_tools(diff),
            f'<div class="{shapes[0]}">',
            '<div class="row titles"><span>Layer</span><span>Type</span><span>Synapses</span>'
            f"<span>Weight</span>{shapes[1]}</div>",
            *drawn.tree(),
            '<p class="none" hidden>Nothing matches.</p>',
            "</div>",
            *_reasons(reasons),
            *_assumptions(diff),
            f"<script>{SCRIPT}</script></div>",
        ]
    )


def _say(text: object) -> str:
    """Text of any origin, for HTML and for values of attributes."""
    return escape(clean(str(text)), quote=True)


# --- above the tree -------------------------------------------------------------------------------


def _header(diff: "GraphDiff") -> Iterator[str]:
    record = diff.record
    if not record.wiring.known:
        text = f"<b>Wiring {_say(words.wiring(record))}.</b> Pass <code>{_say(diff.ask)}</code>."
        yield f'<p class="banner">{text}</p>'
    yield f"<h1>{_say(diff.tree.old)}</h1>"
    yield '<dl class="facts">'
    changed, style = words.function(diff)
    layers = sum(diff.layers.values())
    facts: dict[str, str | None] = {
        "Plasticity": words.plasticity(record.config),
        "Synapses": f"{diff.synapses:,} of {diff.tree.parameters:,} parameters, "
        f"in {layers:,} {'layer' if layers == 1 else 'layers'}",
        "Function": changed,
        "Verified": diff.verified,
        "Wiring": words.wiring(record) if record.wiring.known else None,
        "Inputs": ", ".join(diff.sources.values()) or None,
        "Other settings": ", ".join(words.overriding(record)) or None,
        "Unused": "; ".join(record.unmatched) or None,
    }
    for label, fact in facts.items():
        if fact is not None:
            alarm = {"Function": "red" in style, "Unused": True}.get(label, False)
            kind = ' class="alarm"' if alarm else ""
            yield f"<div><dt>{label}</dt><dd{kind}>{_say(fact)}</dd></div>"
    yield "</dl>"


def _tools(diff: "GraphDiff") -> Iterator[str]:
    yield '<div class="tools"><input type="search" placeholder="Search layers, types, reasons" '
    yield 'aria-label="Search"><span class="chips">'
    counts: dict[str, int] = {}
    for node in diff.tree.walk():
        if node.path is not None and not node.again and node.status in words.LEGEND:
            counts[node.status] = counts.get(node.status, 0) + 1
    for status, word in words.LEGEND.items():
        if counts.get(status) and status != "unchanged":
            yield (
                f'<button type="button" data-only="{status}" aria-pressed="false" class="{status}">'
                f"<i></i>{word} <b>{counts[status]:,}</b></button>"
            )
    yield '</span><span class="ends"><button type="button" data-all="open">Open all</button>'
    yield '<button type="button" data-all="close">Close all</button></span></div>'


# --- the tree -------------------------------------------------------------------------------------


class _Drawn:
    def __init__(self, diff: "GraphDiff") -> None:
        self.diff = diff
        self.emitter = Emitter(Folding())
        self.most = max((node.count for node in diff.tree.walk()), default=0)
        self.shaped = any(node.shape is not None for node in diff.tree.walk())

    def tree(self) -> Iterator[str]:
        root = self.diff.tree
        if root.status != "unchanged":
            yield from self._node(root, 0)
        else:
            yield from self._children(root, 0)

    def _children(self, node: DiffNode, depth: int) -> Iterator[str]:
        for items, period in self.emitter.groups(self.emitter.items(node)):
            shown = items[:period] if period else items
            for item in shown:
                yield from self._item(item, depth)
            if not period:
                continue
            rest = items[period:]
            row = fold_row([i.nodes for i in shown], [i.nodes for i in rest], "", ())
            head = self._row("fold", depth, _say(row.name), count=row.count)
            yield f'<details class="group"><summary>{head}</summary>'
            for item in rest:
                yield from self._item(item, depth)
            yield "</details>"

    def _item(self, item: Item, depth: int) -> Iterator[str]:
        if not item.run:
            yield from self._node(item.nodes[0], depth)
            return
        row = run_row(item.nodes, ())
        head = self._row("unchanged", depth, _say(row.name), shape=row.shape)
        yield f'<details class="group"><summary>{head}</summary>'
        for node in item.nodes:
            yield from self._leaf(node, depth + 1)
        yield "</details>"

    def _node(self, node: DiffNode, depth: int) -> Iterator[str]:
        name = node.name
        items = self.emitter.items(node)
        while depth and self.emitter.is_passage(node, items):
            node = items[0].nodes[0]
            name = f"{name}.{node.name}"
            items = self.emitter.items(node)
        head = self._head(node, name, depth)
        made_of = [child for child in node.children if child.path is None] if node.synapses else []
        if not items and not made_of:
            yield head
            return
        state = " open" if items else ""
        yield f"<details{state}><summary>{head}</summary>"
        for child in made_of:
            yield from self._leaf(child, depth + 1)
        yield from self._children(node, depth + 1)
        yield "</details>"

    def _leaf(self, node: DiffNode, depth: int) -> Iterator[str]:
        """A node of the graph, or a module in which nothing changes."""
        inside = [child for child in node.children if not child.plumbing]
        head = self._head(node, node.name, depth)
        if not inside:
            yield head
            return
        yield f"<details><summary>{head}</summary>"
        for child in inside:
            yield from self._leaf(child, depth + 1)
        yield "</details>"

    def _head(self, node: DiffNode, name: str, depth: int) -> str:
        status = node.status if node.status != "unchanged" or node.quiet else "inner"
        text = "again" if node.again else node.settings
        told = [f'<span class="told" title="{_say(text)}">{_say(text)}</span>'] if text else []
        weight = ""
        if node.synapses and not node.again:
            weight = measured(self.diff.record.synapses[node.synapses[0]].shape)
            weight += f" +{len(node.synapses) - 1}" if len(node.synapses) > 1 else ""
        if node.reason and not node.again and node.status != "inserted":
            note = {"skipped": "why", "opaque": "not traced"}.get(node.status, "")
            note = note or ("not split" if node.reason.startswith("not split") else "note")
            told.append(
                f'<span class="why" tabindex="0">{note}<span class="tip" role="tooltip">'
                f"{_say(node.reason)}</span></span>"
            )
        return self._row(
            status,
            depth,
            _say(name or "(the model)"),
            place=node.place,
            kind=node.old if node.path is not None else "",
            count=0 if node.again else node.count,
            told=told,
            weight=weight,
            shape=node.shape,
        )

    def _row(
        self,
        status: str,
        depth: int,
        name: str,
        *,
        place: str = "",
        kind: str = "",
        count: int = 0,
        told: Sequence[str] = (),
        weight: str = "",
        shape: tuple[int, ...] | None = None,
    ) -> str:
        """A row; `name` and `told` are HTML already, the rest is text."""
        bar = ""
        if count and self.most and status != "fold":
            bar = f' style="--share:{max(100 * count / self.most, 1):.3g}%"'
        cells = [f"<b>{compact(count)}</b>"] if count else []
        shown = _say(measured(shape)) if shape is not None else ""
        output = f'<span class="size">{shown}</span>' if self.shaped else ""
        where = f'<code class="place">{_say(place)}</code>' if place else ""
        wide = "" if kind else " wide"
        return (
            f'<div class="row {status}{wide}" data-s="{status}" style="--d:{depth}">'
            f'<span class="name"><i></i><span class="text">{name}</span>{where}</span>'
            f'<span class="type">{_say(kind)}</span>'
            f'<span class="syn"{bar}>{"".join([*cells, *told])}</span>'
            f'<span class="size">{_say(weight)}</span>{output}</div>'
        )


# --- below the tree -------------------------------------------------------------------------------


def _reasons(reasons: Sequence[words.Reason]) -> Iterator[str]:
    if not reasons:
        return
    yield '<h2>Reasons</h2><table class="reasons">'
    for reason in reasons:
        yield (
            f'<tr><td class="label">{_say(reason.kind)}</td><td>{_say(reason.text)}</td>'
            f"<td><code>{_say(listed(reason.names, 12))}</code></td></tr>"
        )
    yield "</table>"


def _assumptions(diff: "GraphDiff") -> Iterator[str]:
    told = {kind: words.assumed(diff.record, kind) for kind in words.MEANING}
    if not any(told.values()):
        return
    yield "<h2>The graph takes for granted</h2>"
    for kind, lines in told.items():
        if lines:
            yield "<ul>"
            yield from (f"<li><code>{_say(line)}</code></li>" for line in lines)
            yield f'</ul><p class="meaning">{_say(words.MEANING[kind])}</p>'
