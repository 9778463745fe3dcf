"""`biofx inspect`."""

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import TextIO

from rich.console import Console

from biofx.cli.errors import UsageError
from biofx.cli.output import check_output, format_of, to_stdout, write_text
from biofx.cli.progress import steps
from biofx.errors import VerificationError

NARROWEST = 40  # columns of a picture
SUFFIXES = {".html": "html", ".json": "json", ".dot": "dot", ".txt": "text"}


class _Console(Console):
    def on_broken_pipe(self) -> None:
        raise BrokenPipeError  # rich would end the process with status 1


def inspect(arguments: argparse.Namespace) -> int:
    """Transform a model and show the difference; returns the exit status."""
    check_output(arguments)
    form: str = arguments.format or "rich"
    if arguments.output is not None:
        chosen = "text" if arguments.format == "rich" else arguments.format
        form = format_of(arguments.output, SUFFIXES, chosen) or "text"
    with steps() as step:
        step("loading torch")
        from biofx.cli.common import prepare

        model, bio, inputs = prepare(arguments, step)
        failure: VerificationError | None = None
        verified = None
        if arguments.verify and inputs is None:
            raise UsageError("--verify needs an example input to run on: --input 1,3,224,224")
        if arguments.verify:
            step("running both models")
            from biofx.verify import verify

            try:
                verified = str(verify(bio, model, inputs))
            except VerificationError as error:
                failure = error  # after the picture, which helps to understand it
        step("drawing")
        from biofx.diff import diff

        found = dataclasses.replace(
            diff(bio),
            full=arguments.full,
            verified=verified,
            ask="--input SHAPES or --input FILE.pt",
        )
        text = None
        if form == "json":
            letters = arguments.output is not None or _is_unicode(sys.stdout)
            text = _escaped(json.dumps(found.to_dict(), indent=2, ensure_ascii=not letters))
        elif form == "html":
            text = found.to_html()
        elif form == "dot":
            text = found.to_dot()
        elif form == "text":
            text = found.render(arguments.width) if arguments.width else str(found)
    if text is None:
        console = _Console(width=arguments.width)
        with to_stdout():
            (console if console.width >= NARROWEST else _Console(width=NARROWEST)).print(found)
    else:
        _write(arguments.output, text.rstrip("\n") + "\n", form)
    if failure is not None:
        raise failure
    return 0


def _escaped(text: str) -> str:
    """JSON whose control characters are all escaped: JSON itself asks for those below 32 alone."""
    return "".join(
        char if char.isprintable() or char == "\n" else json.dumps(char)[1:-1] for char in text
    )


def _write(path: str | None, text: str, form: str) -> None:
    if path is None:
        with to_stdout():
            sys.stdout.write(text)
        return
    write_text(path, text)
    if not Path(path).is_file():  # a device may be stdout itself
        return
    with to_stdout():
        sys.stdout.write(f"wrote {path} ({form}, {len(text.encode()):,} bytes)\n")


def _is_unicode(stream: TextIO) -> bool:
    return (getattr(stream, "encoding", None) or "utf-8").lower().startswith("utf")
