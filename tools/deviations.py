"""Runs biofx beside the package bio_transformations and writes down where they differ.

tools/bench deviations                            all of them
tools/bench deviations --only adam,gamma          some of them
tools/bench deviations --markdown docs/deviations.md
"""

import importlib.metadata
import logging
import textwrap
from pathlib import Path

import commandline
import torch
from deviating import layers, limits, network, objects
from deviating.entry import Entry, Measured
from rich.console import Console

ENTRIES: list[Entry] = [*layers.ENTRIES, *network.ENTRIES, *objects.ENTRIES, *limits.ENTRIES]

PAGE = """\
# Deviations

Where biofx does something else than the package `bio_transformations` ({version}), whose API it
keeps, and the measurement behind each. [The list by name](coming-from-bio-transformations.md) is
shorter. This page is written by `tools/bench deviations --markdown docs/deviations.md`, which runs
both packages side by side; every number is of that run, with torch {torch}.

"""


def measure(entry: Entry) -> Measured:
    torch.manual_seed(0)
    return entry.run()


def section(entry: Entry, found: Measured) -> str:
    package, ours = (text.replace("|", r"\|") for text in (found.package, found.biofx))
    return (
        f"## {entry.title}\n\n{textwrap.fill(entry.what, 98)}\n\n| | measured |\n|---|---|\n"
        f"| package | {package} |\n| biofx | {ours} |\n\n"
        f"Repeat: `tools/bench deviations --only {entry.name}`\n"
    )


def main() -> None:
    parser = commandline.parser("bench deviations", __doc__)
    names = [entry.name for entry in ENTRIES]
    parser.add_argument("--only", default=",".join(names), help=f"some of {','.join(names)}")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write docs/deviations.md")
    options = parser.parse_args()
    chosen = options.only.split(",")
    unknown = [name for name in chosen if name not in names]
    if unknown:
        parser.error(f"no entry {unknown[0]!r}; there are {', '.join(names)}")
    torch.set_num_threads(1)  # the networks are small
    logging.disable()  # the package logs through the root logger
    console = Console(highlight=False)
    sections = []
    for entry in ENTRIES:
        if entry.name not in chosen:
            continue
        found = measure(entry)
        sections.append(section(entry, found))
        console.print(f"[bold]{entry.title}[/] [dim]({entry.name})[/]")
        console.print(f"  package  {found.package}\n  biofx    {found.biofx}\n", markup=False)
    if options.markdown:
        version = importlib.metadata.version("pytorch_bio_transformations")
        page = PAGE.format(version=version, torch=torch.__version__)
        options.markdown.write_text(page + "\n".join(sections), encoding="utf-8")


if __name__ == "__main__":
    main()
