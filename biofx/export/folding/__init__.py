"""Folding: a split model becomes as small as it can be, for inference."""

from biofx.export.folding.fold_pass import FoldReport, fold

__all__ = ["FoldReport", "fold"]
