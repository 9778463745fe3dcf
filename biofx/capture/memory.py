"""Which results share memory with an argument: views, and what is changed in place."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn

from biofx.capture.private import memory_of
from biofx.copying.nested import is_proxy, leaves, parts

# Key of `node.meta`: which of its arguments the result shares memory with, by place; None for none.
SHARES = "biofx_shares_memory"
# Another: an object of the model that keeps the result when the run is over, by its attribute.
KEPT = "biofx_kept"


def kept_tensors(module: nn.Module, seen: set[int]) -> Iterator[tuple[str, Tensor]]:
    """(attribute, tensor) of what a module holds itself, in lists and other objects too.

    Args:
        module: of the model.
        seen: ids of objects that have been looked into; grows.
    """
    if isinstance(module, torch.jit.ScriptModule):
        return
    held = {key: value for key, value in vars(module).items() if key not in _REGISTRIES}
    waiting = [*held.items(), *module._buffers.items()]
    while waiting:
        key, value = waiting.pop()
        if is_proxy(value):
            continue
        if isinstance(value, Tensor):
            yield key, value
        elif not isinstance(value, _PLAIN) and id(value) not in seen:
            seen.add(id(value))
            if isinstance(value, set):
                value = list(value)
            waiting += [(key, item) for _, item in parts(value) or ()]


_PLAIN = (bool, int, float, str, type(None))
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
