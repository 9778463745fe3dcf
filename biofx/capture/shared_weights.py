"""Weights that a run shares with the model, as long as it only reads them."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from biofx.capture.private import memory_of, without_functions
from biofx.copying.nested import tensors

# Parameters in storages of up to so many bytes are copied, which takes no time.
_SMALL = 2**20
# Calls that give the address of a tensor's memory to code that PyTorch does not see.
_GIVES_MEMORY = frozenset({
    "numpy", "__array__", "data_ptr", "untyped_storage", "storage", "__dlpack__",
    "__cuda_array_interface__",
})  # fmt: skip


class WeightWritten(BaseException):
    """A run is about to write to a weight that it shares with the model."""


class SharedWeights:
    """Which weights a run shares with the model, and a watch over them.

    Large parameters need not be copied for a run that only reads them, which is nearly every run.
    The others are stopped before they write, and have to be run again on copies.

    Args:
        above: parameters in storages of more bytes are shared.

    Attributes:
        written: a run was stopped, whether or not the model's code has caught the exception.
    """

    def __init__(self, *, above: float = _SMALL) -> None:
        self.above = above
        self._storages: set[int] = set()
        self.written = False

    def share(self, tensor: Tensor) -> bool:
        """Whether to share a tensor of the model, which is watched then."""
        storage = tensor.untyped_storage()
        if not isinstance(tensor, nn.Parameter) or storage.nbytes() <= self.above:
            return False
        self._storages.add(storage._cdata)
        return True

    def check_operation(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Stop before an operation of PyTorch that writes to a shared weight.

        Raises:
            WeightWritten: this is one.
        """
        schema = getattr(func, "_schema", None)
        if not self._storages or schema is None or not schema.is_mutable:
            return
        given = dict(zip([argument.name for argument in schema.arguments], args, strict=False))
        given.update(kwargs)
        for argument in schema.arguments:
            alias = argument.alias_info
            if alias is not None and alias.is_write:
                self._check(given.get(argument.name))

    def check_call(self, func: Any, args: tuple[Any, ...]) -> None:
        """Stop before a call of torch's API that gives away the memory of a shared weight.

        Raises:
            WeightWritten: this is one.
        """
        if not self._storages:
            return
        name = getattr(func, "__name__", "")
        if name == "__get__":  # a property
            name = getattr(getattr(func, "__self__", None), "__name__", "")
        if name in _GIVES_MEMORY:
            self._check(args[:1])

    def _check(self, value: Any) -> None:
        with without_functions():
            for tensor in tensors(value):
                if memory_of(tensor) in self._storages:
                    self.written = True
                    raise WeightWritten
