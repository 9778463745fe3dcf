"""Writing files: complete or not at all."""

import os
import shutil
from pathlib import Path

from biofx.cli.errors import CommandError


def check_output(path: str | None, *, regular: bool = False) -> None:
    """Find out before the work that its result cannot be written.

    Args:
        path: where to; None is stdout.
        regular: the path must not be a device or a pipe, which a new file would replace.

    Raises:
        CommandError: the path is a directory, or in one that is missing or read-only.
    """
    if path is None:
        return
    target = Path(path)
    if target.is_dir():
        raise CommandError(f"cannot write {path}: it is a directory")
    if regular and target.exists() and not target.is_file():
        raise CommandError(f"cannot write {path}: it is not a regular file")
    folder = target.parent
    if not folder.is_dir():
        raise CommandError(f"cannot write {path}: there is no directory {folder}")
    writable = target if target.exists() and not target.is_file() else folder
    if not os.access(writable, os.W_OK):
        raise CommandError(f"cannot write {path}: {writable} is not writable")


def write_text(path: str, text: str) -> None:
    """Write a text file as UTF-8; it appears complete or not at all.

    Raises:
        CommandError: it cannot be written.
    """
    target = Path(os.path.realpath(path))  # a link stays a link
    try:
        if target.exists() and not target.is_file():  # a device or a pipe has no other place
            target.write_text(text, encoding="utf-8")
            return
        beside = target.with_name(f".{target.name}.{os.getpid()}.tmp")
        try:
            beside.write_text(text, encoding="utf-8")
            if target.exists():
                shutil.copymode(target, beside)
            beside.replace(target)
        finally:
            beside.unlink(missing_ok=True)
    except OSError as error:
        raise CommandError(f"cannot write {path}: {error.strerror or error}") from error
