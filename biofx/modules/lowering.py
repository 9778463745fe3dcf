"""Operations of biofx written in PyTorch's own, so that a graph runs where biofx is not."""

import functools
import keyword
import re

from torch import Tensor, fx


def group_sum(x: Tensor, gamma: int, axis: int) -> Tensor:
    """Sum Γ neighbours along an axis: (…, N, …) becomes (…, N/Γ, …)."""
    inner = axis if axis < 0 else axis + 1
    total: Tensor = x.unflatten(axis, (-1, gamma)).sum(inner)
    return total


def group_repeat(x: Tensor, gamma: int, axis: int) -> Tensor:
    """Repeat every element Γ times along an axis: (…, N/Γ, …) becomes (…, N, …)."""
    return x.repeat_interleave(gamma, axis)


def lower(graph: fx.Graph) -> None:
    """Replace each operation of biofx in a graph by what it is made of."""
    for node in list(graph.nodes):
        if node.target not in (group_sum, group_repeat):
            continue
        x, gamma, axis = node.args
        with graph.inserting_before(node):
            if node.target is group_sum:
                parts = graph.call_method("unflatten", (x, axis, (-1, gamma)))
                fresh = graph.call_method("sum", (parts, axis if axis < 0 else axis + 1))
            else:
                fresh = graph.call_method("repeat_interleave", (x, gamma, axis))
        fresh.meta.update(node.meta)
        node.replace_all_uses_with(fresh)
        graph.erase_node(node)


def safe_target(target: str) -> str:
    """A target of a graph in names that a GraphModule can hold: users may take any."""
    return ".".join(map(_safe, target.split(".")))


_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def _safe(part: str) -> str:
    """A part of a name as an identifier that no GraphModule has."""
    free = _PLAIN.fullmatch(part) and part not in _taken()
    if part.isdigit() or (free and not keyword.iskeyword(part)):
        return part
    return "quoted_" + part.encode().hex()


@functools.cache
def _taken() -> frozenset[str]:
    """Names of a GraphModule's own attributes, those of objects included."""
    return frozenset(dir(fx.GraphModule({}, fx.Graph())))
