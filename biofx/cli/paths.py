"""Paths from the command line: what the system cannot even look at is said in one line."""

from pathlib import Path

from biofx.cli.errors import CommandError
from biofx.errors import printable

LONGEST = 120


def checked_path(text: str, doing: str) -> Path:
    """The path; it need not exist.

    Args:
        text: as it was given.
        doing: what for, such as "read the weights".

    Raises:
        CommandError: a name is too long, links lead in a circle, a folder may not be searched, …
    """
    path = Path(text)
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, ValueError) as error:  # ValueError: a null character
        why = getattr(error, "strerror", None) or str(error)
        raise CommandError(f"cannot {doing}: {shown(text)}: {why}") from error
    return path


def shown(path: str) -> str:
    """A path as a message shows it."""
    text = printable(path)
    return text if len(text) <= LONGEST else f"{text[: LONGEST // 2]}…{text[-LONGEST // 2 :]}"
