"""TorchScript. Deprecated upstream, so all of it stays in this file."""

import contextlib
import inspect
import io
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.jit._trace import TracerWarning

from biofx.capture import Arguments, capture
from biofx.capture.isolation import generators_kept
from biofx.capture.location import is_user_file
from biofx.copying import separate
from biofx.errors import ModelError
from biofx.export.attempt import Attempt, Impossible, one_line
from biofx.export.check import catches_failures
from biofx.export.export_signature import tensor_call
from biofx.export.lower import graph_module

NAME, TAKES_NO_INPUTS = "TorchScript", True
ADVICE = "Formats 'pt2' and 'onnx' take other things than TorchScript does"
ADVICE_NO_INPUTS = (
    "Give example_inputs (on the command line: --input), on which it can be traced; or write that "
    "code in what TorchScript supports "
    "(https://docs.pytorch.org/docs/stable/jit_language_reference.html)"
)


def attempts(model: nn.Module, arguments: Arguments | None) -> Iterator[Attempt]:
    """The ways to make TorchScript of a plain model.

    First those that hold for any sizes and keep the branches of Python code: its graph, traced
    symbolically, then its own code, both compiled. Last a trace of the run on the example inputs.
    """
    names: tuple[str, ...] = ()

    def from_graph() -> bytes:
        nonlocal names
        if model._forward_hooks or model._forward_pre_hooks:
            raise Impossible("the model has hooks, which are no part of the graph")
        captured = capture(model, None, training=False)
        if "" in captured.opaque:
            raise Impossible(captured.opaque[""])
        for assumption in captured.assumptions:
            if assumption.kind == "random":
                raise Impossible(f"{assumption}, which it would repeat")
        module, names = graph_module(model, captured, arguments)
        _refuse_what_would_be_lost(module)
        return _saved(_compile(module))

    def by_name(module: Any, given: Arguments) -> Any:
        bound = inspect.signature(model.forward).bind(*given.args, **given.kwargs).arguments
        return module(**{name: bound[name] for name in names})

    yield Attempt(
        "scripted from its graph", from_graph, partial(_loaded, by_name), exact=True, branches=True
    )

    def from_code() -> bytes:
        _refuse_what_would_be_lost(model)
        return _saved(_compile(model))

    yield Attempt("scripted", from_code, partial(_loaded, _call), exact=True, branches=True)
    if arguments is not None:
        yield _trace(model, arguments)


def _trace(model: nn.Module, arguments: Arguments) -> Attempt:
    notes: list[str] = ["traced: it takes the tensors among the example inputs"]
    twin = separate(model)
    traced = tensor_call(twin, arguments)
    if traced.fixed:
        notes.append(f"traced: constants in it are {', '.join(traced.fixed)}")
    captured = _captured_for_notes(model, arguments)
    notes += [f"traced: takes for granted that {what}" for what in captured]

    def make() -> bytes:
        if catches_failures(model, arguments):
            raise Impossible("an operation fails and the code catches that: no trace survives it")
        with generators_kept(), _tracer_warnings(notes), torch.no_grad():
            # NumPy is given traced sizes, which it takes with a warning of its own
            warnings.filterwarnings("ignore", category=DeprecationWarning, message="__array_wrap__")
            _ignore_deprecation()
            try:
                values = dict(Arguments((), traced.values).copies().kwargs)
                module = torch.jit.trace(
                    traced.module, example_kwarg_inputs=values, check_trace=False, strict=False
                )
            except Exception as error:
                raise Impossible(one_line(error)) from error
            # The run may have changed what the trace holds.
            for mine, theirs in zip(_tensors(twin), _tensors(model), strict=True):
                if mine.shape != theirs.shape:
                    raise Impossible("a run gives a buffer another shape, which a trace would keep")
                mine.copy_(theirs)
        return _saved(module)

    def run(module: Any, given: Arguments) -> Any:
        return module(**tensor_call(model, given).values)

    return Attempt("traced", make, partial(_loaded, run), exact=True, notes=notes)


@contextlib.contextmanager
def _tracer_warnings(notes: list[str]) -> Iterator[None]:
    """Turns what the tracer says of the user's code into notes, but for lines that have one."""
    with warnings.catch_warnings():
        show: Any = warnings.showwarning

        def note(message: Any, category: Any, file: Any, line: Any, *rest: Any) -> None:
            where = f"{Path(file).name}:{line}"
            if not issubclass(category, TracerWarning):
                show(message, category, file, line, *rest)
            elif is_user_file(file) and not any(where in known for known in notes):
                notes.append(f"traced: {where}: {str(message).partition('. ')[0].lower()}")

        warnings.showwarning = note  # type: ignore[assignment]
        warnings.simplefilter("always", TracerWarning)
        yield


def _tensors(model: nn.Module) -> list[torch.Tensor]:
    return [*model.parameters(), *model.buffers()]


def _captured_for_notes(model: nn.Module, arguments: Arguments) -> list[str]:
    """What was decided on data while the model ran on the arguments."""
    try:
        found = capture(model, arguments, training=False)
    except ModelError:
        return []
    return [str(a) for a in found.assumptions if a.kind in ("data", "random")]


def _loaded(run: Callable[[Any, Arguments], Any], data: bytes) -> Callable[[Arguments], Any]:
    with warnings.catch_warnings():
        _ignore_deprecation()
        return partial(run, torch.jit.load(io.BytesIO(data)))


def _call(module: Any, given: Arguments) -> Any:
    return module(*given.args, **given.kwargs)


def _saved(module: torch.jit.ScriptModule) -> bytes:
    # To memory: where the disk is full, torch's own writer of files ends the process.
    buffer = io.BytesIO()
    try:
        with warnings.catch_warnings():
            _ignore_deprecation()
            torch.jit.save(module, buffer)
    except RuntimeError as error:
        if "undefined Tensor" in str(error):
            raise Impossible(
                "a parameter of a Python function has the default None but no type, which "
                "TorchScript takes for a tensor; annotate it, `mask: Optional[Tensor] = None`"
            ) from error
        raise Impossible(f"it cannot be saved: {one_line(error)}") from error
    return buffer.getvalue()


def _refuse_what_would_be_lost(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if isinstance(module, torch.fx.GraphModule | torch.jit.ScriptModule):
            continue
        for base in type(module).__mro__:
            if base not in (nn.Module, object) and "__call__" in vars(base):
                raise Impossible(
                    f"{_named(name, module)} overrides __call__, which it does not run; move that "
                    "code into forward"
                )
        if type(module).__module__.startswith("torch."):
            continue
        if "forward" in vars(module):
            raise Impossible(f"{_named(name, module)} has its forward replaced on the instance")
        for parameter in inspect.signature(type(module).forward).parameters.values():
            if parameter.default is None and parameter.annotation is parameter.empty:
                raise Impossible(
                    f"{_named(name, module)} has a parameter {parameter.name!r} with the default "
                    "None and no type, which it takes for a tensor; annotate it: "
                    f"`{parameter.name}: Optional[Tensor] = None`"
                )


def _compile(model: nn.Module) -> torch.jit.ScriptModule:
    try:
        with warnings.catch_warnings():
            _ignore_deprecation()
            # Of the code of fx.GraphModule and of torch's own layers, which no user can change.
            warnings.filterwarnings("ignore", message=".* instance-level annotations")
            warnings.filterwarnings("ignore", message=".* was found in ScriptModule constants")
            scripted: torch.jit.ScriptModule = torch.jit.script(model)
    except Exception as error:
        # A class that failed to compile stays in the compiler's memory half made; the next attempt
        # would fail for that reason alone.
        torch.jit._recursive.concrete_type_store = torch.jit._recursive.ConcreteTypeStore()
        raise Impossible(_explained(model, error)) from error
    return scripted


def _explained(model: nn.Module, error: Exception) -> str:
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    said = " ".join(lines[:2] if lines[0].endswith(":") and len(lines) > 1 else lines[:1])
    marks = [i for i, line in enumerate(lines) if line.endswith("<--- HERE")]
    code = lines[marks[0] - 1] if marks else ""
    where = _owner(model, code)
    return f"{said.rstrip('.:')[:300]}" + (f", at `{code}`" if code else "") + where


def _owner(model: nn.Module, code: str) -> str:
    """Which module a line that does not compile belongs to."""
    if isinstance(model, torch.fx.GraphModule):
        result = code.partition(" ")[0].rstrip(";")
        for node in model.graph.nodes:
            if node.name == result and node.meta.get("nn_module_stack"):
                name = list(node.meta["nn_module_stack"])[-1]
                return f", in {name!r}" if name else ""
    for name, module in reversed(list(model.named_modules())):
        try:
            source = inspect.getsource(type(module).forward)
        except (OSError, TypeError):
            continue
        if code and code in source:
            return f", in {_named(name, module)}"
    return ""


def _named(name: str, module: nn.Module) -> str:
    return f"{name!r} ({type(module).__name__})" if name else f"the model ({type(module).__name__})"


def _ignore_deprecation() -> None:
    """TorchScript is deprecated upstream, which whoever asks for it knows."""
    warnings.filterwarnings("ignore", message=r"`torch\.jit\.\w+` is deprecated")
