"""From a model to its flat graph, without a trace in the model or the process."""

import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from biofx.capture.call import CapturedCodeGen
from biofx.capture.inputs import Arguments, signature_of
from biofx.capture.isolation import generator_state, isolated, restore_generators, same_state
from biofx.capture.recorder import Recorder
from biofx.capture.shared_weights import SharedWeights, WeightWritten
from biofx.capture.symbolic import SymbolicTracer
from biofx.capture.writer import Assumption
from biofx.copying.clone import own_tensors, separate
from biofx.copying.nested import replaced, tensors
from biofx.errors import ModelError, place_of
from biofx.synapses import original_class


@dataclass
class Captured:
    """The graph of a model.

    Attributes:
        graph: flat; targets are qualified names in the model.
        constants: {attribute: value} of what the graph reads and the model does not hold.
        opaque: {module name: reason} of what could not be traced; "" is the model itself.
        assumptions: what the graph takes for granted.
        whole: every operation of the run is in the graph; only example inputs can promise that.
        training: the mode that the model was in.
        measured: qualified names of the model's tensors whose sizes the run asked for.
    """

    graph: fx.Graph
    constants: Mapping[str, Any] = field(default_factory=dict)
    opaque: Mapping[str, str] = field(default_factory=dict)
    assumptions: tuple[Assumption, ...] = ()
    whole: bool = False
    training: bool = True
    measured: frozenset[str] = frozenset()


def capture(
    model: nn.Module, arguments: Arguments | None, *, training: bool | None = None
) -> Captured:
    """Capture a model as one flat graph.

    With arguments, a copy of the model runs on them once and what it does is recorded. The copy
    shares large weights with the model as long as it only reads them. Without, the model's forward
    is traced symbolically as far as that goes.

    Args:
        model: not changed, nor is anything else in the process.
        arguments: of one call.
        training: the mode to capture; the model's own if None.

    Raises:
        ModelError: the model does not run on the arguments.
    """
    with isolated(model):
        before = generator_state()
        if arguments is None:
            found = _traced(model, training)
        else:
            found = _recorded(model, arguments, training)
        after = generator_state()
    # A run shows what torch draws; without one it is drawn once, and is a constant of the graph.
    for name in ("python", "numpy") if arguments is not None else ("python", "numpy", "torch"):
        if name in before and not same_state(before[name], after[name]):
            drawn = Assumption("random", f"numbers were drawn from the generator of {name}")
            found.assumptions += (drawn,)
    found.training = model.training if training is None else training
    return found


# --- without example inputs -----------------------------------------------------------------------


def _traced(model: nn.Module, training: bool | None) -> Captured:
    shared: dict[str, str] = {}
    twin = separate(model, tensor=_weightless, strict=False, shared=shared)
    if training is not None:
        twin.train(training)
    tracer = SymbolicTracer(twin, signature_of(model))
    graph = tracer.run()
    graph.set_codegen(CapturedCodeGen(tracer.call.kept(), training=twin.training))
    constants = {
        name: vars(twin)[name]
        for node in graph.nodes
        if node.op == "get_attr"
        and (name := str(node.target)) in vars(twin)
        and name not in vars(model)
    }
    assumed = [
        Assumption(
            "default", f"called without {name}" if "=" not in name else f"called with {name}"
        )
        for name in tracer.call.describe()
    ]
    assumptions = dict.fromkeys((*assumed, *tracer.assumptions, *_uncopied(shared)))
    return Captured(graph, constants, tracer.opaque, tuple(assumptions))


def _uncopied(shared: Mapping[str, str]) -> list[Assumption]:
    """What the copy of a model has in common with it."""
    return [
        Assumption("shared", f"{place} is or holds a {kind}, which cannot be copied")
        for place, kind in shared.items()
    ]


def _weightless(tensor: Tensor) -> Tensor:
    """A parameter without values, for tracing needs none; a copy of any other tensor."""
    if isinstance(tensor, nn.Parameter) and tensor.layout is torch.strided:
        try:
            empty = torch.empty_like(tensor, device="meta")
        except NotImplementedError:  # quantised weights are tensors that know a few operations
            empty = tensor.detach().clone()
        return nn.Parameter(empty, requires_grad=tensor.requires_grad)
    return tensor.detach().clone()


# --- with example inputs --------------------------------------------------------------------------


def _recorded(model: nn.Module, arguments: Arguments, training: bool | None) -> Captured:
    signature = signature_of(model, arguments)
    try:
        signature.bind(*arguments.args, **arguments.kwargs)
    except TypeError as error:
        raise ModelError(
            f"{original_class(model).__name__} cannot be called with example_inputs: {error}. Its "
            f"forward takes {signature}. A tuple gives positional arguments, a dict keyword "
            "arguments, a pair (tuple, dict) both; wrap what is one argument itself: (batch,)"
        ) from error
    before = generator_state()
    try:
        found = _run(model, arguments, signature, training, SharedWeights())
        if found is None:
            restore_generators(before)
            found = _run(model, arguments, signature, training, SharedWeights(above=math.inf))
    except Exception as error:
        raise ModelError(
            f"while running the model on example_inputs: {_line(error)}"
            + _advice(model, arguments, error)
        ) from error
    assert found is not None
    return found


def _advice(model: nn.Module, arguments: Arguments, error: Exception) -> str:
    """What to do about a run that failed, where that can be told from outside."""
    given = {tensor.device.type for tensor in tensors((arguments.args, arguments.kwargs))}
    held = {parameter.device.type for parameter in model.parameters()}
    if "meta" in held:
        return (
            "; the model has no values (it is on the meta device); transform it without "
            "example_inputs, or with values"
        )
    if isinstance(error, MemoryError) or "memory" in str(error).lower():
        return "; example_inputs may be smaller than a batch"
    if not given:
        return "; example_inputs hold no tensor: pass what the forward takes"
    apart = held and held.isdisjoint(given)
    return f"; the model is on {min(held)}, example_inputs on {min(given)}" if apart else ""


def _line(error: Exception) -> str:
    place = place_of(error)
    text = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    return f"{text} (at {place})" if place else text


def _run(
    model: nn.Module,
    arguments: Arguments,
    signature: inspect.Signature,
    training: bool | None,
    weights: SharedWeights,
) -> Captured | None:
    """Record a run of a copy of the model; None if it had to be stopped and run on copies."""
    originals: dict[int, Tensor] = {}
    make = own_tensors(weights.share)

    def copied(tensor: Tensor) -> Tensor:
        fresh = make(tensor)
        originals[id(fresh)] = tensor
        return fresh

    shared: dict[str, str] = {}
    twin = separate(model, tensor=copied, strict=False, shared=shared)
    if training is not None:
        twin.train(training)
    meta = any(parameter.is_meta for parameter in model.parameters())
    given = replaced(
        (arguments.args, dict(arguments.kwargs)),
        lambda tensor: make(tensor.to("meta") if meta else tensor),
    )
    recorder = Recorder(twin, originals, weights)
    try:
        recorder.run(Arguments(*given), signature)
    except (Exception, WeightWritten):
        if not weights.written:
            raise
    if weights.written:
        return None
    if recorder.failed is not None:  # for want of values, and the model has caught it
        raise recorder.failed
    recorder.graph.set_codegen(CapturedCodeGen(recorder.call.kept(), training=twin.training))
    recorder.graph.lint()
    assumptions = (*recorder.assumptions, *_uncopied(shared))
    return Captured(
        recorder.graph, recorder.constants, assumptions=assumptions, whole=True,
        measured=frozenset(recorder.measured),
    )  # fmt: skip
