"""Files that appear complete or not at all."""

import os
import tempfile
from pathlib import Path
from typing import Any

from biofx.errors import ExportError


def destination(path: str | os.PathLike[str]) -> Path:
    """The file that a path stands for; a link keeps pointing to it.

    Raises:
        ExportError: no file can be written there.
    """
    if not isinstance(path, str | os.PathLike):
        raise ExportError(f"expected the path of the file to write, got {type(path).__name__}")
    try:
        target = Path(path).resolve()
        if target.is_symlink():
            raise ExportError(f"cannot write {shown(target)}: it is a link to itself")
        if target.is_dir() or not target.parent.is_dir():
            what = (
                "is a directory" if target.is_dir() else "lies in a directory that does not exist"
            )
            raise ExportError(f"cannot write {shown(target)}: it {what}")
        if target.exists() and not target.is_file():
            raise ExportError(f"cannot write {shown(target)}: it is not a regular file")
    except (OSError, RuntimeError, ValueError) as error:
        raise _failure(Path(path), error) from error
    return target


def write(target: Path, data: Any) -> None:
    """Write a file beside its place, then give it its name.

    Args:
        target: as `destination` gives it.
        data: bytes, or anything with the buffer protocol.

    Raises:
        ExportError: it cannot be written; what was there before is still there.
    """
    beside: Path | None = None
    try:
        # A short name of its own: that of the target may be as long as names can be.
        handle, name = tempfile.mkstemp(prefix=".biofx-", dir=target.parent)
        beside = Path(name)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        beside.chmod(0o666 & ~_umask())  # mkstemp gives 0600
        beside.replace(target)
        beside = None
    except OSError as error:
        raise _failure(target, error) from error
    finally:
        if beside is not None:
            beside.unlink(missing_ok=True)


def shown(path: Path) -> str:
    """A path as text that every terminal takes."""
    return "".join(
        c if c.isprintable() else "?" for c in os.fsencode(path).decode(errors="replace")
    )


def _failure(path: Path, error: Exception) -> ExportError:
    why = getattr(error, "strerror", None) or str(error)
    return ExportError(f"cannot write {shown(path)}: {why}")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
