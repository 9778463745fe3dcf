"""Evaluates a rule's functions over whole parameters: as they are written.

A rule's mathematics is a pure function on tensors. `Kernels` evaluates it with plain tensor
operations; `CompiledKernels` (in `compiled`) hands the same function to the compiler, which fuses
it, and the drawing of its random numbers, into one loop over memory.

Draws of bits and uniforms, and +, −, ×, ÷, agree to the bit between the two; exp, log and the like
may differ in the last place.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from biofx.plasticity.layout import offset, one_run
from biofx.plasticity.shards import Shard

# function(index, tensors, inputs) -> one tensor for each that is written
Tensors = Mapping[str, Tensor]
Function = Callable[[Tensor, Tensors, Tensors], tuple[Tensor, ...]]
NONE: Tensors = MappingProxyType({})

# Elements that are worked on at a time: what stays in a cache need not go through memory at each of
# the many operations that a function has.
PIECE = 2**16


@dataclass(frozen=True)
class Work:
    """One call of `Kernels.map`."""

    function: Function
    tensors: Tensors
    writes: tuple[str, ...]
    inputs: Tensors


class Kernels:
    """Evaluates functions as they are written."""

    compiled = False

    def map(
        self,
        function: Function,
        tensors: Tensors,
        *,
        writes: tuple[str, ...],
        shard: Shard,
        inputs: Tensors = NONE,
    ) -> None:
        """Write ``function(index, tensors, inputs)`` into some of the tensors.

        Args:
            function: elementwise; defined at module level or cached, for its identity is that of
                a compiled kernel.
            tensors: of the shard's size, sharing no memory with each other.
            writes: the names of those that receive the function's values.
            shard: tells the global index of each element.
            inputs: tensors that broadcast to the size.
        """
        target = tensors[writes[0]]
        if target.numel() <= PIECE or not one_run((*tensors.values(), *inputs.values()), shard):
            _evaluate(function, shard.index(target.device), tensors, writes, inputs)
            return
        first = offset(shard, target.device)
        for start in range(0, target.numel(), PIECE):
            stop = min(start + PIECE, target.numel())
            index = torch.arange(start, stop, dtype=first.dtype, device=first.device) + first
            own, given = (
                {n: t.view(-1)[start:stop] if t.dim() else t for n, t in part.items()}
                for part in (tensors, inputs)
            )
            _evaluate(function, index, own, writes, given)

    def do(self, work: Work, *, shard: Shard) -> None:
        """Make the call of `map` that a `Work` is."""
        self.map(work.function, work.tensors, writes=work.writes, shard=shard, inputs=work.inputs)

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


def joined(first: Work, second: Work) -> Work:
    """Both in one pass over memory; `second` sees what `first` writes."""
    tensors, inputs = dict(second.tensors), dict(second.inputs)
    known = {id(tensor): name for name, tensor in (*tensors.items(), *inputs.items())}
    own, given = {}, {}
    for name, tensor in first.tensors.items():
        own[name] = key = known.get(id(tensor)) or _unused(name, {**tensors, **inputs})
        inputs.pop(key, None)
        tensors[key] = tensor
    for name, tensor in first.inputs.items():
        given[name] = key = _unused(name, {**tensors, **inputs})
        inputs[key] = tensor
    function = _both(
        first.function, second.function, first.writes, tuple(own.items()), tuple(given.items())
    )
    return Work(function, tensors, (*second.writes, *map(own.__getitem__, first.writes)), inputs)


def _unused(name: str, names: Tensors) -> str:
    name = f"earlier {name}"
    return _unused(name, names) if name in names else name


@functools.cache
def _both(
    first: Function,
    second: Function,
    writes: tuple[str, ...],
    own: tuple[tuple[str, str], ...],
    given: tuple[tuple[str, str], ...],
) -> Function:
    """Cached, for a function's identity is that of its kernel."""

    def both(index: Tensor, tensors: Tensors, inputs: Tensors) -> tuple[Tensor, ...]:
        names = dict(own)
        values = first(
            index,
            {name: tensors[key] for name, key in own},
            {name: inputs[key] for name, key in given},
        )
        written = {
            names[name]: value.to(tensors[names[name]].dtype)
            for name, value in zip(writes, values, strict=True)
        }
        seen = {**tensors, **written}
        return (*second(index, seen, {**inputs, **seen}), *written.values())

    return both


def _evaluate(
    function: Function,
    index: Tensor,
    tensors: Tensors,
    writes: tuple[str, ...],
    inputs: Tensors,
) -> None:
    for name, value in zip(writes, function(index, tensors, inputs), strict=True):
        tensors[name].copy_(value)
