"""`biofx export`."""

import argparse
import sys
from typing import Any

from biofx.cli.output import check_output, format_of, to_stdout
from biofx.cli.progress import steps


def export(arguments: argparse.Namespace) -> int:
    """Transform a model and write it for inference; returns the exit status."""
    check_output(arguments, regular=True)
    entry = None
    with steps() as step:
        step("loading torch")
        from biofx.cli.common import prepare
        from biofx.export import SUFFIXES
        from biofx.export import export as write

        form: Any = format_of(arguments.output, SUFFIXES, arguments.format)
        _, bio, inputs = prepare(arguments, step)
        if arguments.weights:
            step(f"loading {arguments.weights}")
            from biofx.cli.weights import load_weights

            entry = load_weights(bio, arguments.weights)
        step(f"writing {arguments.output}")
        done = write(
            bio.eval(),
            arguments.output,
            format=form,
            example_inputs=inputs,
            fold=arguments.fold,
        )
    if entry is not None:
        sys.stderr.write(f"biofx export: took the entry {entry!r} of {arguments.weights}\n")
    size = f"{done.path.stat().st_size:,} bytes"
    with to_stdout():
        sys.stdout.write(f"wrote {done.path} ({done.format}, {done.how}, {size})\n")
        if done.difference is not None:
            equal = "equal to" if not done.difference else f"within {done.difference:.1e} of"
            sys.stdout.write(f"on the example inputs it is {equal} the model\n")
        for note in done.notes:
            sys.stdout.write(f"{note}\n")
    return 0
