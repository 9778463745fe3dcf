"""Transforms whole libraries of models, and compares each model with its original.

    tools/zoo                             everything; minutes on a quiet machine
    tools/zoo --only 'Bert*'              the models with such names
    tools/zoo --only 'monai/*'            one library
    tools/zoo --models my.py              models of your own: a file that has a list MODELS of
                                          zoos.entry.Entry and a name LIBRARY

Every model is small and has random weights; nothing is downloaded. The exit status is 1 if any
model could not be transformed, or does not compute what its original computes.
"""

import argparse
import importlib
import importlib.util
import logging
import os
import sys
from contextlib import nullcontext
from fnmatch import fnmatch
from pathlib import Path
from types import ModuleType

import commandline
import torch
from benchmarks.report import machine
from rich.console import Console
from zoos import report
from zoos.entry import Entry
from zoos.measure import Result, measure, warm_up

LIBRARIES = ("transformers", "diffusers", "x_transformers", "torch_geometric", "monai", "rtdl")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = commandline.parser("zoo", __doc__)
    parser.add_argument("--only", metavar="GLOB", default="*", help="NAME or LIBRARY/NAME")
    parser.add_argument("--models", type=Path, metavar="FILE", help="a Python file of your own")
    parser.add_argument("--threads", type=int, default=1, help="of PyTorch (1)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results here")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write docs/coverage.md")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    console = Console(highlight=False)
    page = report.Page(machine=machine(options.threads))
    chosen = {library: entries(library, options.only) for library in libraries(options.models)}
    if not any(chosen.values()):
        console.print(f"no model is called {options.only!r}", style="red")
        return 2
    quiet()
    warm_up()
    for library, models in chosen.items():
        if not models:
            continue
        results: list[Result] = []
        page.add(library, results)
        with console.status("") if console.is_terminal else nullcontext() as status:
            for entry in models:
                if status is not None:
                    status.update(f"{library.LIBRARY}: {entry.name}")
                results.append(measure(library.LIBRARY, entry, debug=options.debug))
        report.show(library, results, console)
        # after each library: an interrupted run keeps what it has
        if options.json:
            options.json.write_text(page.as_json(), encoding="utf-8")
        if options.markdown:
            options.markdown.write_text(page.as_markdown(), encoding="utf-8")
    report.show_summary(page, console)
    return int(any(result.failures for result in page.results))


def libraries(file: Path | None) -> list[ModuleType]:
    if file is None:
        return [importlib.import_module(f"zoos.{name}") for name in LIBRARIES]
    spec = importlib.util.spec_from_file_location(file.stem, file)
    if spec is None or spec.loader is None:
        raise SystemExit(f"tools/zoo: {file} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[file.stem] = module
    spec.loader.exec_module(module)
    return [module]


def entries(library: ModuleType, only: str) -> list[Entry]:
    return [
        entry
        for entry in library.MODELS
        if fnmatch(entry.name, only) or fnmatch(f"{library.LIBRARY}/{entry.name}", only)
    ]


def quiet() -> None:
    """What libraries say about small configurations is of no interest here."""
    logging.disable(logging.WARNING)


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing is downloaded, not even asked for
    sys.exit(main())
