"""Operations of biofx written in PyTorch's own, so that a graph runs where biofx is not."""

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
