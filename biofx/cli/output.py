"""Writing files: complete or not at all."""

import argparse
import contextlib
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from biofx.cli.errors import CommandError
from biofx.cli.paths import checked_path


def check_output(arguments: argparse.Namespace, *, regular: bool = False) -> None:
    """Find out before the work that its result cannot be written.

    Args:
        arguments: of the command; ``arguments.output`` is where to, None is stdout.
        regular: the path must not be a device or a pipe, which a new file would replace.

    Raises:
        CommandError: the path is a directory, or in one that is missing or read-only, or a file
            that the command reads.
    """
    path: str | None = arguments.output
    if path is None:
        return
    if not path:
        raise CommandError("-o needs the name of a file")
    target = checked_path(path, "write")
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
    for what, source in _sources(arguments):
        if target.is_file() and source.is_file() and target.samefile(source):
            raise CommandError(
                f"cannot write {path}: it is the file of the {what}, which would be lost; name "
                "another file after -o"
            )


def _sources(arguments: argparse.Namespace) -> Iterator[tuple[str, Path]]:
    """The files that a command reads."""
    if getattr(arguments, "history", None):
        yield "history", Path(arguments.history)
    model: str = getattr(arguments, "model", "")
    for spec in (model, model.rpartition(":")[0]):  # a file's own name may hold a colon
        if spec:
            package = Path(*spec.split("."))
            for file in (Path(spec), package.with_suffix(".py"), package / "__init__.py"):
                yield "model", file
    for option in ("config", "weights"):
        if getattr(arguments, option, None):
            yield option, Path(getattr(arguments, option))


@contextmanager
def to_stdout() -> Iterator[None]:
    """Writing to stdout, all of it.

    Raises:
        CommandError: it cannot be written, for instance because the disk is full.
        BrokenPipeError: whoever reads it has gone.
    """
    if sys.stdout is None:
        raise CommandError("cannot write to stdout: it is closed")
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        drop_stdout()
        raise CommandError(f"cannot write to stdout: {error.strerror or error}") from error


def drop_stdout() -> None:
    """Let what stdout still holds go nowhere: the interpreter writes it once more when it exits."""
    with contextlib.suppress(OSError, ValueError), open(os.devnull, "w") as nowhere:  # noqa: PTH123
        os.dup2(nowhere.fileno(), sys.stdout.fileno())


def format_of(path: str, formats: Mapping[str, str], chosen: str | None) -> str | None:
    """The format that a file is to have: the one chosen, else what its suffix tells.

    Args:
        path: of the file.
        formats: {suffix: format}.
        chosen: with ``--format``, or None.

    Returns:
        The format; None of a device or a pipe, whose name tells nothing, if none is chosen.

    Raises:
        CommandError: the suffix tells none, or another than the one chosen.
    """
    target = Path(path)
    told = formats.get(target.suffix.lower())
    if told is None and chosen is None and (target.is_file() or not target.exists()):
        known = ", ".join(f"{suffix} ({name})" for suffix, name in formats.items())
        raise CommandError(
            f"the name {target.name!r} does not tell the format; end it in {known}, or give "
            "--format"
        )
    if chosen is not None and told not in (None, chosen):
        raise CommandError(f"the suffix of {target.name!r} means --format {told}, not {chosen}")
    return chosen or told


def write_text(path: str, text: str) -> None:
    """Write a text file as UTF-8; it appears complete or not at all.

    Raises:
        CommandError: it cannot be written.
        BrokenPipeError: it is a pipe, and whoever reads it has gone.
    """
    target = Path(path)
    try:
        if target.exists() and not target.is_file():  # a device or a pipe has no other place
            target.write_text(text, encoding="utf-8")
            return
        target = target.resolve()  # a link stays a link; that of a pipe leads nowhere
        beside = target.with_name(f".{target.name}.{os.getpid()}.tmp")
        try:
            beside.write_text(text, encoding="utf-8")
            if target.exists():
                shutil.copymode(target, beside)
            beside.replace(target)
        finally:
            beside.unlink(missing_ok=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise CommandError(f"cannot write {path}: {error.strerror or error}") from error
