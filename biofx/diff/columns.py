"""The table of a picture: rows with aligned columns that fit a width."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rich.cells import cell_len
from rich.text import Text

from biofx.diff.glyphs import Glyphs
from biofx.diff.rows import Row
from biofx.diff.text import compact, fit, measured
from biofx.diff.words import MARKS, STYLES, settings

if TYPE_CHECKING:
    from biofx.diff.graph import GraphDiff

GAP = 2
GUTTER = 2
# narrowest useful width of a column; a column that does not get it is left out
LEAST = {"node": 18, "type": 14, "output": 14, "params": 6, "rank": 4, "synapses": 14, "notes": 30}
WIDENED = 12  # how much wider the first column may become for runs of nodes
MOST = {"node": 60, "type": 52, "output": 24, "synapses": 40}
TITLES = {
    "node": "Node",
    "type": "Type",
    "output": "Output",
    "params": "Params",
    "rank": "Rank",
    "synapses": "Synapses",
    "notes": "Notes",
}
RIGHT = ("params", "rank")


@dataclass
class Line:
    """A row's texts, before their widths are known."""

    row: Row
    stem: str
    hang: str
    name: str
    cells: dict[str, str] = field(default_factory=dict)


def table(diff: "GraphDiff", rows: Sequence[Row], width: int, glyphs: Glyphs) -> list[Text]:
    """The tree, a line a row and a line below it for each note that has no column."""
    lines = [_line(diff, row, _after(rows, i), glyphs) for i, row in enumerate(rows)]
    widths = _widths(lines, width)
    drawn = [_titles(widths, glyphs), Text(glyphs.rule * width, style="dim")]
    for line in lines:
        drawn.append(_draw(line, widths, glyphs))
        if "notes" not in widths:
            room = width - GUTTER - cell_len(line.hang)
            drawn += [_below(line, note, room, glyphs) for note in line.row.notes]
    return drawn


def _after(rows: Sequence[Row], position: int) -> Row | None:
    return rows[position + 1] if position + 1 < len(rows) else None


def _line(diff: "GraphDiff", row: Row, after: Row | None, glyphs: Glyphs) -> Line:
    trunks = [glyphs.blank if last else glyphs.trunk for last in row.lasts]
    stem = "".join(trunks[:-1])
    if row.lasts:
        stem += glyphs.corner if row.lasts[-1] else glyphs.branch
    opens = after is not None and len(after.lasts) > len(row.lasts)
    hang = "".join(trunks) + (glyphs.trunk if opens else glyphs.blank)
    line = Line(row, stem, hang, glyphs.say(row.name))
    node = row.node
    line.cells["output"] = glyphs.say(measured(row.shape)) if row.shape is not None else ""
    line.cells["params"] = compact(row.parameters) if row.parameters else ""
    line.cells["notes"] = glyphs.say(" · ".join(row.notes))
    if node is None:
        return line
    if not row.lasts:
        line.name = glyphs.say(node.old if not node.name else node.name)
    kind = node.new if not node.old or node.old == node.new else f"{node.old} → {node.new}"
    if node.op in ("placeholder", "get_attr", "output"):
        kind = {"placeholder": "input", "get_attr": "attribute"}.get(node.op, "result")
    elif node.path is None and (line.name == kind or node.status in ("inserted", "replaced")):
        kind = "method" if node.op == "call_method" else "function"
    elif not row.lasts:
        kind = "" if node.old == node.new else kind
    if node.again and node.notes:
        kind = f"{node.old}, again"
    line.cells["type"] = glyphs.say(kind + (f" like {row.like}" if row.like else ""))
    if node.rank is not None and not node.again:
        line.cells["rank"] = f"out {node.rank}" if node.output else str(node.rank)
    if node.synapses and not node.again:
        line.cells["synapses"] = glyphs.say(settings(diff.record.synapses[node.synapses[0]]))
    return line


def _widths(lines: Sequence[Line], width: int) -> dict[str, int]:
    """Columns that are shown, and how wide they are."""
    wanted, spans, deepest = _wanted(lines)
    notes = wanted.pop("notes", 0)
    least = {**LEAST, "node": max(LEAST["node"], deepest)}
    wanted["node"] = max(wanted["node"], deepest)

    def excess(sizes: dict[str, int]) -> int:
        return sum(sizes.values()) + GAP * (len(sizes) - 1) - (width - GUTTER)

    longer = max(spans["fold"] - wanted["node"] - GAP - wanted["type"], 0)
    if excess(wanted) + longer > 0:
        wanted.pop("synapses", None)
    for column in ("rank", "output", "params"):
        if excess({name: min(size, least[name]) for name, size in wanted.items()}) > 0:
            wanted.pop(column, None)
    while excess(wanted) > 0:  # shrink what is widest beyond what it needs at least
        column = max(("node", "type", "output"), key=lambda name: wanted.get(name, 0) - least[name])
        if wanted.get(column, 0) <= least[column]:
            break
        wanted[column] -= 1
    two = wanted["node"] + GAP + wanted["type"]
    longer = max(spans["fold"] - two, min(spans["run"] - two, WIDENED), 0)
    wanted["node"] += min(longer, max(-excess(wanted), 0))
    spare = -excess(wanted) - GAP
    if notes and spare >= min(notes, max(LEAST["notes"], width // 4)):
        wanted["notes"] = min(notes, spare)
    return wanted


def _wanted(lines: Sequence[Line]) -> tuple[dict[str, int], dict[str, int], int]:
    """Widths of the columns, of the texts that span two, and the least that the tree needs."""
    wanted = dict.fromkeys(TITLES, 0)
    spans = {"fold": 0, "run": 0}
    deepest = 0
    for line in lines:
        deepest = max(deepest, cell_len(line.stem) + 8)
        if line.row.span:
            kind = "fold" if line.row.status == "fold" else "run"
            spans[kind] = max(spans[kind], cell_len(line.stem + line.name))
            continue
        wanted["node"] = max(wanted["node"], cell_len(line.stem + line.name))
        for column, text in line.cells.items():
            wanted[column] = max(wanted[column], cell_len(text))
    shown = {
        column: min(max(size, cell_len(TITLES[column])), MOST.get(column, size + 99))
        for column, size in wanted.items()
        if size or column in ("node", "type")
    }
    return shown, spans, deepest


def _titles(widths: dict[str, int], glyphs: Glyphs) -> Text:
    text = Text(" " * GUTTER)
    for column, size in widths.items():
        title = fit(TITLES[column], size, glyphs)
        text.append(_pad(title, size, column), style="bold")
        text.append(" " * GAP)
    text.rstrip()
    return text


def _pad(text: str, width: int, column: str = "") -> str:
    room = " " * max(width - cell_len(text), 0)
    return room + text if column in RIGHT else text + room


def _draw(line: Line, widths: dict[str, int], glyphs: Glyphs) -> Text:
    row = line.row
    style = STYLES[row.status]
    text = Text()
    text.append(f"{glyphs.say(MARKS[row.status]):<{GUTTER}}", style=style)
    stem = fit(line.stem, max(widths["node"] - 6, 0), glyphs)
    text.append(stem, style="dim")
    room = widths["node"] - cell_len(stem)
    columns = [column for column in widths if column != "node"]
    quiet = row.status in ("unchanged", "fold")
    if row.span:
        room += GAP + widths.get("type", 0)
        columns.remove("type")
    name = line.name
    if row.count > 1 and cell_len(name) > room:
        name = f"{row.count} {row.status}: {name}"
    name = fit(name, room, glyphs)
    name_style = "dim" if quiet else style if row.status else "bold"
    text.append(_pad(name, room), style=name_style)
    for column in columns:
        cell = fit(line.cells.get(column, ""), widths[column], glyphs)
        text.append(" " * GAP)
        if column == "type":
            _append_type(text, _pad(cell, widths[column]), style, glyphs, quiet)
        else:
            look = {"notes": STYLES["note"], "output": "dim"}.get(column, "dim" if quiet else "")
            if column == "notes" and row.status in ("skipped", "opaque"):
                look = style
            text.append(_pad(cell, widths[column], column), style=look)
    text.rstrip()
    return text


def _append_type(text: Text, cell: str, style: str, glyphs: Glyphs, quiet: bool) -> None:
    arrow = glyphs.say(" → ")
    before, found, after = cell.partition(arrow)
    if found:
        text.append(before + found, style="dim")
        text.append(after, style=style)
        return
    before, found, after = cell.partition(" like ")
    text.append(before, style="dim" if quiet else style)
    text.append(found + after, style="dim")


def _below(line: Line, note: str, room: int, glyphs: Glyphs) -> Text:
    text = Text(" " * GUTTER)
    text.append(line.hang, style="dim")
    alarming = line.row.status in ("skipped", "opaque")
    style = STYLES[line.row.status if alarming else "note"]
    text.append(fit(glyphs.say(note), room, glyphs), style=style)
    return text
