"""Goal 4: what splitting costs in training, and what folding saves at export."""

import copy
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

import biofx
from benchmarks.models import LARGE, TINY, Case, mlp, seed_available, seed_convert, vgg
from benchmarks.report import Goal, Report, Table, milliseconds, times
from benchmarks.timing import Effort, interleaved

GAMMA = 2
CONV = Case("VGG-style, 32×32, batch 16", lambda: vgg(norm=False), (16, 3, 32, 32), 10)
CONV_NORM = Case("VGG-style with BatchNorm, 32×32, batch 16", vgg, (16, 3, 32, 32), 10)
SMALL_SPLIT = Case("MLP 16-16-16-4, batch 8", lambda: mlp(16, 16, 16, 4), TINY.shape, 4)


def splitting(effort: Effort) -> Report:
    cases = (SMALL_SPLIT,) if effort.quick else (LARGE, CONV)
    columns = ["model", "unsplit", "split", "overhead", "package, unsplit", "package, split", ""]
    columns[-1] = "its overhead"
    table = Table(f"Forward and backward with Γ = {GAMMA} (milliseconds)", columns)
    report = Report([table])
    for case in cases:
        found = interleaved(training_calls(case), effort)
        over = found["split"] / found["unsplit"]
        row = [case.name, milliseconds(found["unsplit"]), milliseconds(found["split"])]
        theirs = [found.get("seed, unsplit"), found.get("seed, split")]
        ratio = f"{theirs[1] / theirs[0] - 1:+.0%}" if theirs[0] and theirs[1] else "–"
        table.rows.append([*row, f"{over - 1:+.0%}", *map(milliseconds, theirs), ratio])
        what = f"{case.name}: forward+backward, split / unsplit"
        report.goals.append(Goal(4, what, over, 1.05))
    report.add(folding(effort))
    return report


def training_calls(case: Case) -> dict[str, Callable[[], object]]:
    torch.manual_seed(0)
    model = case.make()
    inputs, labels = case.batch()

    def training(net: nn.Module) -> Callable[[], object]:
        def call() -> None:
            net.zero_grad()
            F.cross_entropy(net(inputs), labels).backward()

        return call

    split = biofx.BioConfig(weight_splitting_Gamma=GAMMA)
    calls = {
        "unsplit": training(biofx.transform(copy.deepcopy(model))),
        "split": training(biofx.transform(copy.deepcopy(model), split)),
    }
    if seed_available():
        calls["seed, unsplit"] = training(seed_convert(model))
        calls["seed, split"] = training(seed_convert(model, weight_splitting_Gamma=GAMMA))
    return calls


def folding(effort: Effort) -> Report:
    cases = (SMALL_SPLIT,) if effort.quick else (LARGE, CONV, CONV_NORM)
    columns = ["model", "unfolded, ms", "folded, ms", "faster", "parameters", "difference"]
    table = Table(f"Inference of the exported file, Γ = {GAMMA}", columns)
    report = Report([table])
    for case in cases:
        torch.manual_seed(0)
        config = biofx.BioConfig(weight_splitting_Gamma=GAMMA)
        bio = biofx.transform(case.make(), config).eval()
        inputs = case.batch()[0]
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            files = {fold: Path(folder, f"{fold}.pt") for fold in (False, True)}
            done = [
                biofx.export(bio, file, example_inputs=(inputs,), fold=fold)
                for fold, file in files.items()
            ]
            nets = {fold: torch.jit.load(str(file)) for fold, file in files.items()}
        with torch.inference_mode():
            outputs = {fold: net(inputs) for fold, net in nets.items()}
            calls = {str(fold): (lambda net=net, x=inputs: net(x)) for fold, net in nets.items()}
            found = interleaved(calls, effort, warm=4)
        fold = done[1].fold
        assert fold is not None
        error = float((outputs[True] - outputs[False]).abs().max() / outputs[False].abs().max())
        faster = found["False"] / found["True"]
        counts = "{:,} → {:,}".format(*fold.parameters)
        unfolded, folded = milliseconds(found["False"]), milliseconds(found["True"])
        table.rows.append([case.name, unfolded, folded, times(faster), counts, f"{error:.1e}"])
        report.goals += [
            Goal(4, f"{case.name}: folded inference is faster", faster, 1.8, at_least=True),
            Goal(4, f"{case.name}: difference / largest output", error, 1e-5, ""),
        ]
        if fold.unfolded:
            table.note += f"{case.name}: " + "; ".join(
                f"not folded behind {name}: {why}" for name, why in fold.unfolded.items()
            )
    return report
