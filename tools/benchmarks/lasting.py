"""Goal 6: many layers, the first step of a process, steps by the hundred thousand, metrics."""

import gc
import os
import statistics
from pathlib import Path
from typing import Any

import torch
from torch import nn

import biofx
from benchmarks.report import Goal, Report, Table, figure, milliseconds, times
from benchmarks.small import MODELS, SETTINGS, Training
from benchmarks.timing import Effort, interleaved, kernels_compiled, worker
from biofx.plasticity.kernels.compiled import can_compile

ROUNDS, STEPS = 20, 10_000


def lasting(effort: Effort) -> Report:
    report = Report()
    for part in (layers, first, metrics):
        report.add(part(effort))
    return report


def layers(effort: Effort) -> Report:
    """What the rules add, for 100 layers and for one with as many synapses."""
    table = Table("100 layers of 32×32 and one of 320×320 (milliseconds that rules add to SGD)",
                  ["rules", "kernels", "100 layers", "one layer", "ratio"])  # fmt: skip
    report = Report([table])
    kernels = (True, False) if can_compile(torch.device("cpu")) else (False,)
    for name, rules in SETTINGS.items():
        calls: dict[str, Any] = {}
        for shape, model in {
            "many": nn.Sequential(*(nn.Linear(32, 32, bias=False) for _ in range(100))),
            "one": nn.Linear(320, 320, bias=False),
        }.items():
            for kind in ("plain", *kernels):
                bio = biofx.transform(model)
                for parameter in bio.parameters():
                    parameter.grad = torch.randn_like(parameter) * 1e-3
                optimizer = torch.optim.SGD(bio.parameters(), lr=1e-4)
                if kind != "plain":
                    biofx.GradScheduler(bio, optimizer, rules=rules(), compile=kind)
                calls[f"{shape} {kind}"] = optimizer.step
        found = interleaved(calls, effort, warm=20)
        for kind in kernels:
            many, one = (found[f"{s} {kind}"] - found[f"{s} plain"] for s in ("many", "one"))
            how = "compiled" if kind else "eager"
            table.rows.append([name, how, milliseconds(many), milliseconds(one), times(many / one)])
            report.goals.append(Goal(6, f"100 layers / one: {name}, {how}", many / one, 1.2))
    return report


def first(effort: Effort) -> Report:
    """A process from its start to the end of its first step."""
    table = Table("Seconds from the start of a process to the end of its first step, MLP "
                  "784-100-100-10", ["process", "imports", "all"])  # fmt: skip
    found = {}
    for name, arguments in {
        "plain torch": {"scheduler": False},
        'biofx, compile="auto"': {"scheduler": True},
    }.items():
        runs = [worker("first_minute", arguments) for _ in range(1 if effort.quick else 5)]
        median = {key: statistics.median(run[key] for run in runs) for key in ("imports", "all")}
        found[name] = median
        table.rows.append([name, figure(median["imports"]), figure(median["all"])])
    imports, extra = (
        found['biofx, compile="auto"'][key] - found["plain torch"][key]
        for key in ("imports", "all")
    )
    return Report([table], [
        Goal(6, "imports, over torch", imports, 0.25, "s"),
        Goal(6, 'first step, compile="auto", over plain torch', extra, 1.0, "s"),
    ])  # fmt: skip


def first_minute(arguments: dict[str, Any]) -> dict[str, Any]:
    """Worker: seconds of a first step. `tools/bench.py` itself has imported torch and biofx."""
    import subprocess
    import sys

    lines = [
        "import time; start = time.perf_counter()",
        "import torch; from torch import nn",
        "import biofx; biofx.transform; biofx.GradScheduler; biofx.diff"
        if arguments["scheduler"]
        else "",
        "imported = time.perf_counter()",
        "model = nn.Sequential(nn.Linear(784, 100), nn.ReLU(), nn.Linear(100, 100), nn.ReLU(),",
        "                      nn.Linear(100, 10))",
        "model = biofx.transform(model)" if arguments["scheduler"] else "",
        "optimizer = torch.optim.SGD(model.parameters(), lr=0.1)",
        "biofx.GradScheduler(model, optimizer)" if arguments["scheduler"] else "",
        "model(torch.randn(16, 784)).square().mean().backward(); optimizer.step()",
        "print(imported - start, time.perf_counter() - start)",
    ]
    run = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=True
    )
    imports, whole = map(float, run.stdout.split())
    return {"imports": imports, "all": whole}


def growth(effort: Effort) -> Report:
    """Memory, time of a step and kernels over 200,000 steps of a small network."""
    rounds, steps = (2, 50) if effort.quick else (ROUNDS, STEPS)
    training = Training(MODELS[0], "SGD", SETTINGS["as people set it"](), "auto")
    table = Table(f"Steps by the {steps:,}, {MODELS[0].name}, as people set it",
                  ["steps", "ms a step", "resident MB", "Python objects", "kernels"])  # fmt: skip
    rows = []
    for _ in range(rounds):
        taken = [training() for _ in range(steps)]
        gc.collect()
        rows.append(
            (statistics.median(taken), resident(), len(gc.get_objects()), kernels_compiled())
        )
        table.rows.append([f"{training.steps:,}", milliseconds(rows[-1][0]),
                           *(figure(number) for number in rows[-1][1:])])  # fmt: skip
    # From when the kernels have been compiled.
    later = rows[len(rows) // 2 :]
    return Report([table], [
        Goal(6, "200,000 steps: memory, at the end / halfway", later[-1][1] / later[0][1], 1.02),
        Goal(6, "200,000 steps: objects, at the end / halfway", later[-1][2] / later[0][2], 1.02),
        Goal(6, "200,000 steps: kernels compiled in the second half",
             later[-1][3] - later[0][3], 0, ""),
    ])  # fmt: skip


def resident() -> float:
    """Megabytes of this process in memory; 0 where the system does not tell so."""
    try:
        with Path("/proc/self/statm").open() as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
    except OSError:
        return 0.0


def metrics(effort: Effort) -> Report:
    """A call of `metrics()` by a plain step."""
    table = Table("`metrics()` (milliseconds)", ["model", "metrics()", "plain step", "ratio"])
    report = Report([table])
    for case in MODELS[:1] if effort.quick else MODELS[:3]:
        training = Training(case, "SGD", SETTINGS["as people set it"](), False)
        training()
        calls = {"metrics": training.scheduler.metrics, "plain": Training(case, "SGD")}
        found = interleaved(calls, effort)
        ratio = found["metrics"] / found["plain"]
        table.rows.append([case.name, *map(milliseconds, found.values()), times(ratio)])
        report.goals.append(Goal(6, f"{case.name}: metrics() / plain step", ratio, 0.3))
    return report
