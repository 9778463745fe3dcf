"""PT2: the archive of `torch.export`, for AOTInductor, ExecuTorch and `torch.export.load`."""

import inspect
import io
import sys
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim
from torch.utils import _pytree as pytree

from biofx.errors import ExportError
from biofx.export.check import check
from biofx.export.plain import Arguments, plain_copy
from biofx.passes.fold import FoldReport
from biofx.transform import info


def write(bio: nn.Module, path: Path, arguments: Arguments | None, fold: bool) -> FoldReport | None:
    """Export a transformed model with `torch.export` and save it.

    The first dimension of every tensor argument may vary in use, unless the model fixes it or it is
    1 in the example.

    Raises:
        ExportError: there are no example inputs, or `torch.export` cannot express the model.
    """
    if arguments is None:
        raise ExportError("format 'pt2' needs example_inputs (on the command line: --input)")
    args, kwargs = pytree.tree_map_only(Tensor, Tensor.detach, arguments)
    model, report = plain_copy(bio, fold=fold, arguments=arguments)
    model = _by_name(model)
    try:
        given = inspect.signature(type(model).forward).bind(model, *args, **kwargs).arguments
        given.pop(next(iter(given)))
        shapes = pytree.tree_map(_free, given)
        with redirect_stderr(io.StringIO()) as said:  # where it fails, torch prints whole graphs
            program = torch.export.export(
                model, args, dict(kwargs), dynamic_shapes=shapes, strict=False
            )
        sys.stderr.write(said.getvalue())
        with path.open("wb") as file:
            torch.export.save(program, file)
        loaded: Any = torch.export.load(str(path)).module()
    except Exception as error:  # torch.export raises errors of many kinds
        lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
        opaque = "; ".join(
            f"{name or 'the model'} stays Python: {reason}"
            for name, reason in info(bio).opaque.items()
        )
        raise ExportError(
            f"torch.export cannot express the model: {type(error).__name__}: "
            f"{' '.join(lines[:2])[:300]}" + (f" ({opaque[:300]})" if opaque else "")
        ) from error
    check(bio, loaded, arguments, folded=report is not None and report.changed, same_random=False)
    return report


def _by_name(model: nn.Module) -> nn.Module:
    """The same, called as any module is: `torch.export` binds arguments of graphs by place."""
    if not isinstance(model, fx.GraphModule):
        return model
    cls = type(type(model).__name__, (nn.Module,), {"forward": type(model).forward})
    plain: nn.Module = object.__new__(cls)
    plain.__dict__.update(model.__dict__)
    return plain


def _free(value: Any) -> Any:
    return {0: Dim.AUTO} if isinstance(value, Tensor) and value.dim() else None
