"""Where in the user's code, and in which modules, a node was called."""

import functools
import linecache
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import fx, nn

from biofx.synapses import original_class

_TORCH = f"{Path(torch.__file__).parent}{os.sep}"
_BIOFX = f"{Path(__file__).parents[1]}{os.sep}"


def locate(
    node: fx.Node, modules: Sequence[tuple[str, nn.Module]], place: tuple[str, int, str] | None
) -> None:
    """Write down in a node's `meta` in which modules and on which line it was called."""
    node.meta["nn_module_stack"] = {
        name: (name, f"{kind.__module__}.{kind.__qualname__}")
        for name, module in modules
        for kind in (original_class(module),)
    }
    if place is not None:
        file, line, function = place
        code = linecache.getline(file, line).strip()
        node.meta["stack_trace"] = f'File "{file}", line {line}, in {function}\n    {code}'


def place_of(node: fx.Node) -> str:
    """``file.py:12`` of the user's code that a node stands for, or ""."""
    trace = node.meta.get("stack_trace", "")
    if not trace.startswith('File "'):
        return ""
    file, _, rest = trace[len('File "') :].partition('"')
    line = rest.partition("line ")[2].partition(",")[0]
    return f"{file.rpartition('/')[2]}:{line}" if line else ""


def user_frame() -> tuple[str, int, str] | None:
    """(file, line, function) of the innermost frame that is neither PyTorch's nor biofx's."""
    frame = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        if is_user_file(code.co_filename):
            return code.co_filename, frame.f_lineno, code.co_name
        frame = frame.f_back  # type: ignore[assignment]
    return None


def user_place() -> str:
    """``file:line`` of `user_frame`; "" without one."""
    frame = user_frame()
    return "" if frame is None else f"{Path(frame[0]).name}:{frame[1]}"


@functools.cache
def is_user_file(name: str) -> bool:
    """Whether a file of code is neither PyTorch's nor biofx's."""
    return not name.startswith((_TORCH, _BIOFX, "<"))
