"""Lets training fail in many ways, and says what was lost.

    tools/faults                        all of them; a minute
    tools/faults --only kill,interrupt  some of them
    tools/faults --markdown docs/faults.md

The exit status is 1 if something was lost and nothing says so. It takes a system with fork and
resource limits (Linux, macOS).
"""

import argparse
import sys
import textwrap
from pathlib import Path

import commandline
import torch
from benchmarks.report import markdown_table
from faulting.faults import FAULTS, Outcome, run
from rich.console import Console

PAGE = """\
# Faults

What happens to plasticity when training fails. Written by `tools/faults --markdown docs/faults.md`,
which lets each of these happen and compares what follows with a run to which nothing happened, to
the bit; torch {torch}.

{table}
"""


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = commandline.parser("faults", __doc__)
    parser.add_argument("--only", default=",".join(FAULTS), help=f"some of {','.join(FAULTS)}")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write docs/faults.md")
    options = parser.parse_args(arguments)
    options.only = options.only.split(",")
    unknown = [name for name in options.only if name not in FAULTS]
    if unknown:
        parser.error(f"no fault {unknown[0]!r}; there are {', '.join(FAULTS)}")
    return options


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    torch.set_num_threads(1)  # a child process has one
    console = Console(highlight=False, soft_wrap=True)
    found: dict[str, Outcome] = {}
    for name in options.only:
        found[name] = outcome = run(name)
        style = "" if outcome.sound else "red"
        text = f"{what(name)}\n    {outcome.happened}\n    lost: {outcome.lost}"
        console.print(f"{name}: {text}", style=style, markup=False)
    if options.markdown:
        rows = [[what(n), o.happened, o.lost, "yes" if o.sound else "NO"] for n, o in found.items()]
        table = markdown_table(["fault", "what happened", "lost", "nothing silently"], rows)
        options.markdown.write_text(
            PAGE.format(torch=torch.__version__, table=table.rstrip()), encoding="utf-8"
        )
    return int(not all(outcome.sound for outcome in found.values()))


def what(name: str) -> str:
    return " ".join(textwrap.dedent(FAULTS[name].__doc__ or "").split())


if __name__ == "__main__":
    sys.exit(main())
