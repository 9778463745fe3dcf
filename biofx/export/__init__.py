"""Export: a transformed model leaves as a file that needs no biofx."""

from biofx.export.export import FORMATS, SUFFIXES, Exported, export
from biofx.export.folding import FoldReport

__all__ = ["FORMATS", "SUFFIXES", "Exported", "FoldReport", "export"]
