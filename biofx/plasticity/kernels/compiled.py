"""`CompiledKernels`: a rule's functions, each compiled into one pass over memory.

A parameter whose memory and indices are one run, as nearly all are, is presented as a matrix, whose
kernel needs no guards: a call takes some 5 µs instead of 80. Others (channels-last weights, values
per unit, shards along a later axis) go through `torch.compile` and its guards, in as few dimensions
as they allow.
"""

import functools
import math
import os
import shutil
import sys
import threading
import warnings
from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor

from biofx.garbage import uncollected
from biofx.plasticity.kernels.arena import SMALL, Arena, added
from biofx.plasticity.kernels.base import NONE, KernelCall, Kernels, Tensors, filling
from biofx.plasticity.kernels.layout import arrange, as_bytes, line, matrix, offset, one_run
from biofx.plasticity.kernels.ready import Ready, ReadyRows
from biofx.plasticity.kernels.tracing import (
    Kernel,
    block_kernel,
    matrix_kernel,
    rows_kernel,
    sums_kernel,
    trace,
)
from biofx.plasticity.numerics.shards import Shard

When = bool | Literal["auto"]

# Seconds that compiling takes, and that a step is slower without, in all and per synapse: roughly,
# for they only say after how many steps to compile, the same on every machine.
COMPILING, SLOWER, SLOWER_EACH = 5.0, 5e-4, 3e-8

# All that this process has compiled, for any scheduler.
KERNELS: dict[Hashable, Kernel] = {}
_COMPILING = threading.Lock()

_PLAIN = frozenset({Tensor, torch.nn.Parameter})


class CompiledKernels(Kernels):
    """Evaluates functions compiled; where that fails, as they are written, with a warning.

    Args:
        after: steps that are taken before anything is compiled. Steps, not seconds: the numbers
            that a run computes must not depend on how fast its machine is.
    """

    def __init__(self, after: int = 0) -> None:
        self.after: float = after
        self.compiled = after == 0

    def begin(self, step: int) -> None:
        """A step begins, counted from 1, be it the first one after resuming."""
        self.compiled = step > self.after

    def do(self, work: KernelCall, *, shard: Shard | Arena) -> None:
        """As `Kernels.do`, in one pass."""
        if not _PLAIN.issuperset(map(type, work.leaves)):
            # A kernel knows its arguments by their type of number: what looks like a tensor of
            # that type may have other memory behind it, or none.
            super().do(work, shard=shard)
            return
        # Kernels may be ready though the run has gone back to before it was compiled.
        ready = shard.ready.get(work.spec) if self.compiled else None
        if ready is None or not ready.run(work.leaves):
            self._find(work, shard)

    def _find(self, work: KernelCall, shard: Shard | Arena) -> None:
        """Do what no kernel is ready for, and make one ready for the next time."""
        spec, leaves = work
        if isinstance(shard, Arena):
            if not (self.compiled and self._find_rows(work, shard)):
                super().do(work, shard=shard)
            return
        first = offset(shard, leaves[0].device)
        size = matrix(work.target.shape) if one_run(leaves, shard) else None
        done = False
        # Sizes 0 and 1 would be compiled as special cases: not worth a kernel each.
        if not self.compiled or work.target.numel() < 2:
            pass
        elif size is not None:
            kinds = tuple([(leaf.dtype, leaf.dim() > 0) for leaf in leaves])
            columns = line(size[1], first.device)
            parts = [as_bytes(leaf).view(size) if leaf.dim() else leaf for leaf in leaves]
            make = functools.partial(matrix_kernel, spec, kinds)
            key = ("matrix", spec, kinds, first.device, first.dtype)
            done = self._call(key, make, (first, columns, *parts))
            if done:
                shard.ready[spec] = Ready(KERNELS[key], kinds, shard.size, size, first, columns)
        else:
            lead = spec.names.index(spec.writes[0])
            view, steps = arrange(leaves, lead=lead, shard=shard)
            blocks = [view(leaf) for leaf in leaves]
            make = functools.partial(block_kernel, spec)
            # Guards tell everything else apart.
            done = self._call(("blocks", spec), make, (first, steps, *blocks))
        if not done:
            super().do(work, shard=shard)

    def _find_rows(self, work: KernelCall, arena: Arena) -> bool:
        """As `_find`, over the rows of an arena; False if no kernel is to be had."""
        spec, leaves = work
        if not all(map(arena.holds, leaves)):
            return False
        kinds = tuple([(leaf.dtype, _extent(leaf)) for leaf in leaves])
        columns = line(arena.size[1], arena.first.device)
        parts = [as_bytes(leaf) for leaf in leaves]
        make = functools.partial(rows_kernel, spec, kinds)
        key = ("rows", spec, kinds, arena.first.device)
        done = self._call(key, make, (arena.first, columns, *parts))
        if done:
            arena.ready[spec] = ReadyRows.of(KERNELS[key], leaves, arena.first, columns)
        return done

    def fill(
        self, targets: Sequence[Tensor], mask: Tensor, value: float, *, shard: Shard | Arena
    ) -> None:
        """As `Kernels.fill`, in one pass."""
        if not self.compiled or not targets:
            super().fill(targets, mask, value, shard=shard)
            return
        tensors = {str(place): target for place, target in enumerate(targets)}
        values = [torch.tensor(value, device=mask.device)] * len(tensors)
        self.do(filling(tensors, mask, values), shard=shard)

    def sum_abs(self, weight: Tensor) -> Tensor:
        """As `Kernels.sum_abs`, in one pass without a copy."""
        if weight.device.type != "mps":
            found = self._reduced(_sum_abs, weight, torch.float64)
            if found is not None:
                return found
        return super().sum_abs(weight)

    def max_abs(self, weight: Tensor) -> Tensor:
        """As `Kernels.max_abs`; of a large weight in half the time, which is worth a kernel."""
        if weight.numel() > SMALL and weight.dtype == torch.float32 and weight.device.type == "cpu":
            found = self._reduced(_max_bits, weight, torch.int32)
            if found is not None:
                return found.view(torch.float32)
        return super().max_abs(weight)

    def sum(
        self,
        function: Callable[[Tensor, Tensors], Tensor],
        weight: Tensor,
        inputs: Tensors,
        *,
        arena: Arena | None = None,
    ) -> Tensor:
        """As `Kernels.sum`, in one pass without a copy."""
        found = None
        if arena is not None:
            found = self._row_sums(function, weight, inputs, arena)
        elif weight.device.type != "mps":
            found = self._reduced(_summed(function, tuple(inputs)), weight, torch.float64, inputs)
        return super().sum(function, weight, inputs, arena=arena) if found is None else found

    def _reduced(
        self,
        function: Callable[..., Tensor],
        tensor: Tensor,
        dtype: torch.dtype,
        inputs: Tensors = NONE,
    ) -> Tensor | None:
        """A reduction to shape (), or None if no kernel is to be had."""
        if not self.compiled or tensor.numel() < 2 or not tensor.is_contiguous():
            return None
        # Not of shape (): PyTorch 2.14 takes such a float64 for a number of Python's.
        found = tensor.new_empty(1, dtype=dtype)

        def run(found: Tensor, line: Tensor, *inputs: Tensor) -> tuple[Tensor]:
            found.copy_(function(line, *inputs))
            return (line,)

        key = ("reduced", function, tensor.dtype, tensor.device)
        done = self._call(
            key, functools.partial(trace, run), (found, tensor.view(-1), *inputs.values())
        )
        return found[0] if done else None

    def _row_sums(
        self,
        function: Callable[[Tensor, Tensors], Tensor],
        weight: Tensor,
        inputs: Tensors,
        arena: Arena,
    ) -> Tensor | None:
        """Σ of each parameter in an arena, or None if no kernel is to be had."""
        leaves = (weight, *inputs.values())
        if not (self.compiled and all(map(arena.holds, leaves))):
            return None
        kinds = tuple([(leaf.dtype, _extent(leaf)) for leaf in leaves])
        columns = line(arena.size[1], weight.device)
        sums = torch.empty(arena.size[0], 1, dtype=torch.float64, device=weight.device)
        key = ("sums", function, tuple(inputs), kinds, weight.device)
        make = functools.partial(sums_kernel, function, tuple(inputs), kinds)
        if not self._call(key, make, (sums, arena.first, columns, arena.end, *leaves)):
            return None
        return added(sums.squeeze(1), arena.lengths)

    def _call(
        self,
        key: Hashable,
        make: Callable[[tuple[Tensor, ...]], Kernel],
        arguments: tuple[Tensor, ...],
    ) -> bool:
        """Call a kernel, making it if need be; False if that has failed."""
        kernel = KERNELS.get(key)
        if kernel is not None:
            kernel([*arguments])
            return True
        try:
            # The compiler's settings are those of all threads: they take turns.
            with _COMPILING, _status(), uncollected():
                kernel = KERNELS.get(key) or make(arguments)
                kernel([*arguments])
        except Exception as error:
            self.compiled, self.after = False, math.inf
            warnings.warn(
                f"plasticity kernels run uncompiled, and slower, for the compiler failed: {error}",
                RuntimeWarning,
                stacklevel=2,
            )
            return False
        KERNELS[key] = kernel
        return True


def kernels_for(when: When, synapses: int, device: torch.device) -> Kernels:
    """The kernels to use.

    Args:
        when: True, False or "auto": where there is a compiler, after `worthwhile` steps.
        synapses: how many there are in all.
        device: where they are.
    """
    if when is True:
        return CompiledKernels()
    if when == "auto" and can_compile(device):
        return CompiledKernels(worthwhile(synapses))
    return Kernels()


def worthwhile(synapses: int) -> int:
    """Steps of a run that is long enough for compiling to pay; 164 for a million synapses."""
    return math.ceil(COMPILING / (SLOWER + SLOWER_EACH * synapses))


@functools.cache
def can_compile(device: torch.device) -> bool:
    """Whether the compiler finds the tools that it needs for a device."""
    if device.type == "cpu":
        return any(shutil.which(c) for c in (os.environ.get("CXX", ""), "g++", "clang++") if c)
    if device.type in ("cuda", "xpu"):
        from torch.utils._triton import has_triton

        return bool(has_triton())
    return False


def _extent(leaf: Tensor) -> int:
    """0 for a scalar, 1 for one value per row, 2 for one per element."""
    return 0 if not leaf.dim() else 1 + (leaf.shape[1] > 1)


def _sum_abs(line: Tensor) -> Tensor:
    return line.abs().sum(dtype=torch.float64)


def _max_bits(line: Tensor) -> Tensor:
    # Bits of sizes are whole numbers in the same order, with NaN above all others: to compare them
    # takes a third of the time, for a processor need not look for NaN.
    return line.abs().view(torch.int32).amax()


@functools.cache
def _summed(
    function: Callable[[Tensor, Tensors], Tensor], names: tuple[str, ...]
) -> Callable[..., Tensor]:
    def summed(line: Tensor, *inputs: Tensor) -> Tensor:
        values = function(line, dict(zip(names, inputs, strict=True)))
        return values.sum(dtype=torch.float64)

    return summed


WHY = "biofx: compiling plasticity kernels (once; kept for later runs)"


def _status() -> AbstractContextManager[Any]:
    """Tells why training does not go on: in passing at a terminal, by one line elsewhere."""
    from rich.console import Console

    console = Console(stderr=True)
    if console.is_terminal:
        return console.status(WHY)
    _say_once()
    return nullcontext()


@functools.cache
def _say_once() -> None:
    sys.stderr.write(WHY + "\n")
    sys.stderr.flush()
