"""Copies: of modules over the same tensors, of what they hold, of nested values."""

from biofx.copying.clone import clone, own_tensors, separate

__all__ = ["clone", "own_tensors", "separate"]
