"""The one exception hierarchy. A message says what is wrong, where, and what to do about it."""


def printable(text: str) -> str:
    r"""Text from outside with its control characters written out, as ``\\x1b``, for a terminal."""
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )


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
