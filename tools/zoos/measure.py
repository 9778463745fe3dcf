"""What tools/zoo finds out about one model."""

import inspect
import io
import random
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from types import CodeType
from typing import Any

import torch
from rich.console import Console
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import biofx
from biofx.capture import Captured, is_leaf
from biofx.capture.comparison import tensors
from biofx.capture.signature import split_inputs
from biofx.errors import ConfigError, VerificationError
from biofx.passes import islands
from biofx.synapses import original_class
from zoos.entry import Entry

GENERATED = "<eval_with_key>"  # the file name of a graph's forward


@dataclass
class Result:
    """One row. What was not reached stays None; `failures` says why.

    Attributes:
        modules: those with a forward of their own, layers of torch not counted.
        captured: how many of them have a graph; the others stay Python.
        islands: graphs that no other graph calls; 1 if the whole model is one tree of graphs.
        weights: share of the synapses whose layer a graph calls.
        operations: share of the operations of a run in evaluation mode that graphs made.
        train, evaluation: whether everything was equal bit for bit in that mode, however the model
            was captured; None where the original does not run, or not twice alike.
        backward: whether gradients could be compared, in one mode at least.
        outputs, gradients, buffers: how many tensors were compared.
        seconds, seconds_without: for `biofx.transform` with and without example inputs.
        layers, split: layers with weights, and how many of them are split by Γ = 2.
        reasons: why modules stay Python, {reason: how many}.
        note, notes: what the reader should know.
    """

    library: str
    name: str
    note: str = ""
    parameters: int | None = None
    modules: int | None = None
    captured: int | None = None
    islands: int | None = None
    weights: float | None = None
    operations: float | None = None
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
                lines = str(error).split()
                result.failures.append(f"{what}: {type(error).__name__}: {' '.join(lines)}"[:500])
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
    graphs = dict(islands(bio))
    own = {name for name, module in bio.named_modules() if _has_forward(module)} | set(graphs)
    result.modules = len(own)
    result.captured = len(graphs)
    result.islands = sum(not _called_by_a_graph(name, graphs) for name in graphs)
    result.weights = info.weights_in_graphs
    result.layers = len(info.layers)
    for reason in info.opaque.values():
        result.reasons[reason] = result.reasons.get(reason, 0) + 1


def _has_forward(module: nn.Module) -> bool:
    """Whether a module is more than a container or a layer of torch."""
    return not is_leaf(module) and original_class(module).forward is not nn.Module.forward


def _called_by_a_graph(name: str, graphs: dict[str, Captured]) -> bool:
    for above, graph in graphs.items():
        inside = name.removeprefix(f"{above}.") if above else name
        if above != name and (not above or inside != name):
            for node in graph.graph.nodes:
                if node.op == "call_module" and node.target == inside:
                    return True
    return False


def _compare(entry: Entry, work: dict[str, Any], result: Result) -> None:
    _verify(work["bio"], work, result)


def _compare_without_inputs(entry: Entry, work: dict[str, Any], result: Result) -> None:
    """A graph may then be called with other arguments than it was captured for."""
    start = time.perf_counter()
    bio = biofx.transform(work["model"])
    result.seconds_without = time.perf_counter() - start
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
    for note in found.notes:
        text = " ".join(note.split())
        text = text if len(text) < 160 else f"{text[:160]} …"
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
    bio = work["bio"].eval()
    args, kwargs = split_inputs(work["inputs"])
    with Operations(bio) as counted, torch.no_grad():
        bio(*args, **kwargs)
    result.operations = counted.in_graphs / max(counted.all, 1)


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
    args, kwargs = split_inputs(inputs)
    ends = [end for end in tensors(bio.train()(*args, **kwargs)) if end.requires_grad]
    if result.backward:
        torch.autograd.backward(ends, [torch.ones_like(end) for end in ends])
        bio.zero_grad()
    if result.split:
        config = config.replace(weight_splitting_mode="expand")
        biofx.verify(biofx.transform(model, config, example_inputs=inputs), model, inputs)


class Operations(TorchDispatchMode):
    """Counts the operations of a run, and those that a graph made.

    An operation belongs to the innermost forward that is running: that of a graph, or the Python
    one of a module.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.forwards: set[CodeType] = set()
        for module in model.modules():
            forward = inspect.unwrap(original_class(module).forward)
            if _has_forward(module) and hasattr(forward, "__code__"):
                self.forwards.add(forward.__code__)
        self.all = self.in_graphs = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.all += 1
        frame = sys._getframe(1)
        while frame is not None and frame.f_code not in self.forwards:
            if frame.f_code.co_filename.startswith(GENERATED):
                self.in_graphs += 1
                break
            frame = frame.f_back
        return func(*args, **(kwargs or {}))


STEPS: dict[str, Callable[[Entry, dict[str, Any], Result], None]] = {
    "transform": _transform,
    "compare": _compare,
    "compare, captured without inputs": _compare_without_inputs,
    "diff": _look,
    "count operations": _count_operations,
    "split": _split,
}
