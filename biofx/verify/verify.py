"""`verify`: does a transformed model compute what the original computes, on these inputs?"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from biofx.capture import Arguments, CapturedCodeGen, arguments_of, capture
from biofx.capture.isolation import generator_state, generators_kept, restore_generators
from biofx.copying import separate
from biofx.copying.nested import leaves, own, replaced, tensors
from biofx.errors import ModelError, VerificationError
from biofx.modules.graph_module import graph_of, install, lost_hooks, recompile
from biofx.synapses import Record, record_of, unwrap
from biofx.verify.blame import first_difference
from biofx.verify.comparison import difference

MODES = ("train", "eval")
# Γ parts of a weight sum to it but for rounding, which depth and normalisation magnify.
ROUNDING = 1e4


@dataclass(frozen=True)
class Verification:
    """What `verify` compared and found equal.

    Attributes:
        exact: bit for bit; False for a model with expanded synapses, where sums are rounded.
        tolerance: largest difference allowed, as a share of a tensor's largest absolute value.
        modes: the modes in which the original runs on these inputs.
        outputs, gradients, buffers: how many tensors were compared, over all modes.
        graph: how the graph compares with the forward that it describes.
        notes: what could not be compared, and why.
    """

    exact: bool
    tolerance: float
    modes: tuple[str, ...]
    outputs: int
    gradients: int
    buffers: int
    graph: str = "not compared"
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        how = "bit for bit" if self.exact else f"to rounding (within {self.tolerance:.0e})"
        text = (
            f"equal {how} in {' and '.join(self.modes)} mode: {self.outputs} outputs, "
            f"{self.gradients} gradients, {self.buffers} buffers; graph: {self.graph}"
        )
        return "; ".join((text, *self.notes))


@dataclass
class Trial:
    """What one run gave: a value or an error, and what it did to arguments and state."""

    output: Any = None
    error: Exception | None = None
    backward_error: Exception | None = None
    arguments: Any = None
    input_gradients: list[Tensor | None] = field(default_factory=list)
    gradients: dict[str, Tensor | None] = field(default_factory=dict)
    buffers: dict[str, Tensor | None] = field(default_factory=dict)
    generators: dict[str, Any] = field(default_factory=dict)


class _Unrepeatable(Exception):
    """The original does not give the same result twice."""


def verify(bio: nn.Module, model: nn.Module, example_inputs: Any) -> Verification:
    """Compare a transformed model with the original on your own data.

    Both are run in training mode and then in evaluation mode on the same inputs under the same
    state of the random generators: outputs, the inputs as the run left them, gradients of
    parameters and inputs, buffers and the state of the generators afterwards must agree bit for
    bit. With expanded synapses (``weight_splitting_mode="expand"``) they must agree within 10,000
    times the resolution of the dtype, as a share of each tensor's largest value. A mode in which
    the original itself gives another result each time is left out, with a note.

    Neither model is changed: both run as copies with tensors of their own. The Python attributes
    of both should still be as they were when the model was transformed.

    Args:
        bio: made by `biofx.transform`, wrapped (`torch.compile`, …) or not.
        model: the original.
        example_inputs: as in `biofx.transform`. Floating-point tensors get gradients if the
            model lets them.

    Returns:
        A summary of what was compared.

    Raises:
        VerificationError: they differ. The message names what differs and the first module and
            graph node at which it does.
        ModelError: the two cannot be compared.
    """
    record, island = record_of(bio), unwrap(bio)
    _check(record, island, model)
    arguments = arguments_of(example_inputs)
    if arguments is None:
        raise ModelError("verify needs example_inputs: it runs both models on them")
    bench = _Bench(record, island, model, arguments)
    with generators_kept(), torch.inference_mode(False), torch.enable_grad():
        return bench.run()


def _check(record: Record, bio: nn.Module, model: nn.Module) -> None:
    if bio is model:
        raise ModelError(
            "this is one model, transformed in place; verify compares it with the original"
        )
    if not isinstance(model, nn.Module) or "_biofx" in vars(model):
        raise ModelError("the second argument must be the original, untransformed model")
    changed = list({s.layers[0]: 0 for s in record.synapses.values() if s.split == "group"})
    if changed:
        raise VerificationError(
            'weight splitting in mode "group" changes the function on purpose (see the diff), so '
            f"there is nothing to compare: {', '.join(changed[:5])}"
            + (f" and {len(changed) - 5} more" if len(changed) > 5 else "")
            + '; weight_splitting_mode="expand" keeps the function'
        )


class _Bench:
    """Runs both models mode after mode and compares the runs."""

    def __init__(
        self,
        record: Record,
        bio: nn.Module,
        model: nn.Module,
        arguments: Arguments,
    ) -> None:
        self.record, self.bio, self.model = record, bio, model
        self.arguments = arguments
        self.state = generator_state()
        self.expanded = {n: s for n, s in record.synapses.items() if s.split == "expand"}
        dtypes = [p.dtype for p in model.parameters() if p.is_floating_point()]
        resolution = max((torch.finfo(dtype).eps for dtype in dtypes), default=0.0)
        self.rounding = ROUNDING * resolution
        self.tolerance = self.rounding if self.expanded else 0.0
        self.input_gradients = True
        self.notes: list[str] = []

    def run(self) -> Verification:
        self._same_weights()
        modes = []
        counts = {"outputs": 0, "gradients": 0, "buffers": 0}
        for position, mode in enumerate(MODES):
            path = MODES[: position + 1]
            original = self._trial(self.model, path)
            if original.error is not None and self.input_gradients:
                # an input that requires gradients cannot be changed in place
                self.input_gradients = False
                original = self._trial(self.model, path)
            trial = self._trial(self.bio, path)
            if original.error is not None:
                if type(trial.error) is not type(original.error):
                    self._fail(
                        mode,
                        f"the original raises {original.error!r}; this one does not",
                        certain=True,
                    )
                self.notes.append(f"in {mode} mode both raise {original.error!r}")
                continue
            try:
                self._compare(mode, original, trial)
            except _Unrepeatable:
                self.notes.append(f"in {mode} mode the original itself does not repeat its result")
                continue
            if any(isinstance(leaf, Iterator) for _, leaf in leaves(original.output)):
                self.notes.append("iterators in outputs are not compared: they run when iterated")
            modes.append(mode)
            counts["outputs"] += len(tensors(original.output))
            counts["buffers"] += len(original.buffers)
            found = (*original.gradients.values(), *original.input_gradients)
            counts["gradients"] += sum(g is not None for g in found)
        if not modes:
            raise ModelError(
                f"the original does not run on these inputs, or not twice alike: {self.notes[0]}"
            )
        return Verification(
            exact=not self.expanded,
            tolerance=self.tolerance,
            modes=tuple(modes),
            graph=self._compare_graph(),
            notes=tuple(dict.fromkeys(self.notes)),
            **counts,
        )

    # --- running -----------------------------------------------------------------------------

    def fresh_arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        given = self.arguments.args, dict(self.arguments.kwargs)
        args, kwargs = replaced(given, self._fresh)
        return args, kwargs

    def _fresh(self, value: Tensor) -> Tensor:
        fresh = own(value)
        if self.input_gradients and (fresh.is_floating_point() or fresh.is_complex()):
            fresh.requires_grad_()
        return fresh

    def _trial(self, model: nn.Module, path: tuple[str, ...]) -> Trial:
        """Run a copy of a model in one mode after another; what the last run gave."""
        copy = separate(model)
        for mode in path:
            trial = self.once(copy, mode)
        return trial

    def once(self, model: nn.Module, mode: str) -> Trial:
        """Run a model in one mode, forward and backward."""
        restore_generators(self.state)
        args, kwargs = self.fresh_arguments()
        model.train(mode == "train")
        model.zero_grad()
        trial = Trial(arguments=(args, kwargs))
        inputs = [t for t in tensors((args, kwargs)) if t.requires_grad]
        try:
            trial.output = model(*args, **kwargs)
        except Exception as error:
            trial.error = error
            return trial
        ends = [t for t in tensors(trial.output) if t.requires_grad]
        try:
            if ends:
                with self._untouched():
                    torch.autograd.backward(ends, [_weights(end) for end in ends])
        except VerificationError:
            raise
        except Exception as error:
            trial.backward_error = error
        trial.input_gradients = [t.grad for t in inputs]
        trial.gradients = {name: p.grad for name, p in model.named_parameters()}
        trial.buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
        trial.generators = generator_state()
        return trial

    @contextmanager
    def _untouched(self) -> Iterator[None]:
        """Notice gradients that reach the models themselves: a copy works on their modules."""
        parameters = [*self.bio.named_parameters(), *self.model.named_parameters()]
        before = [parameter.grad for _, parameter in parameters]
        versions = [None if grad is None else grad._version for grad in before]
        yield
        for (name, parameter), grad, version in zip(parameters, before, versions, strict=True):
            same = parameter.grad is grad and (grad is None or grad._version == version)
            if not same:
                parameter.grad = None if grad is None else parameter.grad
                raise VerificationError(
                    f"a copy of {type(self.bio).__name__} computes with {name!r} of the model that "
                    "it was copied from: a function or object on it holds modules that a copy "
                    "cannot take over"
                )

    # --- comparing ---------------------------------------------------------------------------

    def _same_weights(self) -> None:
        found = {**dict(self.bio.named_parameters()), **dict(self.bio.named_buffers())}
        for name, value in (*self.model.named_parameters(), *self.model.named_buffers()):
            problem = "it is missing"
            if name in found:
                other = found[name].detach()
                if name in self.expanded:
                    s = self.expanded[name]
                    other = other.unflatten(s.post_axis, (-1, s.gamma)).sum(s.post_axis + 1)
                problem = difference(value.detach(), other, self.tolerance) or ""
            if problem:
                remedy = "give it the model that was transformed, or load one state dict into both"
                if name in self.expanded:
                    remedy = (
                        "verify before training, which moves the weights of a split layer alone, "
                        "or bring those of the original in: bio.load_state_dict(model.state_dict())"
                    )
                raise VerificationError(
                    f"{name!r} of the two models is not the same ({problem}); verify compares the "
                    f"computation, so {remedy}"
                )

    def _compare(self, mode: str, original: Trial, trial: Trial) -> None:
        if trial.error is not None:
            self._fail(mode, f"it raises {trial.error!r}", certain=True)
        # an activity counter is the copy's own
        trial.buffers = {name: trial.buffers.get(name) for name in original.buffers}
        for what in ("output", "arguments", "buffers"):
            problem = difference(getattr(original, what), getattr(trial, what), self.tolerance)
            if problem is not None:
                self._fail(mode, f"{what.rstrip('s')}s differ: {problem}")
        if difference(original.generators, trial.generators) is not None:
            self._fail(mode, "it draws other random numbers")
        if (original.backward_error is None) != (trial.backward_error is None):
            failed = original.backward_error or trial.backward_error
            self._fail(mode, f"backward fails in one of the two: {failed!r}")
        if original.backward_error is not None:
            self.notes.append(
                f"in {mode} mode gradients are not compared, backward of the original raises "
                f"{original.backward_error!r}"
            )
            return
        self._compare_gradients(mode, original, trial)

    def _compare_graph(self) -> str:
        """Run the graph on the inputs, in the mode that it was captured in."""
        if not self.record.whole:
            return "not compared: it was captured without example inputs"
        mode = "train" if self.record.training else "eval"
        codegen = graph_of(self.bio)._codegen
        if not isinstance(codegen, CapturedCodeGen):
            return "not compared: the model's own code has put another graph in its place"
        call = codegen.call
        args, kwargs = self.fresh_arguments()
        try:
            call.check(call.bind(args, kwargs))
        except (ModelError, TypeError) as error:
            return f"not compared: {error}"
        expected = self._trial(self.bio, (mode,))
        copy = separate(self.bio)
        recompile(copy)
        found = self.once(copy, mode)
        if expected.error is not None:
            return f"not compared: in {mode} mode the model raises {expected.error!r}"
        lost = lost_hooks(self.bio)
        ending = f", but for gradients: it does not call {', '.join(lost[:5])}" if lost else ""
        problem = _graph_difference(expected, found, self.tolerance, gradients=not lost)
        if problem is None:
            return f"equal in {mode} mode{ending}"
        # Within torch.vmap the graph has what an operation is taken apart into.
        if _graph_difference(expected, found, self.rounding, gradients=not lost) is None:
            return f"equal to rounding in {mode} mode{ending}"
        for assumption in self.record.assumptions:
            if assumption.kind == "random":
                return f"not compared: {assumption.what}"
        if self._explained_by_draws(mode, expected):
            return "not compared: with other random numbers the forward takes other branches"
        if found.error is not None:
            raise VerificationError(f"the graph does not run: {found.error!r}")
        if self._repeats((mode,)):
            raise VerificationError(
                f"in {mode} mode the graph does not compute what the forward computes: {problem}"
            )
        return f"not compared: in {mode} mode the model does not repeat its result"

    def _explained_by_draws(self, mode: str, expected: Trial) -> bool:
        """Whether a graph captured under the random numbers of this run computes what it did.

        Then the graph is not wrong: other numbers made the forward take other branches.
        """
        if not any(assumption.kind == "data" for assumption in self.record.assumptions):
            return False
        restore_generators(self.state)
        captured = capture(self.model, self.arguments.copies(), training=self.record.training)
        copy = separate(self.model)
        install(copy, captured)
        recompile(copy)
        found = self.once(copy, mode)
        hooked = bool(lost_hooks(self.bio))
        return _graph_difference(expected, found, self.tolerance, gradients=not hooked) is None

    def _compare_gradients(self, mode: str, original: Trial, trial: Trial) -> None:
        problems = {}
        for name, expected in original.gradients.items():
            if expected is not None and name in self.expanded:
                s = self.expanded[name]
                expected = expected.repeat_interleave(s.gamma, s.post_axis)
            problem = difference(expected, trial.gradients[name], self.tolerance)
            if problem is not None:
                problems[name] = problem
        if problems:
            # gradients flow backwards: the last layer that differs is the first that went wrong
            order = [p for layer in self.record.layers.values() for p in layer.parameters]
            last = max(problems, key=lambda name: order.index(name) if name in order else -1)
            more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
            self._fail(mode, f"the gradient of {last!r}{more} differs: {problems[last]}")
        problem = difference(original.input_gradients, trial.input_gradients, self.tolerance)
        if problem is not None:
            self._fail(mode, f"gradients of the inputs differ: {problem}")

    def _repeats(self, path: tuple[str, ...]) -> bool:
        """Whether the original agrees with itself."""
        one, two = (self._trial(self.model, path) for _ in range(2))
        return type(one.error) is type(two.error) and all(
            difference(getattr(one, what), getattr(two, what)) is None
            for what in ("output", "arguments", "buffers", "gradients", "input_gradients")
        )

    def _fail(self, mode: str, what: str, *, certain: bool = False) -> None:
        path = MODES[: MODES.index(mode) + 1]
        if not certain and not self._repeats(path):
            raise _Unrepeatable
        place = first_difference(self, path)
        raise VerificationError(
            f"{type(self.bio).__name__} does not compute what the original computes: in {mode} "
            f"mode, {what}" + (f"; first at {place}" if place else "")
        )


def _graph_difference(
    expected: Trial, found: Trial, tolerance: float, *, gradients: bool
) -> str | None:
    """Where the runs of one model's two forwards differ."""
    if found.error is not None:
        return f"it raises {found.error!r}"
    outputs = expected.output, found.output
    if not gradients:
        outputs = replaced(outputs, Tensor.detach)
    problem = difference(outputs[0], outputs[1], tolerance)
    if problem is not None or not gradients or expected.backward_error is not None:
        return problem
    if found.backward_error is not None:
        return f"its backward raises {found.backward_error!r}"
    for name, gradient in expected.gradients.items():
        mine = found.gradients[name]
        if mine is None and isinstance(gradient, Tensor) and _is_zero(gradient):
            continue  # torch.cond gives zeros to the branch that it does not take
        problem = difference(gradient, mine, tolerance)
        if problem is not None:
            return f"the gradient of {name!r} differs: {problem}"
    problem = difference(expected.input_gradients, found.input_gradients, tolerance)
    return problem and f"gradients of the inputs differ: {problem}"


def _is_zero(gradient: Tensor) -> bool:
    return gradient.layout is torch.strided and not gradient.is_meta and not gradient.any()


def _weights(end: Tensor) -> Tensor:
    """A gradient to start from: a ramp, for a sum has none behind a softmax."""
    ramp = torch.linspace(0.5, 1.5, end.numel(), device=end.device)
    return ramp.to(end.dtype).reshape(end.shape)
