"""What tools/zoo finds out about one model."""

import io
import random
import sys
import textwrap
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from rich.console import Console
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import biofx
from biofx.capture import arguments_of
from biofx.copying.nested import tensors
from biofx.errors import ConfigError, VerificationError
from biofx.modules.graph_module import recompile
from zoos.entry import Entry


@dataclass
class Result:
    """One row. What was not reached stays None; `failures` says why.

    Attributes:
        nodes: of the graph that was captured with example inputs.
        operations: operations of a run of the graph, as a share of those of a run of the model.
        graph: how the graph compares with the forward, as `biofx.verify` says.
        wired: share of the weight layers whose place in the wiring is known, with example inputs.
        wired_without: the same without them.
        train, evaluation: whether everything was equal bit for bit in that mode, however the model
            was captured; None where the original does not run, or not twice alike.
        backward: whether gradients could be compared, in one mode at least.
        outputs, gradients, buffers: how many tensors were compared.
        seconds, seconds_without: for `biofx.transform` with and without example inputs.
        layers, split: layers with weights, and how many of them are split by Γ = 2.
        reasons: why modules could not be traced without example inputs, {reason: how many}.
        note, notes: what the reader should know.
    """

    library: str
    name: str
    note: str = ""
    parameters: int | None = None
    nodes: int | None = None
    operations: float | None = None
    graph: str = ""
    wired: float | None = None
    wired_without: float | None = None
    train: bool | None = None
    evaluation: bool | None = None
    backward: bool = False
    outputs: int = 0
    gradients: int = 0
    buffers: int = 0
    seconds: float | None = None
    seconds_without: float | None = None
    layers: int | None = None
    split: int | None = None
    reasons: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    @property
    def equal(self) -> bool:
        verdicts = {self.train, self.evaluation}
        return True in verdicts and False not in verdicts


def measure(library: str, entry: Entry, *, debug: bool = False) -> Result:
    """Transform one model and compare it with the original."""
    result = Result(library, entry.name, entry.note)
    work: dict[str, Any] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for what, step in STEPS.items():
            seed()
            try:
                step(entry, work, result)
            except Exception as error:
                text = f"{what}: {type(error).__name__}: {error}"
                result.failures.append(textwrap.shorten(text, 500, placeholder=" …"))
                if debug:
                    traceback.print_exc()
                if step is _transform:
                    break
    return result


def seed() -> None:
    """Put the generators that a model may draw from in one state."""
    random.seed(0)
    torch.manual_seed(0)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(0)


def warm_up() -> None:
    """Let the first model not pay for what is loaded once."""
    biofx.transform(nn.Sequential(nn.Linear(2, 2)), example_inputs=torch.ones(1, 2))


def _transform(entry: Entry, work: dict[str, Any], result: Result) -> None:
    model, inputs = entry.make(), entry.inputs()
    work.update(model=model, inputs=inputs)
    result.parameters = sum(p.numel() for p in model.parameters())
    start = time.perf_counter()
    bio = biofx.transform(model, example_inputs=inputs)
    result.seconds = time.perf_counter() - start
    work["bio"] = bio
    info = biofx.info(bio)
    result.nodes = len(info.graph.nodes)
    result.layers = len(info.layers)
    result.wired = _wired(bio)


def _wired(bio: nn.Module) -> float:
    info = biofx.info(bio)
    return 1 - len(info.wiring.unknown) / max(len(info.layers), 1)


def _compare(entry: Entry, work: dict[str, Any], result: Result) -> None:
    _verify(work["bio"], work, result)


def _compare_without_inputs(entry: Entry, work: dict[str, Any], result: Result) -> None:
    start = time.perf_counter()
    bio = biofx.transform(work["model"])
    result.seconds_without = time.perf_counter() - start
    result.wired_without = _wired(bio)
    for reason in biofx.info(bio).opaque.values():
        text = reason.partition(": ")[2] or reason
        result.reasons[text] = result.reasons.get(text, 0) + 1
    _verify(bio, work, result)


def _verify(bio: nn.Module, work: dict[str, Any], result: Result) -> None:
    try:
        found = biofx.verify(bio, work["model"], work["inputs"])
    except VerificationError as error:
        if "in eval mode" in str(error):
            result.evaluation = False
        else:
            result.train = False
        raise
    if "train" in found.modes and result.train is None:
        result.train = True
    if "eval" in found.modes and result.evaluation is None:
        result.evaluation = True
    result.outputs, result.gradients, result.buffers = found.outputs, found.gradients, found.buffers
    result.backward = bool(found.gradients)
    result.graph = result.graph or found.graph
    for note in found.notes:
        text = textwrap.shorten(note, 160, placeholder=" …")
        if text not in result.notes:
            result.notes.append(text)


def _look(entry: Entry, work: dict[str, Any], result: Result) -> None:
    """The pictures of the difference can be drawn."""
    bio = work["bio"]
    difference = biofx.info(bio).diff
    assert str(difference)
    assert difference.to_dict()
    Console(file=io.StringIO(), width=100).print(difference)


def _count_operations(entry: Entry, work: dict[str, Any], result: Result) -> None:
    model, arguments = work["model"].eval(), arguments_of(work["inputs"])
    graph = biofx.transform(model, example_inputs=work["inputs"])
    recompile(graph)
    counts = []
    for made in (model, graph):
        given = arguments.copies()
        seed()
        with Operations() as counted, torch.no_grad():
            made(*given.args, **given.kwargs)
        counts.append(counted.all)
    model.train()
    result.operations = counts[1] / max(counts[0], 1)


def _split(entry: Entry, work: dict[str, Any], result: Result) -> None:
    """Γ = 2 where it divides: forward and backward, and the same function in mode "expand"."""
    model, inputs = work["model"], work["inputs"]
    config = biofx.BioConfig(weight_splitting_Gamma=2)
    try:
        bio = biofx.transform(model, config, example_inputs=inputs)
    except ConfigError:
        result.split = 0
        result.notes.append("Γ = 2 divides none of its layers")
        return
    layers = biofx.info(bio).layers.values()
    result.split = sum(layer.action == "split" for layer in layers)
    given = arguments_of(inputs).copies()
    ends = [end for end in tensors(bio.train()(*given.args, **given.kwargs)) if end.requires_grad]
    if result.backward:
        torch.autograd.backward(ends, [torch.ones_like(end) for end in ends])
        bio.zero_grad()
    if result.split:
        config = config.replace(weight_splitting_mode="expand")
        biofx.verify(biofx.transform(model, config, example_inputs=inputs), model, inputs)


class Operations(TorchDispatchMode):
    """Counts the operations of a run that make tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.all = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        self.all += bool(tensors(result))
        return result


STEPS: dict[str, Callable[[Entry, dict[str, Any], Result], None]] = {
    "transform": _transform,
    "compare": _compare,
    "compare, captured without inputs": _compare_without_inputs,
    "diff": _look,
    "count operations": _count_operations,
    "split": _split,
}
