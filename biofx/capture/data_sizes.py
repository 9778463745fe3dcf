"""Which sizes of tensors depend on data: how many rows a mask picks, how much is not zero."""

from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from biofx.capture.private import memory_of
from biofx.copying.nested import replaced, tensors

# How much longer an axis is made to see what follows from it. What divides most lengths divides it.
_MORE = 5040


class DataSizes:
    """The axes of tensors that are as long as data has it, in a run whose operations are all seen.

    Args:
        depends: tells whether a value depends on data at all.

    Attributes:
        numbers: how many tensors operations gave, where that depends on data.
    """

    def __init__(self, depends: Callable[[Any], bool]) -> None:
        self._depends = depends
        self.numbers: set[int] = set()
        # By place in memory: a view is one object below autograd, and another above.
        self._axes: dict[tuple[Any, ...], frozenset[int]] = {}
        self._alive: list[Tensor] = []  # so that no other tensor gets their memory

    def axes(self, tensor: Tensor) -> frozenset[int]:
        """The axes of a tensor whose lengths depend on data."""
        return self._axes.get(_place(tensor), frozenset()) if self._axes else frozenset()

    def see(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any) -> None:
        """Note which axes of an operation's results are as long as data has it.

        Some operations find as much as there is. For all others, these are the axes that grow when
        such axes of their arguments do: the operation is asked for the shapes of its results on
        tensors that have no values, and are longer there.

        Args:
            func: the operation, an overload of PyTorch's.
            args, kwargs: what it was called with.
            result: what it gave.
        """
        picks = func is torch.ops.aten.index.Tensor
        if picks and self._depends([index for index in args[1] if _is_mask(index)]):
            args = (args[0], [part for index in args[1] for part in _places(index)])
        elif torch.Tag.dynamic_output_shape in func.tags and not picks:
            if self._depends((args, kwargs)):
                axis = args[1] if func is torch.ops.aten.unique_dim.default else 0
                for tensor in tensors(result):
                    self._note(tensor, {axis} if tensor.dim() else ())
            return
        elif not any(map(self.axes, tensors((args, kwargs)) if self._axes else ())):
            return
        made = tensors(result)
        longer = self._longer_results(func, args, kwargs)
        if longer is not None and len(longer) != len(made):
            self.numbers.add(len(made))
            return
        for tensor, other in zip(made, longer or made, strict=True):
            grown = [one != two for one, two in zip(tensor.shape, other.shape, strict=True)]
            self._note(tensor, {n for n, more in enumerate(grown) if more or longer is None})

    def _longer_results(self, func: Any, args: Any, kwargs: Any) -> list[Tensor] | None:
        """What an operation gives for longer arguments; None where that cannot be told.

        Then it works on these lengths alone, or its shapes come from values.
        """
        if func.namespace != "aten":
            return None
        try:
            return tensors(func(*replaced(args, self._longer), **replaced(kwargs, self._longer)))
        except Exception:
            return None

    def _note(self, tensor: Tensor, axes: Collection[int]) -> None:
        if axes and (place := _place(tensor)):
            self._axes[place] = frozenset(axes)
            self._alive.append(tensor)

    def _longer(self, tensor: Tensor) -> Tensor:
        axes = self.axes(tensor)
        shape = [n + _MORE if axis in axes else n for axis, n in enumerate(tensor.shape)]
        return torch.empty(shape, dtype=tensor.dtype, device="meta")


def _place(tensor: Tensor) -> tuple[Any, ...]:
    memory = memory_of(tensor)
    if memory is None or tensor.layout is not torch.strided:
        return ()
    return memory, tensor.storage_offset(), tensor.shape, tensor.stride()


def _is_mask(index: Tensor | None) -> bool:
    return index is not None and index.dtype in (torch.bool, torch.uint8)


def _places(index: Tensor | None) -> list[Tensor | None]:
    """An index, or for a mask as many numbers along each of its axes as it may pick."""
    if index is None or not _is_mask(index):
        return [index]
    count = int(index.count_nonzero()) + _MORE
    return [torch.empty(count, dtype=torch.int64, device="meta")] * index.dim()
