"""The picture of a diff in a terminal: header, tree with aligned columns, every reason."""

import dataclasses
import os
import shutil
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from biofx.diff import words
from biofx.diff.fold import rows_of
from biofx.diff.rows import Row
from biofx.diff.text import ASCII, UNICODE, Glyphs, compact, fit, listed, measured, wrap
from biofx.diff.words import MARKS, STYLES

if TYPE_CHECKING:
    from biofx.diff.graph import GraphDiff

GAP = 2
GUTTER = 2
LABEL = 12
WIDENED = 24  # how much wider the first column may become for runs of operations
READABLE = 110  # columns of running text
# Reasons and assumptions told in full; others are counted.
MOST = 12
COLUMNS = ("Layer", "Type", "Synapses", "Weight", "Output")
# Narrowest and widest useful width of a column; in the order in which columns give way.
# Types may be wider where there is room.
LIMITS = {"Output": (8, 22), "Weight": (8, 22), "Type": (8, 30), "Synapses": (10, 44)}
LEAST_NAME = 22


def draw(diff: "GraphDiff", width: int, glyphs: Glyphs) -> list[Text]:
    """The lines of the picture; none is wider than `width`."""
    text_width = min(width, READABLE)
    reasons, numbers = words.reasons(diff.record)
    rows = rows_of(diff.tree, diff.full)
    lines = [
        *_header(diff, text_width, glyphs),
        *_table(diff, rows, numbers, width, glyphs),
        *_reasons(reasons, text_width, glyphs),
        *_assumptions(diff, text_width, glyphs),
        *_legend(rows, width, glyphs),
    ]
    for line in lines:
        line.no_wrap = True
        if line.cell_len > width:
            line.truncate(width)
    return lines


def suited(console: Console | None) -> Glyphs:
    """Unicode where the output can show it; ASCII on dumb terminals and in ASCII encodings."""
    encoding = console.encoding if console is not None else getattr(sys.stdout, "encoding", None)
    if os.environ.get("TERM") == "dumb":
        return ASCII
    return UNICODE if (encoding or "utf-8").lower().replace("-", "").startswith("utf") else ASCII


def terminal_width() -> int:
    """Columns of the terminal, at least 80."""
    return max(shutil.get_terminal_size((80, 24)).columns, 80)


# --- above the tree ------------------------------------------------------------------------------


def _header(diff: "GraphDiff", width: int, glyphs: Glyphs) -> list[Text]:
    record = diff.record
    lines = []
    known = record.wiring.known
    if not known:
        text = f"wiring {words.wiring(record)}: pass {diff.ask}"
        lines += [Text(line, "bold magenta") for line in wrap(glyphs.say(text), width, glyphs)]
        lines.append(Text())
    lines += [Text(fit(glyphs.say(diff.tree.old), width, glyphs), style="bold"), Text()]

    def say(label: str, text: str, style: str = "") -> None:
        lines.extend(_labelled(label, text, style, width, glyphs))

    say("plasticity", words.plasticity(record.config), "bold")
    used = words.overriding(record)
    if used:
        say("", f"other settings for {', '.join(used)}")
    say("synapses", f"{diff.synapses:,} of {diff.tree.parameters:,} parameters, in {_layers(diff)}")
    if record.unmatched:
        say("unused", f"no weight layer matches {', '.join(record.unmatched)}", "yellow")
    say("function", *words.function(diff))
    if diff.verified is not None:
        say("verified", diff.verified, "green")
    if known:
        say("wiring", words.wiring(record))
    if diff.sources:
        say("inputs", ", ".join(diff.sources.values()))
    return [*lines, Text()]


def _layers(diff: "GraphDiff") -> str:
    counts = diff.layers
    parts = [f"{counts[action]:,} {action}" for action in ("split", "skipped") if action in counts]
    total = sum(counts.values())
    noun = "layer" if total == 1 else "layers"
    return f"{total:,} {noun}" + (f" ({', '.join(parts)})" if parts else "")


def _labelled(
    label: str, text: str, style: str, width: int, glyphs: Glyphs, label_style: str = "dim"
) -> list[Text]:
    lines = []
    for number, line in enumerate(wrap(glyphs.say(text), width - LABEL, glyphs)):
        drawn = Text().append(f"{label if number == 0 else '':<{LABEL}}", label_style)
        drawn.append(line, style)
        lines.append(drawn)
    return lines


# --- the tree ------------------------------------------------------------------------------------


def _table(
    diff: "GraphDiff", rows: Sequence[Row], numbers: dict[str, int], width: int, glyphs: Glyphs
) -> list[Text]:
    rows = _without_root(rows)
    cells = [_cells(diff, row, numbers, glyphs) for row in rows]
    widths = _widths(rows, cells, width - GUTTER)
    titles = Text(" " * GUTTER)
    for column, size in widths.items():
        titles.append(_pad(column, size) + " " * GAP, style="bold")
    titles.rstrip()
    lines = [_line(row, texts, widths, glyphs) for row, texts in zip(rows, cells, strict=True)]
    rule = Text(glyphs.rule * min(width, max(line.cell_len for line in [titles, *lines])), "dim")
    return [titles, rule, *lines, rule.copy()]


def _without_root(rows: Sequence[Row]) -> list[Row]:
    """The rows without that of the model, which the header tells about, unless it is a layer."""
    root, *rest = rows
    if root.status or not rest:
        return [dataclasses.replace(root, name="(the model)"), *rest]
    return [dataclasses.replace(row, lasts=row.lasts[1:]) for row in rest]


def _cells(diff: "GraphDiff", row: Row, numbers: dict[str, int], glyphs: Glyphs) -> dict[str, str]:
    stem = "".join(glyphs.blank if last else glyphs.trunk for last in row.lasts[:-1])
    if row.lasts:
        stem += glyphs.corner if row.lasts[-1] else glyphs.branch
    found = {"stem": stem, "Layer": stem + glyphs.say(row.name)}
    if row.shape is not None:
        found["Output"] = glyphs.say(measured(row.shape))
    told = [compact(row.count)] if row.count else []
    node = row.node
    if node is not None:
        if node.path is not None:
            found["Type"] = glyphs.say(f"{node.old} like {row.like}" if row.like else node.old)
        if node.again:
            told.append("again")
        else:
            told += [node.settings] if node.settings else []
            if node.synapses:
                synapses = diff.record.synapses[node.synapses[0]]
                more = f" +{len(node.synapses) - 1}" if len(node.synapses) > 1 else ""
                found["Weight"] = glyphs.say(measured(synapses.shape)) + more
    text = " · ".join(told)
    if node is not None and node.reason and not node.again and node.path is not None:
        text += f" [{numbers[node.reason]}]" if text else f"[{numbers[node.reason]}]"
    if text:
        found["Synapses"] = glyphs.say(text)
    return found


def _widths(rows: Sequence[Row], cells: Sequence[dict[str, str]], width: int) -> dict[str, int]:
    """Columns that are shown, and how wide they are."""
    wanted = {"Layer": LEAST_NAME}
    for column in ("Type", "Synapses", "Weight", "Output"):
        sizes = [cell_len(texts[column]) for texts in cells if column in texts]
        if sizes:
            wanted[column] = min(max(*sizes, len(column)), LIMITS[column][1])
    names = [cell_len(texts["Layer"]) for row, texts in zip(rows, cells, strict=True) if row.node]
    spans = [
        cell_len(texts["Layer"]) - GAP - wanted.get("Type", 0)
        for row, texts in zip(rows, cells, strict=True)
        if row.status == "fold"
    ]
    runs = [
        cell_len(texts["Layer"]) - GAP - wanted.get("Type", 0)
        for row, texts in zip(rows, cells, strict=True)
        if row.status == "unchanged" and row.node is None
    ]
    wanted["Layer"] = max([LEAST_NAME, *names, *spans])

    def excess() -> int:
        return sum(wanted.values()) + GAP * (len(wanted) - 1) - width

    longest = wanted["Layer"]
    wanted["Layer"] = min(longest, max(LEAST_NAME, width // 2))
    for column in ("Output", "Weight"):
        if excess() > 0:
            wanted.pop(column, None)
    for column in ("Type", "Layer", "Synapses"):
        if excess() > 0 and column in wanted:
            least = LEAST_NAME if column == "Layer" else LIMITS[column][0]
            wanted[column] = max(wanted[column] - excess(), min(least, wanted[column]))
    if excess() > 0:
        wanted.pop("Type", None)
    wanted["Layer"] = max(wanted["Layer"] - max(excess(), 0), 8)
    longest = max(longest, min(longest + WIDENED, max(runs, default=0)))
    wanted["Layer"] += max(min(-excess(), longest - wanted["Layer"]), 0)
    types = max((cell_len(texts["Type"]) for texts in cells if "Type" in texts), default=0)
    if "Type" in wanted:
        wanted["Type"] += max(min(-excess(), types - wanted["Type"]), 0)
    return wanted


def _pad(text: str, width: int) -> str:
    return text + " " * max(width - cell_len(text), 0)


def _line(row: Row, cells: dict[str, str], widths: dict[str, int], glyphs: Glyphs) -> Text:
    style = STYLES[row.status]
    quiet = row.status in ("unchanged", "fold")
    text = Text().append(f"{glyphs.say(MARKS[row.status]):<{GUTTER}}", style)
    room = widths["Layer"]
    columns = [column for column in widths if column != "Layer"]
    if row.node is None and "Type" in widths:
        room += GAP + widths["Type"]
        columns.remove("Type")
    name = fit(cells["Layer"], room, glyphs)
    stem = name[: len(cells["stem"])]
    text.append(stem, style="dim")
    text.append(_pad(name[len(stem) :], room - cell_len(stem)), style=style or "bold")
    for column in columns:
        text.append(" " * GAP)
        look = "dim" if quiet or column in ("Output", "Weight") else ""
        if column == "Synapses" and row.status in ("skipped", "opaque"):
            look = style
        text.append(_pad(fit(cells.get(column, ""), widths[column], glyphs), widths[column]), look)
    text.rstrip()
    return text


# --- below the tree ------------------------------------------------------------------------------


def _reasons(reasons: Sequence[words.Reason], width: int, glyphs: Glyphs) -> list[Text]:
    lines: list[Text] = []
    styles = {"skipped": "skipped", "not traced": "opaque"}
    for number, reason in enumerate(reasons[:MOST], 1):
        label = f"[{number}]"
        text = f"{reason.kind}: {reason.text}" if reason.kind != "note" else reason.text
        where = listed(reason.names)
        drawn = wrap(glyphs.say(f"{text} — {where}"), width - 5, glyphs)
        for place, line in enumerate(drawn):
            head = f"{label if place == 0 else '':<5}"
            style = STYLES[styles.get(reason.kind, "")]
            lines.append(Text().append(head, style).append(line))
    if len(reasons) > MOST:
        rest = sum(len(reason.names) for reason in reasons[MOST:])
        lines.append(Text(f"     {len(reasons) - MOST} more reasons for {rest:,} modules", "dim"))
    return [*lines, Text()] if lines else lines


def _assumptions(diff: "GraphDiff", width: int, glyphs: Glyphs) -> list[Text]:
    lines: list[Text] = []
    for kind, meaning in words.MEANING.items():
        found = words.assumed(diff.record, kind)
        for text in found[:MOST]:
            lines += _indented(text, "", "", width, glyphs)
        if len(found) > MOST:
            lines.append(Text(f"{len(found) - MOST:,} more like these", style="dim"))
        if found:
            lines += _indented(meaning, "  ", "dim", width, glyphs)
    return [Text("The graph takes for granted", style="bold"), *lines, Text()] if lines else []


def _indented(text: str, indent: str, style: str, width: int, glyphs: Glyphs) -> list[Text]:
    return [
        Text(indent + line, style=style)
        for line in wrap(glyphs.say(text), width - len(indent), glyphs)
    ]


def _legend(rows: Sequence[Row], width: int, glyphs: Glyphs) -> list[Text]:
    used = {row.status for row in rows}
    text = Text()
    for status, word in words.LEGEND.items():
        if status not in used:
            continue
        piece = glyphs.say(f"{MARKS[status]} {word}")
        if text.cell_len + cell_len(piece) + 3 > width:
            break
        text.append(piece, style=STYLES[status])
        text.append("   ")
    text.rstrip()
    return [text]
