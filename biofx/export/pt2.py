"""PT2: the archive of `torch.export`, for AOTInductor, ExecuTorch and `torch.export.load`."""

import io
import re
import sys
import warnings
from collections.abc import Callable, Container, Iterator
from contextlib import redirect_stderr
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException
from torch.export import Dim, ExportedProgram
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode, is_concrete_int
from torch.utils import _pytree as pytree

from biofx.capture import Arguments, signature_of
from biofx.capture.isolation import generators_kept
from biofx.copying import separate
from biofx.export.attempt import Attempt, DataDependent, Impossible, doubled, one_line, without_logs
from biofx.export.check import result_tensors
from biofx.export.export_signature import tensor_call

NAME, TAKES_NO_INPUTS = "torch.export", False
ADVICE = ADVICE_NO_INPUTS = (
    "Control flow on values that only a run knows is the usual reason; torch.cond expresses it"
)

_ON_DATA = (GuardOnDataDependentSymNode, DataDependentOutputException)


def attempts(model: nn.Module, arguments: Arguments | None) -> Iterator[Attempt]:
    """The ways to make a PT2 archive of a plain model: with free sizes, then with fixed ones."""
    assert arguments is not None
    for how, make, run, notes in exported(model, arguments):
        yield Attempt(how, partial(_saved, make), partial(_loaded, run), notes=notes)


def _saved(make: Callable[[], ExportedProgram]) -> bytes:
    program, buffer = make(), io.BytesIO()
    try:
        torch.export.save(program, buffer)
        torch.export.load(io.BytesIO(buffer.getvalue()))
    except Exception as error:
        raise Impossible(f"it cannot be saved: {one_line(error)}") from error
    return buffer.getvalue()


def _loaded(run: Callable[[Any, Arguments], Any], data: bytes) -> Callable[[Arguments], Any]:
    return partial(run, torch.export.load(io.BytesIO(data)).module())


Way = tuple[str, Callable[[], ExportedProgram], Callable[[Any, Arguments], Any], list[str]]
# How the conditions of a program name a size.
_SIZE = r"L\['(\w+)'\]((?:\[[^\]]+\])*)\.size\(\)\[(\d+)\]"


def exported(model: nn.Module, arguments: Arguments, *, checked: bool = True) -> Iterator[Way]:
    """(how, make, run, notes) of every way to make a program of a model with `torch.export`.

    Sizes of the example inputs stay free as far as the model allows; `make` notes which. The last
    way makes tensors, tuples and dicts of what the model returns, and constants of arguments that
    are no tensors.

    Args:
        model: a plain one.
        arguments: the example inputs.
        checked: whether what is made of the program refuses sizes that break its conditions. If
            not, the only condition on a size that is left free is that it is equal to another.
    """
    flat = tensor_call(model, arguments)

    def run(program: Any, given: Arguments) -> Any:
        return program(*given.args, **given.kwargs)

    def run_flat(program: Any, given: Arguments) -> Any:
        return run(program, tensor_call(model, given).arguments)

    ways = [(model, arguments, run, "exported")] if _gives_known_types(model, arguments) else []
    plain = (flat.module, flat.arguments, run_flat, "exported, plain results")
    for module, example, runs, how in (*ways, plain):
        tries = [(example, True), (example, False)]
        tensors = result_tensors((example.args, dict(example.kwargs)))
        if any(tensor.shape[:1] == (1,) for tensor in tensors):
            tries.insert(0, (doubled(example), True))  # torch.export would fix a size of 1
        for given, free in tries:
            notes: list[str] = []
            yield how, partial(_program, module, given, free, checked, notes), runs, notes


def _gives_known_types(model: nn.Module, arguments: Arguments) -> bool:
    """Whether `torch.export` knows the types of what a model returns."""
    given = arguments.copies()
    with generators_kept(), torch.no_grad():
        result = separate(model)(*given.args, **given.kwargs)
    known = (Tensor, bool, int, float, complex, str, type(None))
    return all(isinstance(leaf, known) for leaf in pytree.tree_leaves(result))


def _program(
    module: nn.Module, given: Arguments, free: bool, checked: bool, notes: list[str]
) -> ExportedProgram:
    fixed: set[str] | None = set() if free else None
    while True:
        program = _export(module, given, fixed)
        sizes = [
            f"{node.name}.shape[{dim}]"
            for node in program.graph.find_nodes(op="placeholder")
            if node.name in program.graph_signature.user_inputs
            for dim, size in enumerate(getattr(node.meta["val"], "shape", ()))
            if not is_concrete_int(size)
        ]
        conditions = getattr(program, "_guards_code", None) or []  # a private name
        conditions = [c for c in conditions if not re.fullmatch(_SIZE + r" == \d+", c)]
        unequal = [c for c in conditions if not re.fullmatch(f"{_SIZE} == {_SIZE}", c)]
        bound = {size.group() for c in unequal for size in re.finditer(_SIZE, c)}
        if checked or fixed is None or not bound:
            break
        if bound <= fixed:
            raise Impossible(f"it cannot hold the condition {unequal[0]}")
        fixed |= bound
    limits = re.sub(_SIZE, r"\1\2.shape[\3]", " and ".join(conditions))
    said = f"sizes that may differ from the example's: {', '.join(sizes) or 'none'}"
    notes.append(f"{said}, as long as {limits}" if sizes and limits else said)
    return program


def _export(module: nn.Module, given: Arguments, fixed: Container[str] | None) -> ExportedProgram:
    """The program with all sizes free but those named, or with none if that is None."""
    said = io.StringIO()  # where it fails, torch prints whole graphs
    # Contiguous: a slice's strides would become part of the program. And new: where an attempt
    # fails, torch leaves its sizes marked as free.
    given = given.copies()
    shapes = None if fixed is None else _free_sizes(module, given, fixed)
    try:
        with (
            generators_kept(),
            redirect_stderr(said),
            without_logs(),
            warnings.catch_warnings(),
            torch.no_grad(),
        ):
            # Recurrent layers do that.
            warnings.filterwarnings("ignore", message=".*_flat_weights.* were assigned during")
            program = torch.export.export(
                module, given.args, dict(given.kwargs), strict=False, dynamic_shapes=shapes
            )
    except _ON_DATA as error:
        raise DataDependent(one_line(error)) from error
    except Exception as error:
        raise Impossible(one_line(error)) from error
    sys.stderr.write(said.getvalue())
    return program


def _free_sizes(module: nn.Module, given: Arguments, fixed: Container[str]) -> Any:
    """All sizes free but those named, for each argument by its name."""

    def free(path: Any, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return None
        name = f"L{pytree.keystr(path)}.size()"
        return {d: Dim.STATIC if f"{name}[{d}]" in fixed else Dim.AUTO for d in range(value.dim())}

    bound = signature_of(module, given).bind(*given.args, **given.kwargs)
    return pytree.tree_map_with_path(free, dict(bound.arguments))
