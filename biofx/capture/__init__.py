"""Capture: a model becomes one flat graph."""

from biofx.capture.call import CapturedCodeGen
from biofx.capture.capture import Captured, capture
from biofx.capture.inputs import Arguments, arguments_of, signature_of
from biofx.capture.writer import Assumption

__all__ = [
    "Arguments",
    "Assumption",
    "Captured",
    "CapturedCodeGen",
    "arguments_of",
    "capture",
    "signature_of",
]
