"""Checks, over many steps, what factors and new synapses come to under each optimizer.

    tools/optimizers                         all of them; some minutes
    tools/optimizers --only 'torch/*'        one library
    tools/optimizers --only '*ScheduleFree*' the optimizers with such names
    tools/optimizers --markdown docs/optimizers.md

The exit status is 1 if a factor is no learning rate under an optimizer that is not refused.
"""

import argparse
import logging
import sys
from fnmatch import fnmatch
from pathlib import Path

import commandline
import torch
from optimizing.libraries import LIBRARIES
from optimizing.measure import Result, measure
from optimizing.page import page, row, summary
from rich.console import Console


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = commandline.parser("optimizers", __doc__)
    parser.add_argument("--only", metavar="GLOB", default="*", help="NAME or LIBRARY/NAME")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write docs/optimizers.md")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    torch.set_num_threads(1)  # the parameters are small
    logging.disable(logging.WARNING)
    console = Console(highlight=False, soft_wrap=True)
    results: list[Result] = []
    for entries in LIBRARIES.values():
        for entry in entries():
            full = f"{entry.library}/{entry.name}"
            if not (fnmatch(entry.name, options.only) or fnmatch(full, options.only)):
                continue
            results.append(result := measure(entry, debug=options.debug))
            text = result.skipped or result.error or "  ".join(filter(None, row(result)[1:]))
            style = "red" if result.failures else ""
            console.print(f"{full:42s} {text}", style=style, markup=False)
    if not results:
        console.print(f"no optimizer is called {options.only!r}", style="red", markup=False)
        return 2
    console.print(summary(results), markup=False)
    if options.markdown:
        options.markdown.write_text(page(results), encoding="utf-8")
    return int(any(result.failures for result in results))


if __name__ == "__main__":
    sys.exit(main())
