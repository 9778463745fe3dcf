"""Goal 2: bytes of plasticity state, and the peak of a training step."""

import gc
import itertools
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import biofx
from benchmarks.models import CASES, Case, seed_available, seed_convert
from benchmarks.report import Goal, Report, Table, figure, times
from benchmarks.steps import ALL, RULES, SEED_CALLS
from benchmarks.timing import Effort, allocations, kernels_compiled, worker
from biofx.config import Distribution
from biofx.plasticity import DalesPrinciple, FuzzyLearningRates


def memory(effort: Effort) -> Report:
    case = "tiny" if effort.quick else "large"
    report = Report([states(CASES[case])])
    report.add(peaks(case, effort))
    for rule in ("fuzzy", "volume", "rejuvenate"):
        value = float(next(row[1] for row in report.tables[0].rows if row[0] == rule))
        report.goals.append(Goal(2, f"state of {rule}, per weight", value, 0, "bytes"))
    return report


def states(case: Case) -> Table:
    """Bytes per weight in `GradScheduler.state_dict()` after a step, for every rule."""
    rules = {name: make() for name, make in RULES.items() if name != ALL}
    rules["dale"] = [DalesPrinciple(initialisation="signs")]
    for kind in Distribution:
        if kind not in (Distribution.BASELINE, Distribution.UNIFORM):
            rules[f"fuzzy, {kind.name}"] = [FuzzyLearningRates(distribution=kind, dynamic=True)]
    table = Table("Plasticity state", ["rule", "bytes per weight"])
    for name, chosen in rules.items():
        activity = biofx.BioConfig(fuzzy_lr_distribution=Distribution.ACTIVITY)
        bio = biofx.transform(case.make(), activity if "ACTIVITY" in name else None)
        optimizer = torch.optim.SGD(bio.parameters(), lr=1e-3)
        scheduler = biofx.GradScheduler(bio, optimizer, rules=chosen, compile=False)
        train_step(bio, optimizer, case.batch())
        size = sum(t.nbytes for t in tensors(scheduler.state_dict()["state"]))
        table.rows.append([name, f"{size / weights_in(bio):.3g}"])
    table.note = (
        f"Measured on {case.name}, all distributions with `fuzzy_lr_dynamic`. What ACTIVITY keeps "
        "is two numbers per output unit. The package keeps 4 bytes per weight, always."
    )
    return table


def tensors(state: Any) -> Iterator[Tensor]:
    if isinstance(state, Tensor):
        yield state
    elif isinstance(state, dict):
        for value in state.values():
            yield from tensors(value)


def weights_in(bio: nn.Module) -> int:
    return sum(bio.get_parameter(name).numel() for name in biofx.info(bio).synapses)


def peaks(case: str, effort: Effort) -> Report:
    """Peak bytes in tensors, each variant in a process of its own."""
    variants = [("SGD", rule, "gradient", kernel) for rule in RULES for kernel in (False, True)]
    variants += [("SGD", rule, "update", True) for rule in ("fuzzy", ALL)]
    variants += [("AdamW", rule, "update", True) for rule in ("fuzzy", ALL)]
    if effort.quick:
        variants = variants[:1]
    plain = {name: worker("peak", {"case": case, "optimizer": name}) for name in ("SGD", "AdamW")}
    columns = ["rule", "optimizer", "apply", "kernels", "peak, MB", "of plain training"]
    table = Table(f"Peak memory of training: {CASES[case].name}", columns)
    for name, found in plain.items():
        table.rows.append(["plain", name, "–", "–", megabytes(found), "1 ×"])
    report = Report([table])
    fuzzy: dict[bool, float] = {}
    compiles = True
    for name, rule, mode, kernel in variants:
        found = worker("peak", {
            "case": case, "optimizer": name, "rule": rule, "apply": mode, "compile": kernel,
        })  # fmt: skip
        ratio = found["peak"] / plain[name]["peak"] if "peak" in found else None
        compiles = compiles and bool(found.get("kernels") or not kernel)
        if (name, rule, mode) == ("SGD", "fuzzy", "gradient") and ratio is not None:
            fuzzy[kernel] = ratio
        how = "compiled" if kernel and found.get("kernels") else "eager"
        table.rows.append([rule, name, mode, how, megabytes(found), times(ratio)])
    if seed_available():
        for rule in ("fuzzy", ALL):
            found = worker("peak", {"case": case, "optimizer": "SGD", "seed": rule})
            ratio = found["peak"] / plain["SGD"]["peak"] if "peak" in found else None
            row = [f"{rule}, the package", "SGD", "gradient", "eager", megabytes(found)]
            table.rows.append([*row, times(ratio)])
    table.note = (
        "The most bytes in tensors at one time, over two training steps after three: what is alive "
        "before them, plus the running sum of what PyTorch's profiler sees allocated and freed."
    )
    what = "peak memory of SGD + fuzzy in gradient mode / plain training"
    report.goals.append(Goal(2, what, fuzzy.get(True, fuzzy.get(False)), 1.05))
    return report


def megabytes(found: dict[str, Any]) -> str:
    return figure(found["peak"] / 1e6) if "peak" in found else found["error"][:60]


def train_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, batch: tuple[Tensor, Tensor]
) -> None:
    optimizer.zero_grad()
    F.cross_entropy(model(batch[0]), batch[1]).backward()
    optimizer.step()


def peak(arguments: dict[str, Any]) -> dict[str, Any]:
    """Worker: peak bytes of one variant."""
    case = CASES[arguments["case"]]
    torch.manual_seed(0)
    model = case.make()
    batch = case.batch()
    methods: tuple[str, ...] = ()
    if "seed" in arguments:
        model = seed_convert(model)
        methods = SEED_CALLS[arguments["seed"]]
    elif "rule" in arguments:
        model = biofx.transform(model)
    chosen = [p for p in model.parameters() if p.requires_grad]
    make = {"SGD": torch.optim.SGD, "AdamW": torch.optim.AdamW}[arguments["optimizer"]]
    optimizer = make(chosen, lr=1e-3)
    if "rule" in arguments:
        kept = biofx.GradScheduler(  # the optimizer's hooks keep it alive; the name says so
            model,
            optimizer,
            rules=RULES[arguments["rule"]](),
            apply=arguments["apply"],
            compile=arguments["compile"],
        )
        assert kept.steps == [0]
    if methods:
        optimizer.register_step_pre_hook(lambda *_: [getattr(model, m)() for m in methods] and None)
    for _ in range(3):
        train_step(model, optimizer, batch)
    optimizer.zero_grad()
    alive = live_bytes()

    def two_steps() -> None:
        for _ in range(2):
            train_step(model, optimizer, batch)

    most = max(itertools.accumulate(allocations(two_steps)))
    return {"peak": alive + most, "alive": alive, "kernels": kernels_compiled()}


def live_bytes() -> int:
    """Bytes in all CPU tensors that Python knows of, each storage once."""
    gc.collect()
    storages = {}
    for thing in gc.get_objects():
        if type(thing) in (Tensor, nn.Parameter) and thing.device.type == "cpu":
            storage = thing.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())
