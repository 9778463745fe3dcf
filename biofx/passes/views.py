"""Views: which values share memory, so that what is written into one is seen in the others."""

import operator
from collections.abc import Iterator

import torch
from torch import fx

from biofx.capture.memory import SHARES

_words = str.split
# Where nobody has seen the memory (without example inputs), these are taken for views.
_VIEWS = frozenset(
    _words("""
    view reshape flatten unflatten ravel transpose permute squeeze unsqueeze expand getitem chunk
    split unbind select narrow t movedim swapaxes diagonal view_as detach contiguous to hsplit
    vsplit dsplit tensor_split expand_as split_with_sizes type float half
    """)
)


def base_of(node: fx.Node) -> fx.Node | None:
    """The argument that a node's value shares memory with, or None."""
    inputs = node.all_input_nodes
    if SHARES in node.meta:
        place = node.meta[SHARES]
        return inputs[place] if place is not None and place < len(inputs) else None
    name = str(getattr(node.target, "__name__", node.target))
    called = node.op in ("call_function", "call_method")
    view = node.target is operator.getitem or name.removesuffix("_") in _VIEWS
    in_place = name.endswith("_") and not name.endswith("__")
    return inputs[0] if called and inputs and (view or in_place) else None


# Python's operators that change their first argument.
_IN_PLACE = frozenset(
    _words("iadd isub imul itruediv ifloordiv imatmul iand ior ixor ipow setitem")
)


def changed_by(node: fx.Node) -> fx.Node | None:
    """The argument that an operation writes into, if it does."""
    if node.op not in ("call_function", "call_method"):
        return None
    out = node.kwargs.get("out")
    if isinstance(out, fx.Node):
        return out
    name = str(node.target) if node.op == "call_method" else str(_name(node.target))
    writes = (name.endswith("_") and not name.endswith("__")) or name in _IN_PLACE
    base = node.args[0] if node.args else node.kwargs.get("input")
    return base if writes and isinstance(base, fx.Node) else None


def _name(target: object) -> object:
    if isinstance(target, torch._ops.OpOverload):
        return target._schema.name
    return getattr(target, "__name__", "")


def bases(value: object) -> Iterator[fx.Node]:
    """A node, and those that it is a view of."""
    node = value if isinstance(value, fx.Node) else None
    while node is not None:
        yield node
        node = base_of(node)


def sharing(node: fx.Node) -> Iterator[fx.Node]:
    """The other nodes whose values share memory with a node's."""
    *_, first = bases(node)
    waiting = [first]
    while waiting:
        one = waiting.pop()
        if one is not node:
            yield one
        waiting += [user for user in one.users if base_of(user) is one]
