"""How the results of tools/zoo are shown: tables, a page, JSON."""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from statistics import mean
from types import ModuleType
from typing import Any

from benchmarks.pages import described
from benchmarks.report import markdown_table
from rich.console import Console
from rich.table import Table

from zoos.measure import Result

PAGE = """\
# Coverage

What biofx does with the models of whole libraries, one by one.

{summary}
- **transformed**: `biofx.transform` takes the model;
- **equal**: it computes the same, bit for bit, in every mode in which the original itself repeats
  its result;
- **graph**: models whose graph, captured with example inputs, computes bit for bit what the forward
  computes; **ops**: operations of a run of the graph, as a share of those of a run of the model
  (mean);
- **wired**: the share of the weight layers of which it is known what feeds them and what they feed,
  without example inputs and with them (means);
- **split**: models of which Γ = 2 splits some layer;
- **s**: the longest that `biofx.transform` took, in seconds, without example inputs and with them.

Not here: timm, vit-pytorch and segmentation-models-pytorch, which need torchvision.

## How

Written by `tools/zoo --markdown docs/coverage.md`, which installs the extra `zoo` at the versions
of `tools/constraints.txt`; `tools/zoo --help` says how to run a part of it, or models of your own.
Measured with {machine}.

Every model is built small from a configuration, with random weights. It is transformed with example
inputs and without, and `biofx.verify` compares both results with the original: outputs, inputs as
the run left them, gradients of parameters and inputs, buffers, and the state of the random
generators afterwards, in training and in evaluation mode. The diff is drawn. With Γ = 2 the model
runs forward and backward in mode `"group"`, and in mode `"expand"` it is verified to compute the
same to rounding.

## Why modules cannot be traced without example inputs

In how many of the {count} models: the {shown} most frequent of {reasons} reasons.

{why}
## Model by model

- **nodes**: of the graph that was captured with example inputs;
- **Γ = 2**: how many layers are split, of those with weights;
- **s**: without example inputs, and with them. Other work ran on the machine: take a time for its
  order of magnitude.

{tables}"""
SUMMARY = [
    "library",
    "version",
    "models",
    "transformed",
    "equal",
    "graph",
    "ops",
    "wired",
    "split",
    "s",
]
MODELS = ["model", "nodes", "graph", "ops", "wired", "train", "eval", "Γ = 2", "s"]
REASONS = 20


@dataclass
class Page:
    machine: dict[str, Any] = field(default_factory=dict)
    parts: list[tuple[ModuleType, list[Result]]] = field(default_factory=list)

    def add(self, library: ModuleType, results: list[Result]) -> None:
        self.parts.append((library, results))

    @property
    def results(self) -> list[Result]:
        return [result for _, results in self.parts for result in results]

    @property
    def summary(self) -> list[list[str]]:
        rows = [
            _summary_row(library.LIBRARY, _version(library.LIBRARY), results)
            for library, results in self.parts
        ]
        return [*rows, _summary_row("all", "", self.results)] if len(rows) > 1 else rows

    def as_json(self) -> str:
        content = {
            "machine": self.machine,
            "versions": {library.LIBRARY: _version(library.LIBRARY) for library, _ in self.parts},
            "models": [asdict(result) for result in self.results],
        }
        return json.dumps(content, indent=1, ensure_ascii=False) + "\n"

    def as_markdown(self) -> str:
        reasons = Counter(_general(r) for result in self.results for r in set(result.reasons))
        why = [[reason, str(count)] for reason, count in reasons.most_common(REASONS)]
        tables = []
        for library, results in self.parts:
            rows = [[_marked(cell) for cell in model_row(result)] for result in results]
            tables += [
                f"### {library.LIBRARY} {_version(library.LIBRARY)}\n",
                markdown_table(MODELS, rows),
                *(f"- {name}: {text}" for name, text in remarks(results)),
            ]
            tables.append("")
        return PAGE.format(
            machine=described(self.machine),
            summary=markdown_table(SUMMARY, self.summary),
            count=len(self.results),
            shown=len(why),
            reasons=len(reasons),
            why=markdown_table(["reason", "models"], why),
            tables="\n".join(tables).rstrip() + "\n",
        )


def show(library: ModuleType, results: list[Result], console: Console) -> None:
    _print(
        f"{library.LIBRARY} {_version(library.LIBRARY)}", MODELS, map(model_row, results), console
    )
    for name, text in remarks(results):
        console.print(f"{name}: {text}", markup=False)


def show_summary(page: Page, console: Console) -> None:
    _print("Summary", SUMMARY, page.summary, console)


def model_row(result: Result) -> list[str]:
    return [
        result.name,
        "–" if result.nodes is None else str(result.nodes),
        "equal" if result.graph.startswith("equal") else "–",
        _percent(result.operations),
        f"{_percent(result.wired_without)}, {_percent(result.wired)}",
        _verdict(result, "train", result.train),
        _verdict(result, "eval", result.evaluation),
        "–" if result.split is None else f"{result.split}/{result.layers}",
        f"{_seconds(result.seconds_without)}, {_seconds(result.seconds)}",
    ]


def remarks(results: list[Result]) -> Iterable[tuple[str, str]]:
    """What the cells of a table cannot say, by model."""
    for result in results:
        unequal = not result.graph.startswith("equal") and result.graph
        graph = [f"graph {result.graph}"] if unequal else []
        texts = [
            result.note,
            *graph,
            *result.notes,
            *(f"FAILED: {text}" for text in result.failures),
        ]
        for text in texts:
            if text:
                yield result.name, text


def _summary_row(name: str, number: str, results: list[Result]) -> list[str]:
    done = [result for result in results if result.seconds is not None]
    return [
        name,
        number,
        str(len(results)),
        str(len(done)),
        str(sum(result.equal for result in results)),
        str(sum(result.graph.startswith("equal") for result in results)),
        _percent(mean(result.operations or 0 for result in done) if done else None),
        f"{_percent(mean(result.wired_without or 0 for result in done) if done else None)}, "
        f"{_percent(mean(result.wired or 0 for result in done) if done else None)}",
        str(sum(bool(result.split) for result in done)),
        f"{_most(r.seconds_without for r in done)}, {_most(r.seconds for r in done)}",
    ]


def _verdict(result: Result, mode: str, equal: bool | None) -> str:
    if equal is None:
        return "–"
    if not equal:
        return "differs"
    forward_only = any(note.startswith(f"in {mode} mode gradients") for note in result.notes)
    return "equal, forward" if forward_only or not result.backward else "equal"


def _seconds(seconds: float | None) -> str:
    return "–" if seconds is None else f"{seconds:.2f}"


def _most(seconds: Iterable[float | None]) -> str:
    known = [value for value in seconds if value is not None]
    return f"≤ {max(known):.2f}" if known else "–"


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.0f} %"


def _general(reason: str) -> str:
    """A reason without the name that belongs to one model."""
    head, quote, _ = reason.partition("'")
    return f"{head.rstrip()} …" if quote else reason


def _marked(cell: str) -> str:
    return f"**{cell}**" if cell == "differs" else cell


def _version(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:
        return ""


def _print(title: str, columns: list[str], rows: Iterable[list[str]], console: Console) -> None:
    table = Table(title=title, title_justify="left", title_style="bold", header_style="dim")
    for place, column in enumerate(columns):
        left = place == 0 or column == "version"
        table.add_column(column, justify="left" if left else "right", overflow="fold")
    colours = {"equal": "green", "differs": "red"}
    for row in rows:
        table.add_row(*(f"[{colours[c]}]{c}[/]" if c in colours else c for c in row))
    console.print(table)
