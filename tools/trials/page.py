"""The page about what was measured."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from trials.learner import Condition
from trials.plan import CHOOSING, REPORTED, Experiment
from trials.statistics import FEWEST, fifth, interval, paired, score

Results = Mapping[str, Mapping[str, Any]]


# A part of the page that is written by hand stands between these.
RESERVATIONS = (
    "<!-- reservations: by hand; delete what a new run makes untrue -->",
    "<!-- end -->",
)


def finished(
    experiment: Experiment, chosen: Mapping[str, Condition], results: Results
) -> Experiment:
    """The experiment with as many seeds as all its conditions have finished, in order.

    None, if its settings are not chosen yet.
    """
    if any(trial.key not in results for trial in experiment.chosen_among()):
        return replace(experiment, seeds=0)
    missing = [t.seed for t in experiment.reported(dict(chosen)) if t.key not in results]
    return replace(experiment, seeds=min(missing) - REPORTED) if missing else experiment


def found(
    experiment: Experiment, chosen: Mapping[str, Condition], results: Results
) -> dict[str, list[dict[str, Any]]]:
    """{condition: result of each seed}, of the conditions that are done."""
    runs: dict[str, list[dict[str, Any]]] = {}
    for trial in experiment.reported(dict(chosen)):
        if trial.key in results:
            runs.setdefault(trial.condition.name, []).append(dict(results[trial.key]))
    return {name: seeds for name, seeds in runs.items() if len(seeds) == experiment.seeds}


def table(experiment: Experiment, chosen: Mapping[str, Condition], results: Results) -> str:
    """One experiment as a Markdown table."""
    runs = found(experiment, chosen, results)
    if not runs:
        return "(not measured yet)\n"
    over_tasks = "tasks" in next(iter(runs.values()))[0]
    columns = ["first", "last"] if over_tasks else [experiment.score]
    if experiment.protocol == "damage":
        columns = ["0", "0.5", "0.7"]
    baselines = [name for name in experiment.baseline if name in runs]
    heads = ["condition", *(_head(column) for column in columns)]
    heads += ["silent units at the end"] if over_tasks else []
    heads += [f"against {name}" for name in baselines]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    scored = {
        name: [score(seed, experiment.score) for seed in seeds] for name, seeds in runs.items()
    }
    for name, seeds in runs.items():
        cells = [name.replace("|", "\\|")]
        cells += [f"{interval([score(s, c) for s in seeds]).mean:.3f}" for c in columns]
        if over_tasks:
            cells.append(f"{100 * interval([s['silent'] for s in seeds]).mean:.0f} %")
        for baseline in baselines:
            if name == baseline:
                cells.append("")
                continue
            difference = paired(scored[name], scored[baseline])
            cells.append(f"{difference}: {difference.verdict}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _head(column: str) -> str:
    known = {
        "first": "first fifth", "last": "last fifth", "accuracy": "test accuracy",
        "way": "way in learning rates", "0": "whole", "0.5": "50 % lost", "0.7": "70 % lost",
    }  # fmt: skip
    return known.get(column, column)


def settings(experiment: Experiment, chosen: Mapping[str, Condition]) -> str:
    """What each condition is, in words that can be repeated."""
    lines = []
    for family in experiment.families:
        condition = chosen.get(family.name, family.candidates[0])
        among = len(family.candidates)
        lines.append(
            f"- {family.name}: `{condition.described()}`"
            + (f", the best of {among}" if among > 1 else "")
        )
    return "\n".join(lines) + "\n"


def tables(
    plan: Sequence[Experiment], chosen: Mapping[str, Mapping[str, Condition]], results: Results
) -> str:
    """All tables, for the terminal."""
    done = [finished(e, chosen[e.name], results) for e in plan]
    return "\n".join(f"{e.name}\n{table(e, chosen[e.name], results)}" for e in done)


TITLES = {
    "permuted": "Loss of plasticity: permuted pixels",
    "permuted-others": "Permuted pixels: the other rules",
    "labels": "Loss of plasticity: random labels",
    "dale": "Dale's principle in a deep network",
    "newborn-own-age": "New synapses under Adam, as biofx trains them",
    "newborn-old-age": "New synapses under Adam, without their own age",
    "damage": "Damage",
    "static100": "One task, 100 images",
    "static1000": "One task, 1000 images",
    "paper-FCNet": "The paper's ablation: FCNet",
    "paper-ResNet": "The paper's ablation: a residual network",
}

ABOUT = {
    "permuted": (
        "Each task permutes the pixels anew. Each batch of 16 is classified before it is learned; "
        "a task's accuracy is the mean over its batches (digits are seen twice per task, 225 "
        "steps). MLP with two hidden layers of 100 ReLU units and PyTorch's own initialisation, "
        "{tasks} tasks. No interval of a rule divides a task, so that none knows its borders "
        "({seeds} seeds)."
    ),
    "permuted-others": (
        "The same trial, with the same controls, for rules that are not made for it. Only their "
        "learning rate was chosen: settings are the defaults, and for rejuvenation 1 % every 500 "
        "steps ({seeds} seeds)."
    ),
    "labels": (
        "The same {count} images get new random labels in each of {tasks} tasks and are learned "
        "for {epochs} epochs; accuracy during a task's last epoch. Same network, batch 16; no "
        "interval of a rule divides a task ({seeds} seeds)."
    ),
    "dale": (
        "A ReLU MLP of {layers} layers and width 128 with He's initialisation, 300 steps of batch "
        "32 under Adam; accuracy on images that were not trained on. A mirrored network begins as "
        "one of half the width without the principle, which is therefore the control "
        "({seeds} seeds)."
    ),
    "newborn-own-age": (
        "Half of a layer's synapses are replaced at step 3000, and have a constant gradient from "
        "then on. How far they have gone after 60 steps, in learning rates: a weight whose "
        "training begins then goes 60 ({seeds} seeds)."
    ),
    "newborn-old-age": (
        "The same with the correction switched off: moments of 0, but the parameter's old step "
        "({seeds} seeds)."
    ),
    "damage": (
        "Trained until {reach:.0%} of the training images are right, then a share of all synapses "
        "is set to 0 at random. Differences are at 50 % loss. The control has as many synapses as "
        "the network with Γ = 4 ({seeds} seeds)."
    ),
    "static": (
        "{count} images to train on, {steps} steps of SGD, accuracy on the others. Group splitting "
        "sums Γ outputs, and so doubles the step: one control has twice the learning rate, another "
        "the best one ({seeds} seeds)."
    ),
    "paper": (
        "Fuzzy rates (ν = .09) × rejuvenation (each batch, d = 14, after the backward pass and "
        "before the step) × splitting (Γ = 2), SGD, batch 100, {epochs} epochs, accuracy on images "
        "that were not trained on ({seeds} seeds). This is the paper's protocol at the size of the "
        "data; its own images and networks are larger. All conditions have one learning rate but "
        "for two controls, with twice that rate and with the best one."
    ),
}


def write(
    path: Path,
    plan: Sequence[Experiment],
    chosen: Mapping[str, Mapping[str, Condition]],
    results: Results,
    *,
    data: str,
    command: str,
    quick: bool,
) -> None:
    """Write the page, and its figures beside it."""
    from trials import figures

    images = path.parent / "images"
    done = [finished(e, chosen[e.name], results) for e in plan]
    parts = [_head_of_page(data, command, done, quick=quick)]
    if kept := _reservations(path):
        parts.append(kept)
    for planned, experiment in zip(plan, done, strict=True):
        if not experiment.seeds:
            continue
        runs = found(experiment, chosen[experiment.name], results)
        about = ABOUT.get(experiment.name) or ABOUT[experiment.protocol]
        text = about.format(**experiment.settings, seeds=experiment.seeds)
        if experiment.seeds < planned.seeds:
            text += f" Planned were {planned.seeds} seeds; the clock stopped the run."
        parts.append(f"## {TITLES.get(experiment.name, experiment.name)}\n\n{text}\n")
        if runs and "tasks" in next(iter(runs.values()))[0]:
            shown = {name: [seed["tasks"] for seed in seeds] for name, seeds in runs.items()}
            file = images / f"evidence-{experiment.name}.svg"
            figures.over_tasks(shown, file, ylabel="accuracy", controls=experiment.baseline)
            parts.append(f"![Accuracy over tasks](images/{file.name})\n")
        elif runs and experiment.protocol not in ("born",):
            values = {n: [score(s, experiment.score) for s in seeds] for n, seeds in runs.items()}
            file = images / f"evidence-{experiment.name}.svg"
            figures.dots(values, file, xlabel=_head(experiment.score))
            parts.append(f"![One dot per seed](images/{file.name})\n")
        parts.append(table(experiment, chosen[experiment.name], results))
        parts.append(settings(experiment, chosen[experiment.name]))
        again = f"{command} --only {experiment.name}"
        if experiment.seeds < planned.seeds:
            again += f" --seeds {experiment.seeds}"
        parts.append(f"Repeat: `{again}`\n")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(parts), encoding="utf-8")


def _reservations(page: Path) -> str:
    """What a person wrote about the page's numbers; a new run keeps it."""
    if not page.exists():
        return ""
    text = page.read_text(encoding="utf-8")
    start, end = text.find(RESERVATIONS[0]), text.find(RESERVATIONS[1])
    return f"{text[start:end]}{RESERVATIONS[1]}\n" if 0 <= start < end else ""


def _head_of_page(data: str, command: str, plan: Sequence[Experiment], *, quick: bool) -> str:
    few = [e.name for e in plan if 0 < e.seeds < FEWEST]
    none = [e.name for e in plan if not e.seeds]
    warning = (
        f"\n**Too few seeds for intervals** in {', '.join(few)}: it takes {FEWEST}.\n"
        if few
        else ""
    )
    if none:
        warning += (
            f"\n**Planned and not measured**, for the clock stopped the run: {', '.join(none)}.\n"
        )
    warning += "\n**Short runs, to test the harness; no evidence.**\n" if quick else ""
    name = "scikit-learn's digits (1,797 images of 8 × 8)" if data == "digits" else "MNIST"
    return f"""# Evidence

What the rules do, measured on {name} by
`{command} --markdown docs/evidence.md`, which trains every model through biofx. Written by that
command, with torch {torch.__version__}.

Differences are paired by seed; ± is the half-width of a 95 % t-interval. "No effect found" means
that the interval holds 0, not that there is none. Settings were chosen on seeds {CHOOSING} and up,
by the same score. Reported are seeds {REPORTED} and up, which had no part in it.
Conditions with a single setting were not chosen among others. Many comparisons are made here: one
in twenty intervals misses by chance.
{warning}"""


__all__ = ["fifth", "tables", "write"]
