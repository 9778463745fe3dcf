"""Goal 5: the time of `transform` and of `import biofx`."""

import copy
import statistics
import subprocess
import sys
from collections.abc import Callable

from torch import fx, nn

import biofx
from benchmarks.models import LARGE, mlp, resnet18, seed_available, vgg
from benchmarks.report import Goal, Report, Table, figure, milliseconds, times
from benchmarks.timing import Effort, allocations, interleaved, worker
from biofx.capture.islands import code_of

MODELS: dict[str, Callable[[], nn.Module]] = {
    "MLP 784-1000-10": lambda: mlp(784, 1000, 10),
    LARGE.name.split(",")[0]: LARGE.make,
    "ResNet-18": resnet18,
    "VGG-style with BatchNorm": vgg,
}
IMPORT = "import time, torch; t = time.perf_counter(); import biofx{}; print(time.perf_counter()-t)"
HELP = """
import contextlib, io, sys
from biofx.cli import main
with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
    main(["--help"])
print(int("torch" in sys.modules))
"""


def transforming(effort: Effort) -> Report:
    table = Table(
        "Transform (milliseconds)",
        ["model", "symbolic_trace", "transform", "ratio", "package", "largest new tensor, bytes"],
    )
    report = Report([table])
    layers = (100, 1000) if effort.quick else (1000, 10_000)
    models = dict(list(MODELS.items())[:1]) if effort.quick else dict(MODELS)
    models |= {f"MLP of {count:,} layers": chain(count) for count in layers}
    spent = {}
    for name, make in models.items():
        model = make()
        calls: dict[str, Callable[[], object]] = {
            "trace": lambda model=model: fx.symbolic_trace(model),
            "transform": lambda model=model: biofx.transform(model),
        }
        # A model is transformed once: what an earlier call has compiled must not serve the next.
        found = interleaved(calls, effort, warm=1, prepare=lambda _: code_of.cache_clear())
        theirs = None
        if seed_available():
            # it changes the model given, so that each call needs one of its own
            fresh = [copy.deepcopy(model) for _ in range(4)]
            from bio_transformations import BioConverter

            call = {"seed": lambda fresh=fresh: BioConverter()(fresh.pop())}
            theirs = interleaved(call, type(effort)(0, 3, 3), warm=1)["seed"]
        spent[name] = found["transform"]
        ratio = found["transform"] / found["trace"]
        allocated = worker("allocated", {"model": name}) if name in MODELS else {}
        size = f"{allocated['most']:,}" if "most" in allocated else allocated.get("error", "–")
        row = [name, milliseconds(found["trace"]), milliseconds(found["transform"])]
        table.rows.append([*row, times(ratio), milliseconds(theirs), size])
        report.goals.append(Goal(5, f"{name}: transform / symbolic_trace", ratio, 2.0))
        if "most" in allocated:
            largest = max(p.nbytes for p in model.parameters())
            what = f"{name}: largest tensor that transform allocates / largest weight"
            report.goals.append(Goal(5, what, allocated["most"] / largest, 0.01))
    few, many = (spent[f"MLP of {count:,} layers"] / count for count in layers)
    what = f"transform, time per layer: {layers[1]:,} layers / {layers[0]:,} layers"
    report.goals.append(Goal(5, what, many / few, 1.5))
    report.add(importing(effort))
    return report


def chain(layers: int) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(*(nn.Linear(2, 2) for _ in range(layers)))


def importing(effort: Effort) -> Report:
    def median(code: str) -> float:
        runs = [
            subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
            for _ in range(2 if effort.quick else 7)
        ]
        return statistics.median(float(run.stdout) for run in runs)

    bare = median(IMPORT.format("")) * 1e3
    names = median(IMPORT.format("; biofx.transform; biofx.GradScheduler; biofx.diff")) * 1e3
    loads = median(HELP)
    table = Table("Import, after torch (milliseconds)", ["what", "time"])
    table.rows = [
        ["import biofx", figure(bare)],
        ["… and its names transform, GradScheduler and diff", figure(names)],
    ]
    return Report([table], [
        Goal(5, "import biofx, over import torch", bare, 60, "ms"),
        Goal(5, "biofx --help imports torch (0 is no)", loads, 0, ""),
    ])  # fmt: skip


def allocated(arguments: dict[str, str]) -> dict[str, int]:
    """Worker: bytes of the largest tensor that `transform` allocates."""
    model = MODELS[arguments["model"]]()
    biofx.transform(mlp(2, 2))  # what is made once in a process
    return {"most": max([0, *allocations(lambda: biofx.transform(model))])}
