"""Text that is safe to show and of a known width."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby

from rich.cells import cell_len, set_cell_size

_PLAIN = str.maketrans(
    {
        "…": "...", "→": "->", "×": "x", "·": ".", "−": "-", "–": "-", "—": "-", "⋮": ":",
        "ν": "nu", "Γ": "Gamma", "φ": "phi", "±": "+-", "≠": "!=", "≤": "<=", "≥": ">=", "’": "'",
    }
)  # fmt: skip


@dataclass(frozen=True)
class Glyphs:
    """The characters of a picture: Unicode, or ASCII for terminals that have nothing else.

    Attributes:
        branch, corner, trunk, blank: the pieces of the tree, of equal width.
        rule: the character of a horizontal line.
        ellipsis: ends a text that did not fit.
    """

    unicode: bool
    branch: str
    corner: str
    trunk: str
    blank: str
    rule: str
    ellipsis: str

    def say(self, text: str) -> str:
        """The text in characters that can be shown; control codes and the like in escapes."""
        text = clean(text)
        if self.unicode:
            return text
        return text.translate(_PLAIN).encode("ascii", "replace").decode("ascii")


UNICODE = Glyphs(True, "├ ", "└ ", "│ ", "  ", "─", "…")
ASCII = Glyphs(False, "|-", "`-", "| ", "  ", "-", "..")


def clean(text: str) -> str:
    r"""The text on one line, with what is no printable character escaped: ``\x1b[31m``.

    Names and reasons come from the model: they must not move the cursor of a terminal.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def fit(text: str, width: int, glyphs: Glyphs) -> str:
    """The text, cut to `width` columns with an ellipsis at its end."""
    if cell_len(text) <= width:
        return text
    room = max(width - cell_len(glyphs.ellipsis), 0)
    return (set_cell_size(text, room).rstrip() + glyphs.ellipsis)[: max(width, 0)]


def wrap(text: str, width: int, glyphs: Glyphs) -> list[str]:
    """The text in lines of at most `width` columns, broken between words."""
    lines: list[str] = []
    line = ""
    for word in text.split(" "):
        longer = f"{line} {word}" if line else word
        if cell_len(longer) <= width:
            line = longer
            continue
        if line:
            lines.append(line)
        line = fit(word, width, glyphs)
    return [*lines, line] if line else lines


def natural(name: str) -> tuple[tuple[int, int, str], ...]:
    """Sorts ``block.2`` before ``block.10``."""
    return tuple(
        (0, int(part), "") if part.isdecimal() else (1, 0, part)
        for part in re.split(r"(\d+)", name)
    )


_NUMBERED = re.compile(r"(?<![\w.=:])(?=[\w.]*\d)[\w.]+(?![\w.:])")


def without_places(reason: str) -> str:
    """A reason without what differs between repeated blocks: words that hold a number."""
    return _NUMBERED.sub("…", reason)


def listed(names: Iterable[str], most: int = 6) -> str:
    """Names in their natural order, those that differ in one number as one: ``h.0–11.attn``."""
    groups: dict[tuple[str, str], list[int]] = {}
    found: list[str] = []
    for name in sorted(set(names), key=natural):
        numbered = re.fullmatch(r"((?:.*\.)?)(\d+)((?:\.[^.\d][^.]*)*)", name)
        if numbered is None or numbered[2] != str(int(numbered[2])):
            found.append(name or "(the model)")
            continue
        groups.setdefault((numbered[1], numbered[3]), []).append(int(numbered[2]))
    for (before, after), numbers in groups.items():
        runs = []
        for _, run in groupby(enumerate(numbers), lambda pair: pair[1] - pair[0]):
            ends = [number for _, number in run]
            runs.append(str(ends[0]) if len(ends) == 1 else f"{ends[0]}–{ends[-1]}")
        found.append(f"{before}{'+'.join(runs)}{after}")
    found.sort(key=natural)
    if len(found) > most:
        return f"{', '.join(found[: most - 1])} and {len(found) - most + 1:,} more"
    return ", ".join(found)


def compact(number: int) -> str:
    """A number in at most six characters: ``9,408``, ``36,864``, ``2.36M``."""
    if number < 100_000:
        return f"{number:,}"
    for limit, unit in ((1e3, "k"), (1e6, "M"), (1e9, "G"), (1e12, "T")):
        if number < 999.5 * limit:
            return f"{number / limit:.3g}{unit}"
    return f"{number:.1e}"


def measured(shape: tuple[int, ...]) -> str:
    """A shape: ``2×64×56×56``; ``scalar`` for ()."""
    return "×".join(map(str, shape)) if shape else "scalar"
