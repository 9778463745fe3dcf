"""Which results share memory with an argument: views, and what is changed in place."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch import Tensor, fx, nn

from biofx.capture.private import memory_of
from biofx.copying.nested import leaves

# Key of `node.meta`: which of its arguments the result shares memory with, by place; None for none.
SHARES = "biofx_shares_memory"
# Another: an object of the model that keeps the result when the run is over, by its attribute.
KEPT = "biofx_kept"


def kept_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """(attribute, tensor) of what a module holds itself, in lists and the like too."""
    others = {key: value for key, value in vars(module).items() if key not in _REGISTRIES}
    for key, value in (others | module._buffers).items():
        if value is not None and not isinstance(value, _PLAIN):
            yield from ((key, leaf) for _, leaf in leaves(value) if isinstance(leaf, Tensor))


_PLAIN = (bool, int, float, str)
_REGISTRIES = frozenset(vars(nn.Module()))


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
