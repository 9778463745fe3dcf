"""Capture: a model becomes a tree of `torch.fx` graphs, one per module that can be traced."""

from biofx.capture.clone import clone
from biofx.capture.islands import Captured, install
from biofx.capture.leaves import is_leaf
from biofx.capture.session import Capture, Session

__all__ = ["Capture", "Captured", "Session", "clone", "install", "is_leaf"]
