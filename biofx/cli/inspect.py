"""`biofx inspect`."""

import argparse
import dataclasses
import json
import sys
from typing import TextIO

from rich.console import Console

from biofx.cli.errors import UsageError
from biofx.cli.output import check_output, write_text
from biofx.cli.progress import steps
from biofx.errors import VerificationError


class _Console(Console):
    def on_broken_pipe(self) -> None:
        raise BrokenPipeError  # rich would end the process with status 1


def inspect(arguments: argparse.Namespace) -> int:
    """Transform a model and show the difference; returns the exit status."""
    if arguments.verify and not arguments.input:
        raise UsageError("--verify needs an example input to run the model on: --input 1,3,224,224")
    check_output(arguments)
    with steps() as step:
        step("loading torch")
        from biofx.cli.common import prepare

        model, bio, inputs = prepare(arguments, step)
        failure: VerificationError | None = None
        verified = None
        if arguments.verify:
            step("running both models")
            from biofx.capture.verify import verify

            try:
                verified = str(verify(bio, model, inputs))
            except VerificationError as error:
                failure = error  # after the picture, which helps to understand it
        step("drawing")
        from biofx.diff import diff

        found = dataclasses.replace(diff(bio), full=arguments.full, verified=verified)
    if arguments.format == "json":
        letters = arguments.output is not None or _is_unicode(sys.stdout)
        plain = json.dumps(found.to_dict(), indent=2, ensure_ascii=not letters)
        _write(arguments.output, plain + "\n")
    elif arguments.format == "rich" and arguments.output is None:
        _Console(width=arguments.width).print(found)
    else:
        text = found.render(arguments.width) if arguments.width else str(found)
        _write(arguments.output, text + "\n")
    if failure is not None:
        raise failure
    return 0


def _write(path: str | None, text: str) -> None:
    if path is not None:
        write_text(path, text)
    else:
        sys.stdout.write(text)


def _is_unicode(stream: TextIO) -> bool:
    return (getattr(stream, "encoding", None) or "utf-8").lower().startswith("utf")
