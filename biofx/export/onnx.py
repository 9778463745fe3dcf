"""ONNX, from the program that `torch.export` makes."""

import importlib.util
import io
import warnings
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx.experimental.symbolic_shapes import is_concrete_int

from biofx.capture import Arguments
from biofx.errors import ExportError
from biofx.export.attempt import Attempt, Impossible, one_line, without_logs
from biofx.export.check import NotCompared, result_tensors
from biofx.export.pt2 import exported

NAME, TAKES_NO_INPUTS = "ONNX", False
ADVICE = ADVICE_NO_INPUTS = "Try format 'pt2', which takes more operations"
LARGEST = 2**31 - 1  # bytes of one protobuf message


def attempts(model: nn.Module, arguments: Arguments | None) -> Iterator[Attempt]:
    """The ways to make an ONNX file of a plain model.

    Raises:
        ExportError: what writes ONNX is not installed.
    """
    assert arguments is not None
    missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if missing:
        raise ExportError(f"format 'onnx' needs {' and '.join(missing)}; pip install 'biofx[onnx]'")
    for how, make, _, notes in exported(model, arguments, checked=False):

        def saved(make: Callable[[], Any] = make) -> bytes:
            program = make()
            try:
                with redirect_stdout(io.StringIO()), without_logs(), warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # of the exporter's own deprecated calls
                    found = torch.onnx.export(program, dynamo=True, verbose=False)
                assert found is not None
                proto = found.model_proto
                _write_sizes(proto.graph, program)
                size = proto.ByteSize()
            except Exception as error:
                raise Impossible(one_line(error)) from error
            if size > LARGEST:
                raise Impossible(f"the model takes {size:,} bytes; one ONNX file holds 2 GB")
            data: bytes = proto.SerializeToString()
            return data

        yield Attempt(how, saved, _loaded, loose=True, notes=notes)


def _write_sizes(graph: Any, program: ExportedProgram) -> None:
    """Give the inputs the sizes that are fixed, of which the exporter makes names."""
    names = program.graph_signature.user_inputs
    values = [n.meta["val"] for n in program.graph.find_nodes(op="placeholder") if n.name in names]
    tensors = [value for value in values if isinstance(value, Tensor)]
    for given, tensor in zip(graph.input, tensors, strict=True):
        for dim, length in zip(given.type.tensor_type.shape.dim, tensor.shape, strict=True):
            if is_concrete_int(length):
                dim.dim_value = int(length)


def _loaded(data: bytes) -> Callable[[Arguments], Any]:
    try:
        import onnxruntime
    except ImportError as error:
        raise NotCompared("onnxruntime is not installed") from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    inputs = session.get_inputs()

    def run(given: Arguments) -> Any:
        values = list(result_tensors((given.args, dict(given.kwargs))))
        if len(inputs) != len(values):
            raise RuntimeError(
                f"it takes {len(inputs)} inputs, not the {len(values)} tensors given"
            )
        feed = {i.name: v.cpu().numpy() for i, v in zip(inputs, values, strict=True)}
        return [torch.from_numpy(value.copy()) for value in session.run(None, feed)]

    return run
