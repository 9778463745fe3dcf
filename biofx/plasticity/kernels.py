"""Runs elementwise functions over parameters: as they are written, or compiled into one pass.

A rule's mathematics is a pure function on tensors. `Kernels` evaluates it with plain tensor
operations. `CompiledKernels` hands the same function to `torch.compile`, which fuses it, and the
drawing of its random numbers, into one loop over memory. Compiled kernels are generic in shape:
a parameter is presented as one run of elements where its memory and its indices allow it, so that
one compilation serves all layers.

Draws of bits and uniforms, and +, −, ×, ÷, agree to the bit between the two; exp, log and the like
may differ in the last place.
"""

import functools
import os
import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor
from torch.fx.experimental import _config as shapes

from biofx.plasticity.layout import arrange
from biofx.plasticity.shards import Shard

# function(index, tensors, inputs) -> one tensor for each that is written
Function = Callable[[Tensor, Mapping[str, Tensor], Any], tuple[Tensor, ...]]
When = bool | Literal["auto"]

# Synapses of a model from which on compiling (some 10 s, once) pays within a few hundred steps.
WORTHWHILE = 500_000
PIECE = 2**16


class Kernels:
    """Evaluates functions as they are written."""

    compiled = False

    def map(
        self,
        function: Function,
        tensors: Mapping[str, Tensor],
        *,
        writes: tuple[str, ...],
        shard: Shard,
        inputs: Any = (),
    ) -> None:
        """Write ``function(index, tensors, inputs)`` into some of the tensors.

        Args:
            function: elementwise; defined at module level or cached, for its identity is that of
                a compiled kernel.
            tensors: of the shard's size, sharing no memory with each other.
            writes: the names of those that receive the function's values.
            shard: tells the global index of each element.
            inputs: dictionaries and tuples of tensors that broadcast to the size.
        """
        index = shard.index(tensors[writes[0]].device)
        for name, value in zip(writes, function(index, tensors, inputs), strict=True):
            tensors[name].copy_(value)

    def fill(self, targets: Sequence[Tensor], mask: Tensor, value: float, *, shard: Shard) -> None:
        """Set the masked elements of every target to a value."""
        for target in targets:
            target.masked_fill_(mask, value)

    def sum_abs(self, weight: Tensor) -> Tensor:
        """Σ|w| as a float64 tensor of shape () (float32 on devices that have no float64)."""
        wide = torch.float32 if weight.device.type == "mps" else torch.float64
        # In pieces, for float64 copies of the weights are made on the way.
        parts = weight.reshape(-1).split(PIECE)
        return torch.stack([torch.linalg.vector_norm(p, 1, dtype=wide) for p in parts]).sum()


class CompiledKernels(Kernels):
    """Evaluates functions compiled; where that fails, as they are written, with a warning."""

    compiled = True

    def map(
        self,
        function: Function,
        tensors: Mapping[str, Tensor],
        *,
        writes: tuple[str, ...],
        shard: Shard,
        inputs: Any = (),
    ) -> None:
        """As `Kernels.map`, in one pass."""
        # torch.compile treats sizes 0 and 1 as special cases: not worth a kernel each.
        if self.compiled and tensors[writes[0]].numel() > 1:
            layout = arrange(tensors, inputs, lead=writes[0], shard=shard)
            if self._run(_elementwise(function, writes, layout.strides is None), *layout):
                return
        super().map(function, tensors, writes=writes, shard=shard, inputs=inputs)

    def fill(self, targets: Sequence[Tensor], mask: Tensor, value: float, *, shard: Shard) -> None:
        """As `Kernels.fill`, in one pass."""
        if not self.compiled or not targets:
            super().fill(targets, mask, value, shard=shard)
            return
        tensors = {str(place): target for place, target in enumerate(targets)}
        number = torch.tensor(value, device=mask.device)
        inputs = {"mask": mask, "value": number}
        self.map(_filled, tensors, writes=tuple(tensors), shard=shard, inputs=inputs)

    def sum_abs(self, weight: Tensor) -> Tensor:
        """As `Kernels.sum_abs`, in one pass without a copy."""
        found: list[Tensor] = []
        if (
            self.compiled
            and weight.numel() > 1
            and weight.is_contiguous()
            and weight.device.type != "mps"
            and self._run(_sum_abs(), weight.view(-1), found=found)
        ):
            return found[0]
        return super().sum_abs(weight)

    def _run(self, kernel: Any, *arguments: Any, found: list[Tensor] | None = None) -> bool:
        """Call a kernel, compiling it if need be; False if that has failed."""
        try:
            if kernel in _READY:
                result = kernel(*arguments)
            else:
                # Sizes that happen to be equal this time must not have to be so the next.
                with _status(), shapes.patch(use_duck_shape=False):  # type: ignore[attr-defined]
                    result = kernel(*arguments)
                _READY.add(kernel)
        except Exception as error:
            if kernel in _READY:
                raise
            self.compiled = False
            warnings.warn(
                f"plasticity kernels run uncompiled, and slower, for torch.compile failed: {error}",
                RuntimeWarning,
                stacklevel=2,
            )
            return False
        if found is not None:
            found.append(result)
        return True


_READY: set[Any] = set()


def kernels_for(when: When, synapses: int, device: torch.device) -> Kernels:
    """The kernels to use.

    Args:
        when: True, False or "auto": where there is a compiler and enough to do.
        synapses: how many there are in all.
        device: where they are.
    """
    if when is True or (when == "auto" and synapses >= WORTHWHILE and can_compile(device)):
        return CompiledKernels()
    return Kernels()


@functools.cache
def can_compile(device: torch.device) -> bool:
    """Whether `torch.compile` finds the tools that it needs for a device."""
    if device.type == "cpu":
        return any(shutil.which(c) for c in (os.environ.get("CXX", ""), "g++", "clang++") if c)
    if device.type in ("cuda", "xpu"):
        from torch.utils._triton import has_triton

        return bool(has_triton())
    return False


@functools.cache
def _elementwise(function: Function, writes: tuple[str, ...], flat: bool) -> Any:
    """A kernel that writes a function's values into tensors arranged by `arrange`."""

    def run(
        tensors: dict[str, Tensor],
        inputs: Any,
        first: Tensor,
        strides: Tensor,
    ) -> None:
        like = tensors[writes[0]]
        if flat:
            index = torch.arange(like.numel(), dtype=first.dtype, device=like.device) + first
        else:
            index = first
            for axis, length in enumerate(like.shape):
                line = torch.arange(length, dtype=first.dtype, device=like.device) * strides[axis]
                index = index + line.view([-1] + [1] * (like.dim() - 1 - axis))
        for name, value in zip(writes, function(index, tensors, inputs), strict=True):
            tensors[name].copy_(value)

    return _compile(run, function.__name__)


@functools.cache
def _sum_abs() -> Any:
    def run(weight: Tensor) -> Tensor:
        return weight.abs().sum(dtype=torch.float64)

    return _compile(run, "sum_abs")


def _filled(index: Tensor, tensors: Mapping[str, Tensor], inputs: Any) -> tuple[Tensor, ...]:
    mask, value = inputs["mask"], inputs["value"]
    return tuple(torch.where(mask, value.to(t.dtype), t) for t in tensors.values())


def _compile(function: Any, name: str) -> Any:
    # Dynamo counts recompilations by code object: each kernel gets one of its own.
    function.__code__ = function.__code__.replace(co_name=name)
    return torch.compile(function, dynamic=True, fullgraph=True)


def _status() -> AbstractContextManager[Any]:
    """Tells a person at a terminal why training has not begun yet."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        return nullcontext()
    return console.status("biofx: compiling plasticity kernels (once; kept for later runs)")
