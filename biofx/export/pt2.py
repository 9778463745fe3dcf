"""PT2: the archive of `torch.export`, for AOTInductor, ExecuTorch and `torch.export.load`."""

import inspect
import io
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.fx.experimental.symbolic_shapes import is_concrete_int
from torch.utils import _pytree as pytree

from biofx.capture import Arguments
from biofx.capture.isolation import generators_kept
from biofx.copying import clone, own_tensors
from biofx.export.attempt import Attempt, Impossible, one_line
from biofx.export.export_signature import tensor_call

NAME, TAKES_NO_INPUTS = "torch.export", False
ADVICE = ADVICE_NO_INPUTS = (
    "Control flow on values that only a run knows is the usual reason; torch.cond expresses it"
)


def attempts(model: nn.Module, arguments: Arguments | None) -> Iterator[Attempt]:
    """The ways to make a PT2 archive of a plain model: with free sizes, then with fixed ones."""
    assert arguments is not None
    for how, make, run, notes in exported(model, arguments):
        yield Attempt(how, partial(_saved, make), partial(_run_saved, run), notes=notes)


def _saved(make: Callable[[], ExportedProgram]) -> bytes:
    program, buffer = make(), io.BytesIO()
    try:
        torch.export.save(program, buffer)
        torch.export.load(io.BytesIO(buffer.getvalue()))
    except Exception as error:
        raise Impossible(f"it cannot be saved: {one_line(error)}") from error
    return buffer.getvalue()


def _run_saved(run: Callable[[Any, Arguments], Any], data: bytes, given: Arguments) -> Any:
    return run(torch.export.load(io.BytesIO(data)).module(), given)


Way = tuple[str, Callable[[], ExportedProgram], Callable[[Any, Arguments], Any], list[str]]


def exported(model: nn.Module, arguments: Arguments) -> Iterator[Way]:
    """(how, make, run, notes) of every way to make a program of a model with `torch.export`.

    Sizes of the example inputs stay free as far as the model allows; `make` notes which. The last
    way makes tensors, tuples and dicts of what the model returns, and constants of arguments that
    are no tensors.
    """
    flat = tensor_call(model, arguments)

    def run(program: Any, given: Arguments) -> Any:
        return program(*given.args, **given.kwargs)

    def run_flat(program: Any, given: Arguments) -> Any:
        return run(program, tensor_call(model, given).arguments)

    ways = [(model, arguments, run, "exported")] if _gives_known_types(model, arguments) else []
    plain = (flat.module, flat.arguments, run_flat, "exported, plain results")
    for module, example, runs, how in (*ways, plain):
        values = (example.args, dict(example.kwargs))
        tries = [(example, True), (example, False)]
        if pytree.tree_any(_is_one_row, values):  # torch.export would fix a size of 1
            tries.insert(0, (Arguments(*pytree.tree_map(_two_rows, values)), True))
        for given, free in tries:
            notes: list[str] = []
            yield how, partial(_export, module, given, free, notes), runs, notes


def _is_one_row(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dim() > 0 and value.shape[0] == 1


def _two_rows(value: Any) -> Any:
    return torch.cat([value, value]) if _is_one_row(value) else value


def _gives_known_types(model: nn.Module, arguments: Arguments) -> bool:
    """Whether `torch.export` knows the types of what a model returns."""
    given = arguments.copies()
    with generators_kept(), torch.no_grad():
        result = clone(model, tensor=own_tensors())(*given.args, **given.kwargs)
    known = (Tensor, bool, int, float, complex, str, type(None))
    return all(isinstance(leaf, known) for leaf in pytree.tree_leaves(result))


def _export(module: nn.Module, given: Arguments, free: bool, notes: list[str]) -> ExportedProgram:
    said = io.StringIO()  # where it fails, torch prints whole graphs
    # Contiguous: a slice's strides would become part of the program. And new: where an attempt
    # fails, torch leaves its sizes marked as free.
    given = given.copies()
    try:
        with generators_kept(), redirect_stderr(said), warnings.catch_warnings(), torch.no_grad():
            program = torch.export.export(
                module, given.args, dict(given.kwargs), strict=False,
                dynamic_shapes=_free_sizes(module, given) if free else None,
            )  # fmt: skip
    except Exception as error:
        raise Impossible(one_line(error)) from error
    sizes = [
        f"{node.name}.shape[{dim}]"
        for node in program.graph.find_nodes(op="placeholder")
        if node.name in program.graph_signature.user_inputs
        for dim, size in enumerate(getattr(node.meta["val"], "shape", ()))
        if not is_concrete_int(size)
    ]
    notes.append(f"sizes that may differ from the example's: {', '.join(sizes) or 'none'}")
    sys.stderr.write(said.getvalue())
    return program


def _free_sizes(module: nn.Module, given: Arguments) -> Any:
    """All sizes free, for each argument by its name."""
    args, kwargs = pytree.tree_map(_free, (tuple(given.args), dict(given.kwargs)))
    return dict(inspect.signature(module.forward).bind(*args, **kwargs).arguments)


def _free(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return None
    return dict.fromkeys(range(value.dim()), Dim.AUTO)
