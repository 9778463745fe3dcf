"""The characters of a diff: Unicode, and ASCII for terminals that have nothing else."""

from dataclasses import dataclass

_PLAIN = str.maketrans(
    {
        "…": "...", "→": "->", "×": "x", "·": ".", "−": "-", "–": "-", "—": "-", "⋮": ":",
        "ν": "nu", "Γ": "Gamma", "φ": "phi", "≠": "!=", "≤": "<=", "≥": ">=", "’": "'",
    }
)  # fmt: skip


@dataclass(frozen=True)
class Glyphs:
    """What a picture is drawn with.

    Attributes:
        branch, corner, trunk, blank: the pieces of the tree, of equal width.
        rule: the character of a horizontal line.
        dot: marker of an unchanged node.
        fold: marker of a line that stands for several.
        ellipsis: ends a text that did not fit.
    """

    unicode: bool
    branch: str
    corner: str
    trunk: str
    blank: str
    rule: str
    dot: str
    fold: str
    ellipsis: str

    def say(self, text: str) -> str:
        """The text in characters that can be shown."""
        if self.unicode:
            return text
        return text.translate(_PLAIN).encode("ascii", "replace").decode("ascii")


UNICODE = Glyphs(True, "├─ ", "└─ ", "│  ", "   ", "─", "·", "⋮", "…")
ASCII = Glyphs(False, "|- ", "`- ", "|  ", "   ", "-", ".", ":", "..")
