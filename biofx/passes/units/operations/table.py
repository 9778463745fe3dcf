"""What each operation of torch's does to units: a table of functions over id tensors.

A function takes the step (see `Step`) and the arguments as they stand in the graph, under the names
that torch gives them, and returns the ids of the result. What is not in the table is not followed.
"""

from collections.abc import Callable

from biofx.passes.units.ids import Ids

OPERATIONS: dict[str, Callable[..., Ids]] = {}

words = str.split


def follows(*names: str) -> Callable[[Callable[..., Ids]], Callable[..., Ids]]:
    """Enter a function into the table."""

    def enter(function: Callable[..., Ids]) -> Callable[..., Ids]:
        for name in names:
            OPERATIONS[name] = function
        return function

    return enter
