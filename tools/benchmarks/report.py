"""Tables and goals: what a benchmark returns, and how it is shown."""

import json
import os
import platform
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table as RichTable


@dataclass
class Table:
    """Measurements as they are shown: a heading, columns and rows of text."""

    title: str
    columns: list[str]
    rows: list[list[str]] = field(default_factory=list)
    note: str = ""


@dataclass
class Goal:
    """One promise of speed or size; `value` is in the unit of `bound`.

    Of several runs, `value` is the median of `values`, and the promise is kept if each keeps it.
    """

    number: int
    what: str
    value: float | None
    bound: float
    unit: str = "×"
    at_least: bool = False
    values: tuple[float, ...] = ()

    @property
    def met(self) -> bool | None:
        if self.value is None:
            return None
        values = self.values or (self.value,)
        return all(v >= self.bound if self.at_least else v <= self.bound for v in values)

    @property
    def cells(self) -> list[str]:
        side = "≥" if self.at_least else "≤"
        measured = "not measured" if self.value is None else f"{figure(self.value)} {self.unit}"
        if self.values:
            low, high = min(self.values), max(self.values)
            measured = f"{measured.strip()} ({figure(low)} to {figure(high)})"
        verdict = {True: "met", False: "not met", None: "–"}[self.met]
        return [
            str(self.number),
            self.what,
            measured.strip(),
            f"{side} {self.bound:g} {self.unit}".strip(),
            verdict,
        ]


@dataclass
class Report:
    tables: list[Table] = field(default_factory=list)
    goals: list[Goal] = field(default_factory=list)
    machine: dict[str, Any] = field(default_factory=dict)

    def add(self, other: "Report") -> None:
        self.tables += other.tables
        self.goals += other.goals


def median(reports: Sequence[Report]) -> Report:
    """Several runs of the same rows: the tables of the last, and all values of each goal."""
    goals = []
    for same in zip(*(report.goals for report in reports), strict=True):
        values = [goal.value for goal in same if goal.value is not None]
        whole = len(values) == len(reports)
        goals.append(
            replace(same[-1], value=statistics.median(values), values=tuple(values))
            if whole
            else replace(same[-1], value=None)
        )
    return Report(reports[-1].tables, goals, reports[-1].machine)


GOAL_COLUMNS = ["goal", "what", "measured", "bound", "verdict"]


def figure(value: float) -> str:
    """Two to four significant digits, without an exponent where that is readable."""
    if value == 0:
        return "0"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    if abs(value) >= 10:
        return f"{value:.1f}"
    return f"{value:.2f}" if abs(value) >= 0.1 else f"{value:.2g}"


def milliseconds(seconds: float | None) -> str:
    return "–" if seconds is None else figure(seconds * 1e3)


def times(ratio: float | None) -> str:
    return "–" if ratio is None else f"{figure(ratio)} ×"


def machine(threads: int) -> dict[str, Any]:
    """What the numbers depend on; no names of machines or people."""
    return {
        "processor": _processor(),
        "processors": os.cpu_count(),
        "threads": threads,
        "load": f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown",
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def _processor() -> str:
    lines: Iterable[str] = ()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    named = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    name = next(named, platform.processor() or "unknown")
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}"


def show(report: Report, console: Console) -> None:
    for table in report.tables:
        _print(console, table.title, table.columns, table.rows)
        if table.note:
            console.print(f"[dim]{table.note}[/]\n")
    colours = {"met": "green", "not met": "red", "–": "dim"}
    rows = [goal.cells for goal in report.goals]
    rows = [[*row[:-1], f"[{colours[row[-1]]}]{row[-1]}[/]"] for row in rows]
    if rows:
        _print(console, "Goals", GOAL_COLUMNS, rows)


def _print(console: Console, title: str, columns: list[str], rows: list[list[str]]) -> None:
    table = RichTable(title=title, title_justify="left", title_style="bold", header_style="dim")
    for place, column in enumerate(columns):
        wide = place == 0 or column in ("what", "verdict")
        table.add_column(column, justify="left" if wide else "right")
    for row in rows:
        table.add_row(*row)
    console.print(table)


def as_json(report: Report) -> str:
    content = {
        "machine": report.machine,
        "goals": [{**asdict(goal), "met": goal.met} for goal in report.goals],
        "tables": [asdict(table) for table in report.tables],
    }
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def markdown_table(columns: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    cells = (" | ".join(cell.replace("|", "\\|") for cell in row) for row in rows)
    return "\n".join([*lines, *(f"| {row} |" for row in cells)]) + "\n"


def markdown(report: Report) -> str:
    """The tables as a page of Markdown, without its heading."""
    parts = []
    if report.goals:
        parts += ["## Goals\n", markdown_table(GOAL_COLUMNS, [g.cells for g in report.goals])]
    for table in report.tables:
        parts += [f"## {table.title}\n", markdown_table(table.columns, table.rows)]
        if table.note:
            parts.append(f"{table.note}\n")
    return "\n".join(parts)
