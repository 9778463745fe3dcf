"""PT2: the archive of `torch.export`, for AOTInductor, ExecuTorch and `torch.export.load`."""

import inspect
import io
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
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
    for how, make, run in exported(model, arguments):

        def saved(make: Callable[[], ExportedProgram] = make) -> bytes:
            buffer = io.BytesIO()
            try:
                torch.export.save(make(), buffer)
                torch.export.load(io.BytesIO(buffer.getvalue()))
            except Impossible:
                raise
            except Exception as error:
                raise Impossible(f"it cannot be saved: {one_line(error)}") from error
            return buffer.getvalue()

        def loaded(data: bytes, given: Arguments, run: Any = run) -> Any:
            return run(torch.export.load(io.BytesIO(data)).module(), given)

        yield Attempt(how, saved, loaded)


def exported(
    model: nn.Module, arguments: Arguments
) -> Iterator[tuple[str, Callable[[], ExportedProgram], Callable[[Any, Arguments], Any]]]:
    """(how, make, run) of every way to make a program of a plain model with `torch.export`.

    Sizes of the example inputs stay free as far as the model allows. The last way makes tensors,
    tuples and dicts of what the model returns, and constants of arguments that are no tensors.
    """
    flat = tensor_call(model, arguments)

    def run(program: Any, given: Arguments) -> Any:
        return program(*given.args, **given.kwargs)

    def run_flat(program: Any, given: Arguments) -> Any:
        return run(program, tensor_call(model, given).arguments)

    ways = [(model, arguments, run, "")] if _gives_known_types(model, arguments) else []
    plain = (flat.module, flat.arguments, run_flat, ", plain results")
    for module, example, runs, note in (*ways, plain):
        for sizes, free in (("any sizes", True), ("these sizes only", False)):

            def make(
                module: nn.Module = module, example: Arguments = example, free: bool = free
            ) -> ExportedProgram:
                return _export(module, example, free)

            yield f"exported for {sizes}{note}", make, runs


def _gives_known_types(model: nn.Module, arguments: Arguments) -> bool:
    """Whether `torch.export` knows the types of what a model returns."""
    given = arguments.copies()
    with generators_kept(), torch.no_grad():
        result = clone(model, tensor=own_tensors())(*given.args, **given.kwargs)
    known = (Tensor, bool, int, float, complex, str, type(None))
    return all(isinstance(leaf, known) for leaf in pytree.tree_leaves(result))


def _export(module: nn.Module, given: Arguments, free: bool) -> ExportedProgram:
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
