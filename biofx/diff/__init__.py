"""Diff: what a transformation changed, as a tree of nodes and as a picture of it."""

from biofx.diff.graph import GraphDiff, diff
from biofx.diff.node import DiffNode

__all__ = ["DiffNode", "GraphDiff", "diff"]
