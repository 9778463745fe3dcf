"""The picture of a diff: header, tree with aligned columns, summary with every reason."""

import os
import shutil
import sys
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from biofx.diff.columns import table
from biofx.diff.fold import rows_of
from biofx.diff.glyphs import ASCII, UNICODE, Glyphs
from biofx.diff.summary import header, summary

if TYPE_CHECKING:
    from biofx.diff.graph import GraphDiff


def draw(diff: "GraphDiff", width: int, glyphs: Glyphs) -> list[Text]:
    """The lines of the picture; none is wider than `width`."""
    rows = rows_of(diff.tree, diff.full)
    lines = [
        *header(diff, width, glyphs),
        *table(diff, rows, width, glyphs),
        *summary(diff, width, glyphs),
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
