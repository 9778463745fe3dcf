"""Goal 5: the time of `transform` and of `import biofx`."""

import copy
import statistics
import subprocess
import sys
from collections.abc import Callable

import torch
from torch import Tensor, fx, nn

import biofx
from benchmarks.models import LARGE, mlp, resnet18, seed_available, vgg
from benchmarks.report import Goal, Report, Table, figure, milliseconds, times
from benchmarks.timing import Effort, allocations, interleaved, worker

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
        found = interleaved(calls, effort, warm=1)
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
    report.add(recording(effort))
    report.add(importing(effort))
    return report


def recording(effort: Effort) -> Report:
    """Transform with example inputs against a forward, and a call of the result against one."""
    table = Table(
        "Transform with example inputs, and calls of the result (milliseconds)",
        ["model", "forward", "nodes", "transform", "of 3 forwards + 1 ms a node", "call, ratio"],
    )
    report = Report([table])
    layers = (100, 1000) if effort.quick else (1000, 10_000)
    models: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
        "MLP 784-1000-10": (MODELS["MLP 784-1000-10"], torch.randn(32, 784)),
        **{f"MLP of {n:,} layers": (chain(n), torch.randn(1, 2)) for n in layers},
    }
    if not effort.quick:
        models["ResNet-18"] = resnet18, torch.randn(1, 3, 224, 224)
    spent = {}
    for name, (make, x) in models.items():
        model = make()
        bio = biofx.transform(model, example_inputs=x)
        nodes = len(biofx.info(bio).graph.nodes)

        def call(module: nn.Module, x: Tensor = x) -> Tensor:
            with torch.no_grad():
                return module(x)  # type: ignore[no-any-return]

        found = interleaved(
            {
                "forward": lambda model=model, call=call: call(model),
                "bio": lambda bio=bio, call=call: call(bio),
                "transform": lambda model=model, x=x: biofx.transform(model, example_inputs=x),
            },
            effort,
            warm=1,
        )
        spent[name] = found["transform"]
        share = found["transform"] / (3 * found["forward"] + nodes * 1e-3)
        ratio = found["bio"] / found["forward"]
        row = [name, milliseconds(found["forward"]), f"{nodes:,}", milliseconds(found["transform"])]
        table.rows.append([*row, times(share), times(ratio)])
        what = f"{name}: transform with inputs / (3 forwards + 1 ms a node)"
        report.goals += [
            Goal(5, what, share, 1.0),
            Goal(5, f"{name}: a call of the transformed model / of the original", ratio, 1.1),
        ]
    few, many = (spent[f"MLP of {count:,} layers"] / count for count in layers)
    what = f"transform with inputs, time per layer: {layers[1]:,} layers / {layers[0]:,} layers"
    report.goals.append(Goal(5, what, many / few, 1.5))
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
