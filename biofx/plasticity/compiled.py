"""`CompiledKernels`: a rule's functions, each compiled into one pass over memory.

A parameter whose memory and indices are one run, as nearly all are, is presented as a matrix.
Kernels for matrices are traced and compiled without guards, since nothing but their size varies,
and so cost 20 µs a call instead of 80. Others (channels-last weights, values per unit, shards along
a later axis) go through `torch.compile` and its guards, in as few dimensions as they allow.
"""

import functools
import os
import shutil
import warnings
from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from biofx.plasticity.elementary import exp
from biofx.plasticity.kernels import Form, Kernels, Tensors, Work
from biofx.plasticity.layout import alone, arrange, as_bytes, line, matrix, offset, one_run
from biofx.plasticity.shards import Shard

When = bool | Literal["auto"]

# Synapses of a model from which on compiling (some 10 s, once) pays within a few hundred steps.
WORTHWHILE = 500_000

# All that this process has compiled, for any scheduler.
KERNELS: dict[Hashable, Callable[..., Any]] = {}


class CompiledKernels(Kernels):
    """Evaluates functions compiled; where that fails, as they are written, with a warning."""

    compiled = True

    def do(self, work: Work, *, shard: Shard) -> None:
        """As `Kernels.do`, in one pass."""
        ready = shard.ready.get(work.form)
        if ready is None or not ready.run(work.leaves):
            self._find(work, shard)

    def _find(self, work: Work, shard: Shard) -> None:
        """Do what no kernel is ready for, and make one ready for the next time."""
        form, leaves = work
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
            make = functools.partial(_matrix, form, kinds)
            key = ("matrix", form, kinds, first.device, first.dtype)
            done = self._call(key, make, (first, columns, *parts))
            if done:
                shard.ready[form] = _Ready(KERNELS[key], kinds, shard.size, size, first, columns)
        else:
            lead = form.names.index(form.writes[0])
            view, steps = arrange(leaves, lead=lead, shard=shard)
            blocks = [view(leaf) for leaf in leaves]
            make = functools.partial(_blocks, form)
            # Guards tell everything else apart.
            done = self._call(("blocks", form), make, (first, steps, *blocks))
        if not done:
            super().do(work, shard=shard)

    def fill(self, targets: Sequence[Tensor], mask: Tensor, value: float, *, shard: Shard) -> None:
        """As `Kernels.fill`, in one pass."""
        if not self.compiled or not targets:
            super().fill(targets, mask, value, shard=shard)
            return
        tensors = {str(place): target for place, target in enumerate(targets)}
        inputs = {"mask": mask, "value": torch.tensor(value, device=mask.device)}
        self.map(_filled, tensors, writes=tuple(tensors), shard=shard, inputs=inputs)

    def sum_abs(self, weight: Tensor) -> Tensor:
        """As `Kernels.sum_abs`, in one pass without a copy."""
        if weight.device.type != "mps":
            found = self._reduced(_sum_abs, weight, torch.float64)
            if found is not None:
                return found
        return super().sum_abs(weight)

    def max_abs(self, weight: Tensor) -> Tensor:
        """As `Kernels.max_abs`, in one pass; a float32."""
        if weight.dtype != torch.float64:
            found = self._reduced(_max_abs, weight, torch.float32)
            if found is not None:
                return found
        return super().max_abs(weight)

    def count(self, mask: Tensor) -> Tensor:
        """As `Kernels.count`, in a quarter of the time."""
        if mask.numel() < 2**31:
            found = self._reduced(_count, as_bytes(mask), torch.int32)
            if found is not None:
                return found
        return super().count(mask)

    def _reduced(
        self, function: Callable[[Tensor], Tensor], tensor: Tensor, dtype: torch.dtype
    ) -> Tensor | None:
        """A reduction to shape (), or None if no kernel is to be had."""
        if not self.compiled or tensor.numel() < 2 or not tensor.is_contiguous():
            return None
        found = tensor.new_empty((), dtype=dtype)

        def run(found: Tensor, line: Tensor) -> tuple[Tensor]:
            found.copy_(function(line))
            return (line,)

        key = ("reduced", function, tensor.dtype, tensor.device)
        done = self._call(key, functools.partial(_trace, run), (found, tensor.view(-1)))
        return found if done else None

    def _call(
        self,
        key: Hashable,
        make: Callable[[tuple[Tensor, ...]], Callable[..., Any]],
        arguments: tuple[Tensor, ...],
    ) -> bool:
        """Call a kernel, making it if need be; False if that has failed."""
        kernel = KERNELS.get(key)
        if kernel is not None:
            kernel(*arguments)
            return True
        try:
            with _status():
                kernel = make(arguments)
                kernel(*arguments)
        except Exception as error:
            self.compiled = False
            warnings.warn(
                f"plasticity kernels run uncompiled, and slower, for the compiler failed: {error}",
                RuntimeWarning,
                stacklevel=2,
            )
            return False
        KERNELS[key] = kernel
        return True


@dataclass(frozen=True, slots=True)
class _Ready:
    """A kernel for matrices and all of its arguments that stay the same for one shard.

    Attributes:
        kernel: takes `first`, `columns` and the tensors of a `Work`.
        kinds: types of those tensors, and which of them are no scalars.
        shape, size: how they come, and the rows and columns that they are presented in.
        first: global index of the first local element.
        columns: of `line`.
    """

    kernel: Callable[..., Any]
    kinds: tuple[tuple[torch.dtype, bool], ...]
    shape: tuple[int, ...]
    size: tuple[int, int]
    first: Tensor
    columns: Tensor

    def run(self, leaves: Sequence[Tensor]) -> bool:
        """Call the kernel, if the tensors are as they were."""
        if leaves[0].device != self.first.device:
            return False
        parts = [self.first, self.columns]
        for leaf, (dtype, full) in zip(leaves, self.kinds, strict=True):
            if leaf.dtype is not dtype:
                return False
            if not full:
                if leaf.dim():
                    return False
                parts.append(leaf)
            elif leaf.shape == self.shape and leaf.is_contiguous():
                parts.append(
                    (leaf.view(torch.uint8) if dtype is torch.bool else leaf).view(self.size)
                )
            else:
                return False
        self.kernel(*parts)
        return True


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
    """Whether the compiler finds the tools that it needs for a device."""
    if device.type == "cpu":
        return any(shutil.which(c) for c in (os.environ.get("CXX", ""), "g++", "clang++") if c)
    if device.type in ("cuda", "xpu"):
        from torch.utils._triton import has_triton

        return bool(has_triton())
    return False


def _trace(body: Callable[..., Any], arguments: tuple[Tensor, ...]) -> Callable[..., Any]:
    """Compile for tensors of any size, of which those dimensions agree that do here."""
    # Imported where needed: they take longer than all of biofx.
    from torch._inductor import standalone_compile
    from torch.fx.experimental.proxy_tensor import make_fx

    arguments = tuple(map(alone, arguments))
    # The processor's own exp would be a call per vector, around which all registers are saved.
    table = {torch.ops.aten.exp.default: _exp} if arguments[0].device.type == "cpu" else {}
    graph = make_fx(body, decomposition_table=table, tracing_mode="symbolic")(*arguments)
    # Sizes need no check at each call: `map` has looked at them.
    options = {"config_patches": {"size_asserts": False}}
    artifact: Callable[..., Any] = standalone_compile(graph, list(arguments), options=options)
    return artifact


def _matrix(
    form: Form, kinds: tuple[tuple[torch.dtype, bool], ...], arguments: tuple[Tensor, ...]
) -> Callable[..., Any]:
    """The kernel of a form for matrices."""
    target = form.names.index(form.writes[0])

    def run(first: Tensor, columns: Tensor, *parts: Tensor) -> tuple[Tensor]:
        leaves = [
            part != 0 if full and dtype == torch.bool else part
            for part, (dtype, full) in zip(parts, kinds, strict=True)
        ]
        rows, length = parts[target].shape
        lines = torch.arange(rows, dtype=first.dtype, device=first.device) * length + first
        # A table of the columns, for the compiler would build each vector of counts by elements.
        index = lines[:, None] + columns.to(first.dtype)
        values = form.function(index, *form.named(leaves))
        for name, value in zip(form.writes, values, strict=True):
            # What the compiler makes of a mask that is stored as such takes twice the whole kernel.
            number = torch.where(value, 1.0, 0.0) if value.dtype == torch.bool else value
            parts[form.names.index(name)].copy_(number)
        return (first,)  # a graph must have an output

    # Traced with a size that is certainly no square: whatever is equal then must always be.
    size = (3 * 5 * 7 * 11, 1024)
    columns = line(size[1], arguments[1].device)
    # And with gaps between rows, though there are none, or else the compiler would make one line of
    # those loops that use no index, and could not join them with the others.
    parts = [
        part.new_empty(size[0], size[1] + 7)[:, : size[1]] if part.dim() else part
        for part in arguments[2:]
    ]
    return _trace(run, (arguments[0], columns, *parts))


def _blocks(form: Form, arguments: tuple[Tensor, ...]) -> Callable[..., Any]:
    """As `_matrix`, for tensors of several dimensions, whose strides the compiler must watch."""
    from torch.fx.experimental import _config as shapes

    function, names, writes, count = form.function, form.names, form.writes, len(form.tensors)

    def run(first: Tensor, steps: Tensor, *leaves: Tensor) -> None:
        named = list(zip(names, leaves, strict=True))
        tensors, inputs = dict(named[:count]), dict(named[count:])
        like = tensors[writes[0]]
        index = first
        for axis, length in enumerate(like.shape):
            places = torch.arange(length, dtype=first.dtype, device=like.device) * steps[axis]
            index = index + places.view([-1] + [1] * (like.dim() - 1 - axis))
        for name, value in zip(writes, function(index, tensors, inputs), strict=True):
            tensors[name].copy_(value)

    # The compiler counts recompilations by code object: each kernel gets one of its own.
    run.__code__ = run.__code__.replace(co_name=function.__name__)
    compiled: Callable[..., Any] = torch.compile(run, dynamic=True, fullgraph=True)

    def kernel(*arguments: Tensor) -> None:
        # Sizes that happen to be equal now must not have to be so the next time.
        with shapes.patch(use_duck_shape=False):  # type: ignore[attr-defined]
            compiled(*arguments)

    return kernel


def _exp(x: Tensor) -> Tensor:
    return exp(x) if x.dtype == torch.float32 else NotImplemented


def _sum_abs(line: Tensor) -> Tensor:
    return line.abs().sum(dtype=torch.float64)


def _max_abs(line: Tensor) -> Tensor:
    # Bits order as numbers do where there are no signs, and NaN comes last. A maximum of floats has
    # to look for NaN at every element, and takes five times as long.
    return line.float().abs().view(torch.int32).amax().view(torch.float32)


def _count(line: Tensor) -> Tensor:
    return line.sum(dtype=torch.int32)


def _filled(index: Tensor, tensors: Tensors, inputs: Tensors) -> tuple[Tensor, ...]:
    mask, value = inputs["mask"], inputs["value"]
    return tuple(torch.where(mask, value.to(t.dtype), t) for t in tensors.values())


def _status() -> AbstractContextManager[Any]:
    """Tells a person at a terminal why training has not begun yet."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        return nullcontext()
    return console.status("biofx: compiling plasticity kernels (once; kept for later runs)")
