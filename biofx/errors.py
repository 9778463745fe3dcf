"""The one exception hierarchy. A message says what is wrong, where, and what to do about it."""

from pathlib import Path


def printable(text: str) -> str:
    r"""Text from outside with its control characters written out, as ``\\x1b``, for a terminal."""
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )


def place_of(error: BaseException) -> str:
    """``file:line`` of the last line of the user's code that an error went through, or ""."""
    place, trace = "", error.__traceback__
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        package = trace.tb_frame.f_globals.get("__name__", "").partition(".")[0]
        if not file.startswith("<") and package not in ("torch", "biofx"):
            place = f"{Path(file).name}:{trace.tb_lineno}"
        trace = trace.tb_next
    return place


class BiofxError(Exception):
    """Base of every error that biofx raises on purpose."""


# Some are also what `bio_transformations` raises in the same place.


class ConfigError(BiofxError, ValueError, AssertionError):
    """A configuration field is unknown, out of range or contradicts another."""


class ModelError(BiofxError):
    """The model cannot be used as it is (no weight layer, un-materialised lazy layer, …)."""


class PlasticityError(BiofxError, RuntimeError):
    """A rule or a scheduler cannot do what it is asked to do."""


class CheckpointError(BiofxError):
    """A scheduler checkpoint belongs to another model, configuration or set of rules."""


class ExportError(BiofxError):
    """A model cannot be written in the format asked for."""


class VerificationError(BiofxError):
    """A transformed model does not compute what the original computes."""


class ReportError(BiofxError):
    """The history of a run cannot be read, or its page not be written."""
