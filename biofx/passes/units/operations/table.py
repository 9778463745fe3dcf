"""What each operation of torch's does to units: a table of functions over id tensors.

A function takes the step (see `Step`) and the arguments as they stand in the graph, under the names
that torch gives them, and returns the ids of the result. What is not in the table is not followed.
"""

from collections.abc import Callable

from biofx.passes.units.ids import Ids

OPERATIONS: dict[str, Callable[..., Ids]] = {}

words = str.split


# Which arguments an operation takes for their shape or type alone.
SHAPE_ONLY: dict[str, slice] = {}


def shape_only(where: slice, *names: str) -> None:
    """Say which arguments of some operations have nothing of theirs in the result."""
    SHAPE_ONLY.update(dict.fromkeys(names, where))


def follows(*names: str) -> Callable[[Callable[..., Ids]], Callable[..., Ids]]:
    """Enter a function into the table."""

    def enter(function: Callable[..., Ids]) -> Callable[..., Ids]:
        for name in names:
            OPERATIONS[name] = function
        return function

    return enter
