"""Which results share memory with an argument: views, and what is changed in place."""

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, fx

from biofx.capture.private import memory_of
from biofx.copying.nested import leaves

# Key of `node.meta`: which of its arguments the result shares memory with, by place; None for none.
SHARES = "biofx_shares_memory"


def note_memory(
    node: fx.Node, given: Any, result: Any, holders: Callable[[Any], Iterable[fx.Node | None]]
) -> None:
    """Note which argument a result shares memory with; nothing where that cannot be seen.

    Args:
        node: of the operation.
        given, result: the values themselves.
        holders: gives the nodes that a value may be an argument as.
    """
    made = {memory_of(leaf) for _, leaf in leaves(result) if isinstance(leaf, Tensor)}
    if None in made:
        return
    node.meta[SHARES] = None
    for _, leaf in leaves(given) if made else ():
        if isinstance(leaf, Tensor) and memory_of(leaf) in made:
            known = set(holders(leaf))
            places = [place for place, n in enumerate(node.all_input_nodes) if n in known]
            if places:
                node.meta[SHARES] = places[0]
                return
