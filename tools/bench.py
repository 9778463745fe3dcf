"""Measures biofx against plain training, the package bio_transformations and plain kernels.

    tools/bench                           everything; an hour or more
    tools/bench --rows memory,transform   some of it
    tools/bench --runs 3                  times three times: medians of goals, their spread
    tools/bench --quick                   tiny models, a few rounds: does the harness work?

Times are medians of interleaved calls within one process: where other work slows the machine, look
at the ratios. Nothing here fails because of a time.
"""

import argparse
import json
import sys
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import commandline
import torch
from benchmarks import (
    compiling,
    lasting,
    memory,
    pages,
    scaling,
    small,
    splitting,
    steps,
    transforming,
)
from benchmarks.models import LARGE, RESNET, SMALL
from benchmarks.report import Report, as_json, machine, median, show
from benchmarks.timing import FULL, QUICK, Effort
from rich.console import Console

ROWS: dict[str, Callable[[Effort], Report]] = {
    "mlp": partial(steps.measure, SMALL),
    "large-mlp": partial(steps.measure, LARGE),
    "resnet": partial(steps.measure, RESNET),
    "small": small.small,
    "lasting": lasting.lasting,
    "growth": lasting.growth,
    "memory": memory.memory,
    "compile": compiling.compiling,
    "split": splitting.splitting,
    "transform": transforming.transforming,
    "scaling": scaling.scaling,
}
# Bytes, or many steps after one another: a second run says the same.
ONCE = {"growth", "memory"}
# A second thread would have nothing to do.
ONE_THREAD = {"growth", "lasting", "small"}
WORKERS: dict[str, Callable[..., dict]] = {
    "peak": memory.peak,
    "first_minute": lasting.first_minute,
    "first_step": compiling.first_step,
    "allocated": transforming.allocated,
    "collectives": scaling.collectives,
}


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = commandline.parser("bench", __doc__)
    parser.add_argument("--rows", default=",".join(ROWS), help=f"some of {','.join(ROWS)}")
    parser.add_argument("--quick", action="store_true", help="tiny models, a few rounds")
    parser.add_argument("--runs", type=int, default=1, help="of rows that take times (1)")
    parser.add_argument("--threads", type=int, default=2, help="of PyTorch (2)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers here")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write docs/benchmarks.md")
    parser.add_argument("--scaling", type=Path, metavar="FILE", help="write docs/scaling.md")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    options.rows = [row for row in options.rows.split(",") if row]
    unknown = [row for row in options.rows if row not in ROWS]
    if unknown:
        parser.error(f"no row {unknown[0]!r}; there are {', '.join(ROWS)}")
    if options.runs < 1:
        parser.error("--runs must be at least 1")
    if options.scaling and "scaling" not in options.rows:
        parser.error("--scaling needs the row scaling")
    return options


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    if options.worker:
        name, content = options.worker
        print(json.dumps(WORKERS[name](json.loads(content))))
        return
    console = Console(highlight=False)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    whole = Report(machine=machine(options.threads) | {"runs": options.runs})
    scale = Report(machine=whole.machine)
    for row in options.rows:
        with console.status(f"measuring: {row}") if console.is_terminal else nullcontext():
            torch.set_num_threads(1 if row in ONE_THREAD else options.threads)
            times = 1 if row in ONCE else options.runs
            runs = [ROWS[row](QUICK if options.quick else FULL) for _ in range(times)]
        found = runs[0] if times == 1 else median(runs)
        show(found, console)
        (scale if row == "scaling" else whole).add(found)
        # after each row: an interrupted run keeps what it has
        if options.json:
            both = Report([*whole.tables, *scale.tables], whole.goals, whole.machine)
            options.json.write_text(as_json(both), encoding="utf-8")
        if options.markdown:
            options.markdown.write_text(pages.benchmarks(whole), encoding="utf-8")
        if options.scaling and row == "scaling":
            options.scaling.write_text(pages.scaling(scale), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
