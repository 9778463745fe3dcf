"""`biofx report`: the page of a run."""

import argparse
import sys
from pathlib import Path

from biofx.cli.errors import CommandError
from biofx.cli.output import check_output, to_stdout, write_text
from biofx.report.file import read
from biofx.report.page import page


def report(arguments: argparse.Namespace) -> int:
    """Write the page of a history; returns the exit status.

    Raises:
        CommandError: the page cannot be written.
        ReportError: the history cannot be read.
    """
    check_output(arguments)
    target = Path(arguments.output)
    if target.suffix.lower() != ".html" and (target.is_file() or not target.exists()):
        raise CommandError(f"cannot write {target}: the page is HTML; end its name in .html")
    content = read(arguments.history)
    text = page(content)
    write_text(arguments.output, text)
    damaged = [layer["name"] for layer in content["layers"] if layer["missing"]]
    if damaged:
        sys.stderr.write(
            f"biofx report: warning: {arguments.history} is damaged: parts of {len(damaged)} of "
            f"{len(content['layers'])} weights are missing; the page says which\n"
        )
    ends = [layer["after"]["step"] for layer in content["layers"] if layer["after"]]
    taken = max([0, *content["steps"][-1:], *ends])
    steps = f"{taken:,} step{'s' * (taken != 1)}" if content["steps"] else "no step yet"
    with to_stdout():
        sys.stdout.write(
            f"wrote {arguments.output} ({len(text) / 1e6:.1f} MB): "
            f"{len(content['layers'])} weights, {steps}\n"
        )
    return 0
