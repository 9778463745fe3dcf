"""Goal 3: what compiling costs, and what happens where nothing can be compiled."""

import tempfile
import time
from pathlib import Path
from typing import Any

import torch

import biofx
from benchmarks.memory import train_step
from benchmarks.models import CASES
from benchmarks.report import Goal, Report, Table, figure
from benchmarks.steps import ALL, RULES
from benchmarks.timing import Effort, kernels_compiled, worker


def compiling(effort: Effort) -> Report:
    case, together = ("tiny", "tiny") if effort.quick else ("small", "together")
    columns = ["model", "process", "first step, s", "second step, ms", "kernels compiled"]
    table = Table(f"Compile time: {ALL} + rejuvenate", columns)
    with tempfile.TemporaryDirectory() as folder:
        caches = [{"TORCHINDUCTOR_CACHE_DIR": str(Path(folder, name))} for name in ("one", "two")]
        runs: list[tuple[str, str, Any, dict[str, str]]] = [
            ("compile=False", case, False, {}),
            ("compile=True, empty cache", case, True, caches[0]),
            ("compile=True, second process", case, True, caches[0]),
            ('compile="auto", no C++ compiler', case, "auto", {"PATH": folder, "CXX": ""}),
            ('compile="auto"', "tiny", "auto", {}),
            ("compile=False", together, False, {}),
            ("compile=True, empty cache", together, True, caches[1]),
            ("compile=True, second process", together, True, caches[1]),
        ]
        answers = []
        for place, (name, model, kernel, environment) in enumerate(runs):
            weights = str(Path(folder, f"{place}.pt"))
            arguments = {"case": model, "compile": kernel, "weights": weights}
            if "PATH" in environment:
                other = str(Path(folder, "other"))  # nothing compiled earlier may be found
                environment = {**environment, "TORCHINDUCTOR_CACHE_DIR": other}
            found = worker("first_step", arguments, **environment)
            answers.append(found)
            numbers = [str(found.get("error"))[:60], "–", "–"]
            if "error" not in found:
                found["weights"] = torch.load(weights, weights_only=True)
                first, second = figure(found["first"]), figure(found["second"] * 1e3)
                numbers = [first, second, str(found["kernels"])]
            table.rows.append([CASES[model].name, name, *numbers])
    eager, cold, warm, bare, tiny, *small = answers
    difference = furthest(eager, cold)
    table.note = (
        "Largest difference between compiled and eager weights after 3 steps: "
        f"{difference:.1e} of the largest weight."
        if difference is not None
        else "Compiled and eager weights could not be compared."
    )
    works = None if "error" in bare else furthest(eager, bare)
    reuse = warm["first"] / cold["first"] if "first" in warm and cold.get("kernels") else None
    pause = tiny.get("first")
    waits: list[float | None] = [None, None]
    if all("first" in found for found in small):
        waits = [found["first"] - small[0]["first"] for found in small[1:]]
    return Report([table], [
        Goal(3, "no C++ compiler: difference of weights from eager", works, 0, ""),
        Goal(3, "compiled and eager weights after 3 steps: largest difference / largest weight",
             difference if cold.get("kernels") else None, 1e-6, ""),
        Goal(3, "first step of a second process / of the first, which compiles", reuse, 0.5),
        Goal(3, "tiny model: seconds of the first step", pause, 0.5, "s"),
        Goal(6, f"{CASES[together].name}: compiling, from an empty cache", waits[0], 6, "s"),
        Goal(6, f"{CASES[together].name}: compiling, a second process", waits[1], 1.2, "s"),
    ])  # fmt: skip


def furthest(one: dict[str, Any], other: dict[str, Any]) -> float | None:
    if "weights" not in one or "weights" not in other:
        return None
    pairs = list(zip(one["weights"], other["weights"], strict=True))
    largest = max(float(a.abs().max()) for a, _ in pairs)
    return max(float((a - b).abs().max()) for a, b in pairs) / largest


def first_step(arguments: dict[str, Any]) -> dict[str, Any]:
    """Worker: seconds of the first and the second step."""
    case = CASES[arguments["case"]]
    torch.manual_seed(0)
    bio = biofx.transform(case.make())
    optimizer = torch.optim.SGD(bio.parameters(), lr=1e-2)
    rules = [*RULES[ALL](), *RULES["rejuvenate"]()]
    biofx.GradScheduler(bio, optimizer, rules=rules, compile=arguments["compile"])
    batch = case.batch()
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        train_step(bio, optimizer, batch)
        seconds.append(time.perf_counter() - start)
    torch.save([p.detach() for p in bio.parameters()], arguments["weights"])
    return {"first": seconds[0], "second": seconds[1], "kernels": kernels_compiled()}
