"""What stands above and below the tree: the model in numbers, and every reason in full."""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from rich.cells import cell_len
from rich.text import Text

from biofx.diff.glyphs import Glyphs
from biofx.diff.text import fit, listed, measured, wrap
from biofx.diff.words import MARKS, STYLES, drawn, rules

if TYPE_CHECKING:
    from biofx.diff.graph import GraphDiff

LABEL = 10
_NUMBERED = re.compile(r"(?<![\w.=])(?=[\w.]*\d)[\w.]+")
# Reasons told in full below the tree; others are counted.
REASONS = 12


def header(diff: "GraphDiff", width: int, glyphs: Glyphs) -> list[Text]:
    """The model, its synapses, and what its graph was captured for."""
    record, config = diff.record, diff.record.config
    synapses = sum(_count(item.shape) for item in record.synapses.values())
    title = Text(fit(glyphs.say(diff.tree.old), width // 2, glyphs), style="bold")
    numbers = f"{diff.tree.parameters:,} parameters, {synapses:,} of them synapses"
    title.append(glyphs.say(f"  {numbers}"), style="dim")
    lines = [title]
    told = [drawn(config)]
    if config.fuzzy_lr_dynamic:
        told.append("dynamic")
    gamma = config.weight_splitting_Gamma
    if gamma > 1:
        how = "in groups" if config.weight_splitting_mode == "group" else "expanded"
        told.append(f"Γ={gamma} {how}")
    if rules(config):
        told.append(rules(config))
    lines += _labelled("synapses", " · ".join(told), "", width, glyphs)
    used = [g for g in config.overrides if any(fnmatchcase(name, g) for name in record.layers)]
    if used:
        lines += _labelled("", f"other settings for {', '.join(used)}", "", width, glyphs)
    if record.unmatched:
        text = f"no weight layer matches {', '.join(record.unmatched)}"
        lines += _labelled("unused", text, STYLES["skipped"], width, glyphs)
    inputs = [
        f"{node.name} {measured(node.shape)}"
        for node in diff.tree.children
        if node.op == "placeholder" and node.shape is not None
    ]
    if inputs:
        lines += _labelled("inputs", ", ".join(inputs), "", width, glyphs)
    if diff.tree.assumes:
        text = f"{', '.join(diff.tree.assumes)}; other calls run the model's own Python forward"
        lines += _labelled("captured", f"for {text}", "", width, glyphs)
    return [*lines, Text()]


def summary(diff: "GraphDiff", width: int, glyphs: Glyphs) -> list[Text]:
    """Counts, whether the function changed, and every reason, in full."""
    lines = [Text(glyphs.rule * width, style="dim")]
    lines += _labelled("layers", _layers(diff), "", width, glyphs)
    counts = diff.nodes
    nodes = ", ".join(f"{counts[status]:,} {status}" for status in MARKS if status in counts)
    total = sum(diff.nodes.values())
    if total:
        graphs = f"{total:,} nodes in {diff.graphs:,} graph{'s' if diff.graphs != 1 else ''}"
        lines += _labelled("graphs", f"{graphs}: {nodes}", "", width, glyphs)
    share = f"{100 * diff.record.weights_in_graphs:.3g} % are in graphs"
    opaque = len(diff.record.opaque)
    if opaque:
        share += f"; {opaque} module{'s' if opaque != 1 else ''} stay{'s' if opaque == 1 else ''}"
        share += " Python"
    lines += _labelled("weights", share, "", width, glyphs)
    text, style = _function(diff)
    lines += _labelled("function", text, style, width, glyphs)
    if diff.verified is not None:
        lines += _labelled("verified", diff.verified, "green", width, glyphs)
    lines += _reasons(diff, width, glyphs)
    lines.append(Text())
    lines += _legend(diff, width, glyphs)
    return lines


def _layers(diff: "GraphDiff") -> str:
    layers = list(diff.record.layers.values())
    parts = []
    for action in ("augmented", "split", "skipped"):
        count = sum(layer.action == action for layer in layers)
        if count:
            parts.append(f"{count:,} {action}")
    return f"{len(layers):,} with weights: {', '.join(parts)}"


def _function(diff: "GraphDiff") -> tuple[str, str]:
    layers = [layer for layer in diff.record.layers.values() if layer.action == "split"]
    if diff.function == "changed":
        groups = sum(
            any(diff.record.synapses[p].split == "group" for p in layer.parameters)
            for layer in layers
        )
        text = f"CHANGED by {groups:,} layer{'s' if groups > 1 else ''} split in groups"
        return f"{text}: units become sums over their group", "bold red"
    if diff.function == "rounding":
        return "the same up to rounding: split layers are expanded", "green"
    return "the same, bit for bit", "green"


def _reasons(diff: "GraphDiff", width: int, glyphs: Glyphs) -> Iterator[Text]:
    told = [
        (status, label, reason, names)
        for status, label, pairs in _reasoned(diff)
        for reason, names in _grouped(pairs).items()
    ]
    for status, label, reason, names in told[:REASONS]:
        mark = glyphs.say(f"{MARKS[status]} ".strip())
        where = listed([name or "(the model)" for name in names], max(width - LABEL - 4, 20))
        label = f"{mark} {label}".strip()
        yield from _labelled(label, f"{reason}: {where}", "", width, glyphs, STYLES[status])
    if len(told) > REASONS:
        rest = sum(len(names) for *_, names in told[REASONS:])
        text = f"{len(told) - REASONS} more reasons for {rest:,} modules"
        yield from _labelled("", text, "", width, glyphs)


def _reasoned(diff: "GraphDiff") -> Iterator[tuple[str, str, list[tuple[str, str]]]]:
    """(status, label, [(module, reason)]) of everything that has a reason."""
    record, marked = diff.record, "not split: "
    layers = [(name, layer.action, layer.reason or "") for name, layer in record.layers.items()]
    kept = [(name, reason) for name, action, reason in layers if action != "skipped" and reason]
    yield "skipped", "skipped", [(n, reason) for n, action, reason in layers if action == "skipped"]
    yield "opaque", "Python", list(record.opaque.items())
    yield "", "partly", list(record.partly.items())
    yield "", "not split", [(n, r.removeprefix(marked)) for n, r in kept if r.startswith(marked)]
    yield "", "note", [(name, reason) for name, reason in kept if not reason.startswith(marked)]


def _grouped(pairs: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """Names by reason; reasons that differ only in their numbers are one."""
    groups: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for name, reason in pairs:
        groups[_NUMBERED.sub("…", reason)].append((name, reason))
    named = {}
    for alike, members in groups.items():
        reasons = {reason for _, reason in members}
        reason = reasons.pop() if len(reasons) == 1 else alike
        named[reason] = [name for name, _ in members]
    return named


def _legend(diff: "GraphDiff", width: int, glyphs: Glyphs) -> list[Text]:
    words = {
        "replaced": "replaced",
        "inserted": "inserted",
        "skipped": "skipped",
        "opaque": "stays Python",
        "unchanged": "unchanged",
        "fold": "folded",
    }
    text = Text()
    for status, word in words.items():
        piece = glyphs.say(f"{MARKS[status]} {word}")
        if text.cell_len + cell_len(piece) + 3 > width:
            break
        text.append(piece, style=STYLES[status])
        text.append("   ")
    text.rstrip()
    return [text]


def _labelled(
    label: str, text: str, style: str, width: int, glyphs: Glyphs, label_style: str = "bold"
) -> list[Text]:
    lines = []
    for number, line in enumerate(wrap(glyphs.say(text), width - LABEL, glyphs)):
        drawn_line = Text(f"{label if number == 0 else '':<{LABEL}}", style=label_style)
        drawn_line.append(line, style=style or "not bold")
        lines.append(drawn_line)
    return lines


def _count(shape: tuple[int, ...]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total
