"""Small tools for text of a known width."""

from collections.abc import Iterable

from rich.cells import cell_len, set_cell_size

from biofx.diff.glyphs import Glyphs


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
    for word in text.split():
        longer = f"{line} {word}" if line else word
        if cell_len(longer) <= width:
            line = longer
            continue
        if line:
            lines.append(line)
        line = fit(word, width, glyphs)
    return [*lines, line] if line else lines


def listed(names: Iterable[str], room: int, more: str = "more") -> str:
    """As many names as fit: ``a, b and 3 more``."""
    every = list(names)
    text = ", ".join(every)
    shown = len(every)
    while cell_len(text) > room and shown > 1:
        shown -= 1
        text = ", ".join(every[:shown]) + f" and {len(every) - shown:,} {more}"
    return text


def compact(number: int) -> str:
    """A number in at most six characters: ``9,408``, ``36.9k``, ``2.36M``."""
    if number < 10_000:
        return f"{number:,}"
    for limit, unit in ((1e3, "k"), (1e6, "M"), (1e9, "G"), (1e12, "T")):
        if number < 999.5 * limit:
            return f"{number / limit:.3g}{unit}"
    return f"{number:.1e}"


def measured(shape: tuple[int, ...]) -> str:
    """A shape: ``2×64×56×56``; ``scalar`` for ()."""
    return "×".join(map(str, shape)) if shape else "scalar"
