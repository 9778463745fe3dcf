"""One capture of one model: traces every module that can be, remembers why others cannot."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from types import FunctionType
from typing import Any

import torch
from torch import fx, nn

from biofx.capture import patches
from biofx.capture.code import assigns, facts
from biofx.capture.generators import generator_state, restore_moved
from biofx.capture.leaves import CHOOSES_AT_RUN_TIME, bases_of, is_leaf
from biofx.capture.pattern import Pattern, Unpatterned
from biofx.capture.recording import Recording
from biofx.capture.signature import Call, GuardedCodeGen, signature_of
from biofx.capture.tracer import ModuleTracer, Refusal
from biofx.capture.world import World
from biofx.synapses import Cell, original_class


@dataclass
class Capture:
    """One module's graph and what it rests on.

    Attributes:
        graph: the forward; targets are relative to the module.
        call: the pattern of arguments that it was traced for.
        result: the pattern of what it returns.
        world: other values that it rests on.
        cell: shared with every module whose Python attributes were read.
        reads: (module, attribute) pairs read while tracing, by the modules inside too.
        partly: why some calls still run the module's Python forward, or None.
    """

    graph: fx.Graph
    call: Call
    result: Pattern
    world: World
    cell: Cell = field(default_factory=Cell)
    reads: list[tuple[nn.Module, str]] = field(default_factory=list)
    partly: str | None = None


class Session:
    """Captures a tree of modules.

    Args:
        root: a structural clone; no attribute of it is changed while tracing.

    Attributes:
        captures: {module: Capture} of every module that has a graph.
        opaque: {module: reason} of every module with a Python forward that has none.
    """

    def __init__(self, root: nn.Module) -> None:
        self.root = root
        self.names = {module: name for name, module in root.named_modules()}
        self.captures: dict[nn.Module, Capture] = {}
        self.opaque: dict[nn.Module, str] = {}
        self.stack: list[ModuleTracer] = []
        self.signature_of = cache(signature_of)
        self.recording: Recording
        self.autowrap: Callable[[dict[str, Any]], None] = lambda names: None
        self.watches_draws = True

    def run(self, arguments: tuple[tuple[Any, ...], Mapping[str, Any]] | None = None) -> None:
        """Capture the root, then every module that no graph reached.

        Args:
            arguments: example (args, kwargs) of the root's forward. Tensors in it stand for any
                tensor; other values become constants of the graph. Without it, required
                arguments are taken for tensors and optional ones for their defaults.
        """
        # Which module draws random numbers in Python is asked only if one does: looking at the
        # generators before and after each takes a sixth of the time of a deep model.
        self.watches_draws = False
        state = generator_state()
        try:
            self._run(arguments)
        finally:
            drawn = restore_moved(state)
        if drawn:
            self.captures.clear()
            self.opaque.clear()
            self.watches_draws = True
            self._run(arguments)

    def _run(self, arguments: tuple[tuple[Any, ...], Mapping[str, Any]] | None) -> None:
        with patches.recording(self):
            self._attempt(self.root, arguments)
            if is_leaf(self.root) and not isinstance(self.root, torch.jit.ScriptModule):
                self.capture(self.root, arguments)  # a layer alone: better its own graph than none
                self.opaque.pop(self.root, None)
            # Modules are listed parents first, so an island's inside is reached through it.
            for module in self.names:
                self._attempt(module, None)

    def _attempt(
        self, module: nn.Module, arguments: tuple[tuple[Any, ...], Mapping[str, Any]] | None
    ) -> None:
        if module in self.captures or module in self.opaque or is_leaf(module):
            return
        if type(module).forward is nn.Module.forward and "forward" not in module.__dict__:
            return  # a container (ModuleList, …): it is never called
        self.capture(module, arguments)

    def capture(
        self,
        module: nn.Module,
        arguments: tuple[tuple[Any, ...], Mapping[str, Any]] | None,
    ) -> Capture | None:
        """The capture of a module for these arguments (proxies and constants), or None."""
        if module in self.opaque:
            return None
        try:
            call = Call.bind(self.signature_of(type(module)), arguments)  # type: ignore[arg-type]
        except Unpatterned as error:
            self._give_up(module, str(error))
            return None
        known = self.captures.get(module)
        if known is not None:
            if known.call.fits(call):
                return known
            known.partly = "some calls pass other kinds of arguments and run its Python forward"
            return None
        why = why_untraceable(module)
        if why is not None:
            self.opaque[module] = why
            return None
        self.autowrap(inspect.unwrap(type(module).forward).__globals__)
        tracer = ModuleTracer(self, call)
        self.stack.append(tracer)
        state = generator_state() if self.watches_draws else None
        try:
            graph = tracer.trace(module)
            if tracer.refusal is not None:
                raise Refusal(tracer.refusal)
            assert tracer.result is not None
            capture = Capture(
                graph, call, tracer.result, world=tracer.reads.world, reads=tracer.reads.pairs
            )
        except Exception as error:
            self._give_up(module, tracer.refusal or reason_of(error))
            return None
        finally:
            if tracer.reads.snapshots.restore():
                self.captures.pop(module, None)
                self._give_up(module, "changes a Python container while it runs")
            if state is not None and restore_moved(state):
                self._give_up(module, "draws random numbers in Python")
            self.stack.pop()
        if module in self.opaque:  # found out while restoring
            return None
        graph.set_codegen(GuardedCodeGen(call, world=bool(capture.world)))
        self.captures[module] = capture
        return capture

    def _give_up(self, module: nn.Module, reason: str) -> None:
        if module not in self.captures:
            self.opaque.setdefault(module, reason)


def why_untraceable(module: nn.Module) -> str | None:
    """A reason known before trying, or None."""
    if issubclass(type(module), CHOOSES_AT_RUN_TIME):  # of the type: see `leaves`
        return "chooses a fused implementation at run time"
    if issubclass(type(module), fx.GraphModule):
        return "is a GraphModule already"
    if "forward" in module.__dict__:
        return "its forward is replaced on the instance"
    if any("__call__" in vars(base) for base in bases_of(module)):
        return "overrides __call__"
    if not isinstance(inspect.unwrap(type(module).forward), FunctionType):
        return "its forward is not a Python function"
    own: Any = original_class(module)
    clash = _clash(own) or _graph_names() & {
        *vars(module), *module._modules, *module._parameters, *module._buffers
    }  # fmt: skip
    if clash:
        return f"its attribute {min(clash)!r} means something else on a GraphModule"
    if facts(inspect.unwrap(type(module).forward).__code__).catches:
        return "catches exceptions"
    return None


@cache
def _graph_names() -> frozenset[str]:
    """Names that mean something on a module with a graph, and nothing on others."""
    from biofx.capture.islands import Captured

    own = {*dir(Captured), *Captured.__annotations__, "meta", "shape_env"}
    return frozenset(n for n in own if not n.startswith("__") and not hasattr(nn.Module, n))


@cache
def _clash(cls: Any) -> frozenset[str]:
    """Attributes that a class has, or that its methods assign, and that are a graph's too."""
    assigned = {
        name
        for base in cls.__mro__
        if not base.__module__.startswith("torch.")
        for function in vars(base).values()
        if isinstance(function, FunctionType)
        for name in assigns(function.__code__)
    }
    return _graph_names() & {*dir(cls), *assigned}


def reason_of(error: BaseException) -> str:
    """One line that says why a trace failed."""
    if isinstance(error, Refusal):
        return str(error)
    text = str(error).strip().splitlines()
    first = text[0] if text else ""
    known = {
        "Proxy": "passes an intermediate value to code outside torch",
        "must be": "passes an intermediate value to code outside torch",
    }
    for mark, reason in known.items():
        if mark in first:
            return f"{reason} ({type(error).__name__})"
    return f"{type(error).__name__}: {first}"[:160]
