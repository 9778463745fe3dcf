"""Figures of the page, as SVG, with colours that can be read on white and on black."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from trials.statistics import fifth, interval

Runs = Mapping[str, Sequence[Sequence[float]]]  # {condition: accuracy per task of each seed}

GREY = "#7c8594"
plt.rcParams.update(
    {
        "svg.hashsalt": "biofx",  # the same file for the same numbers
        "svg.fonttype": "none",
        "font.family": "sans-serif",
        "font.size": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.edgecolor": GREY,
        "axes.labelcolor": GREY,
        "savefig.transparent": True,
        "text.color": GREY,
        "xtick.color": GREY,
        "ytick.color": GREY,
    }
)
COLOURS = (
    GREY, "#a371c7", "#2f86c5", "#2e9e4f", "#d64550", "#d2791e", "#a5765a", "#1aa3b5",
    "#d96bb0", "#9a9a2b",
)  # fmt: skip
FAR = 0.5  # conditions below this share of the best are left to the table, unless they are controls


def over_tasks(runs: Runs, path: Path, *, ylabel: str, controls: Collection[str] = ()) -> None:
    """Accuracy over tasks with bands of 95 % t-intervals, and one dot per seed for the last fifth.

    Conditions that end far below the best one are named and not drawn: they would flatten the rest.
    Controls are always drawn.

    Args:
        runs: what to show, in order.
        path: the SVG file.
        ylabel: what the accuracy is.
        controls: names of the conditions that others are compared with.
    """
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(9, 3.8), width_ratios=(3, 2), constrained_layout=True
    )
    last = {n: interval([fifth(t, last=True) for t in seeds]).mean for n, seeds in runs.items()}
    far_from = FAR * max(last.values())
    near = {n: seeds for n, seeds in runs.items() if n in controls or last[n] >= far_from}
    for place, (name, seeds) in enumerate(near.items()):
        colour = COLOURS[place % len(COLOURS)]
        steps = range(1, len(seeds[0]) + 1)
        bands = [interval(values) for values in zip(*seeds, strict=True)]
        means = [band.mean for band in bands]
        left.plot(steps, means, color=colour, lw=1.6, label=name)
        if bands[0].half is not None:
            low = [band.mean - (band.half or 0) for band in bands]
            high = [band.mean + (band.half or 0) for band in bands]
            left.fill_between(steps, low, high, color=colour, alpha=0.1, lw=0)
        ends = [fifth(tasks, last=True) for tasks in seeds]
        spread = [place + 0.3 * ((i + 0.5) / len(ends) - 0.5) for i in range(len(ends))]
        right.plot(ends, spread, "o", ms=4, color=colour, alpha=0.8, mew=0)
    left.set_xlabel("task")
    left.set_ylabel(ylabel)
    left.xaxis.set_major_locator(MaxNLocator(integer=True))
    _rows(right, list(near))
    right.set_xlabel("last fifth, one dot per seed")
    far = [f"{name} ends at {last[name]:.2f}" for name in runs if name not in near]
    if far:
        left.set_title(f"not shown: {', '.join(far)}", fontsize=9, loc="left")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def _rows(axes: Axes, names: Sequence[str]) -> None:
    """One row per name, from the top, in the colour of its dots: this is the legend too."""
    axes.set_yticks(range(len(names)), names)
    for place, label in enumerate(axes.get_yticklabels()):
        label.set_color(COLOURS[place % len(COLOURS)])
    axes.invert_yaxis()


def dots(values: Mapping[str, Sequence[float]], path: Path, *, xlabel: str) -> None:
    """One dot per seed, one row per condition."""
    figure, axes = plt.subplots(figsize=(7, 0.6 + 0.42 * len(values)), constrained_layout=True)
    for place, numbers in enumerate(values.values()):
        spread = [place + 0.3 * ((i + 0.5) / len(numbers) - 0.5) for i in range(len(numbers))]
        colour = COLOURS[place % len(COLOURS)]
        axes.plot(numbers, spread, "o", ms=4, color=colour, alpha=0.8, mew=0)
    _rows(axes, list(values))
    axes.set_xlabel(xlabel)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
