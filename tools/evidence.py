"""Measures what the rules of biofx do, with intervals, and writes the page about it.

    tools/evidence                        everything on scikit-learn's digits; goes on if stopped
    tools/evidence --only permuted,dale   some of it; "paper" is all that begins with "paper-"
    tools/evidence --quick                a few short runs: does the harness work?
    tools/evidence --data mnist=DIR       on MNIST's idx files instead
    tools/evidence --markdown docs/evidence.md

Every model is transformed by biofx and trained with its rules. Settings are chosen on seeds that
are not reported. Results are kept as they come, in build/evidence; delete that folder to measure
anew. A run that was stopped by --minutes reports the seeds that all conditions of a table have
finished, in the order in which they were planned.
"""

import argparse
import os
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path

import commandline
from rich.console import Console
from trials import page
from trials.plan import Experiment, Trial, experiments
from trials.runner import Progress, Store, run, unique
from trials.statistics import score

ROOT = Path(__file__).resolve().parent.parent


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = commandline.parser("evidence", __doc__)
    parser.add_argument("--only", metavar="NAMES", help="experiments, separated by commas")
    parser.add_argument("--quick", action="store_true", help="a few short runs, under 3 minutes")
    parser.add_argument("--data", default="digits", metavar="SOURCE", help="digits or mnist=DIR")
    parser.add_argument("--seeds", type=int, metavar="N", help="seeds per condition")
    parser.add_argument("--minutes", type=float, metavar="N", help="begin no trial after so long")
    parser.add_argument("--workers", type=int, metavar="N", help="processes (one per core)")
    parser.add_argument("--results", type=Path, metavar="DIR", help="(build/evidence)")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the page here")
    options = parser.parse_args(arguments)
    if options.workers is not None and options.workers < 1:
        parser.error("--workers must be at least 1")
    if options.seeds is not None and options.seeds < 1:
        parser.error("--seeds must be at least 1")
    options.experiments = experiments(quick=options.quick, mnist=options.data != "digits")
    if options.only:
        known = [experiment.name for experiment in options.experiments]
        names = []
        for name in options.only.split(","):
            meant = [n for n in known if n == name] or [
                n for n in known if n.startswith(f"{name}-")
            ]
            if not meant:
                parser.error(f"no experiment {name!r}; there are {', '.join(known)}")
            names += meant
        options.experiments = [e for e in options.experiments if e.name in names]
    if options.seeds is not None:
        options.experiments = [replace(e, seeds=options.seeds) for e in options.experiments]
    return options


def choose(experiment: Experiment, store: Store) -> dict:
    """{family: its best candidate} by the mean score over the seeds that choose."""
    chosen = {}
    means: dict = {}
    for trial in experiment.chosen_among():
        if trial.key in store.results:
            value = score(store.results[trial.key], experiment.score)
            means.setdefault(trial.condition.name, {}).setdefault(
                trial.condition.described(), (trial.condition, [])
            )[1].append(value)
    for name, candidates in means.items():
        best = max(candidates.values(), key=lambda pair: sum(pair[1]) / len(pair[1]))
        chosen[name] = best[0]
    return chosen


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    console = Console(highlight=False, stderr=True)
    warnings.filterwarnings("ignore", message=".*silent.*", category=UserWarning)
    effort = "quick" if options.quick else "full"
    source = options.data.partition("=")[0]
    folder = options.results or ROOT / "build" / "evidence"
    store = Store(folder / f"{source}-{effort}.jsonl")
    workers = options.workers or len(os.sched_getaffinity(0))
    choosing: list[Trial] = unique(t for e in options.experiments for t in e.chosen_among())
    later = unique(t for e in options.experiments for t in e.reported({}))
    progress = Progress([*choosing, *later], console.print, workers)
    begun = time.monotonic()
    common = {"data": options.data, "workers": workers, "progress": progress}
    if options.minutes is not None:
        common["until"] = begun + 60 * options.minutes
    run(choosing, store, **common)
    chosen = {experiment.name: choose(experiment, store) for experiment in options.experiments}
    reported = unique(t for e in options.experiments for t in e.reported(chosen[e.name]))
    run(reported, store, **common)
    console.print(f"done in {(time.monotonic() - begun) / 60:.1f} min; results in {store.path}")
    command = "tools/evidence" + (" --quick" if options.quick else "")
    command += "" if options.seeds is None else f" --seeds {options.seeds}"
    command += "" if source == "digits" else " --data mnist=DIR"
    text = page.tables(options.experiments, chosen, store.results)
    if options.markdown:
        page.write(
            options.markdown, options.experiments, chosen, store.results,
            data=source, command=command, quick=options.quick,
        )  # fmt: skip
        console.print(f"wrote {options.markdown}")
    else:
        print(text)


if __name__ == "__main__":
    sys.exit(main())
