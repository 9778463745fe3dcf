"""Evaluates a rule's functions over whole parameters: as they are written.

A rule's mathematics is a pure function on tensors. `Kernels` evaluates it with plain tensor
operations; `CompiledKernels` (in `compiled`) hands the same function to the compiler, which fuses
it, and the drawing of its random numbers, into one loop over memory.

Draws of bits and uniforms, and +, −, ×, ÷, agree to the bit between the two; exp, log and the like
may differ in the last place, and so may all of a `KernelSpec` that is said to be rounded.
"""

import functools
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor

from biofx.plasticity.kernels.arena import LENGTH, SMALL, Arena, total_of
from biofx.plasticity.kernels.layout import one_run
from biofx.plasticity.numerics.random import index_dtype
from biofx.plasticity.numerics.shards import Shard

# function(index, tensors, inputs) -> one tensor for each that is written
Tensors = Mapping[str, Tensor]
Function = Callable[[Tensor, Tensors, Tensors], tuple[Tensor, ...]]
NONE: Tensors = MappingProxyType({})

# Elements that are worked on at a time: what stays in a cache need not go through memory at each of
# the many operations that a function has.
PIECE = 2**16

_WIDE = (torch.float32, torch.float64)


@dataclass(frozen=True, eq=False)
class KernelSpec:
    """What to evaluate over what, without the tensors themselves.

    Made by `kernel_spec`: one for equal arguments, so its identity is a compiled kernel's.

    Attributes:
        function: elementwise; defined at module level or cached.
        tensors: names of those of the shard's size, which share no memory with each other.
        inputs: names of those that broadcast to the size.
        writes: the names of the tensors that receive the function's values.
        rounded: whether compiled code may round once where a product is added to something.
    """

    function: Function
    tensors: tuple[str, ...]
    inputs: tuple[str, ...]
    writes: tuple[str, ...]
    rounded: bool = False

    @functools.cached_property
    def names(self) -> tuple[str, ...]:
        """Of all arguments, in their order."""
        return self.tensors + self.inputs

    def named(self, leaves: Sequence[Tensor]) -> tuple[Tensors, Tensors]:
        """The function's `tensors` and `inputs`."""
        count = len(self.tensors)
        return (
            dict(zip(self.tensors, leaves[:count], strict=True)),
            dict(zip(self.inputs, leaves[count:], strict=True)),
        )


kernel_spec = functools.cache(KernelSpec)


class KernelCall(NamedTuple):
    """A spec and the tensors that it is to be evaluated over, in the order of its names."""

    spec: KernelSpec
    leaves: tuple[Tensor, ...]

    @classmethod
    def of(
        cls, function: Function, tensors: Tensors, writes: tuple[str, ...], inputs: Tensors = NONE
    ) -> "KernelCall":
        """The work that a call of `Kernels.map` is."""
        known = kernel_spec(function, tuple(tensors), tuple(inputs), writes)
        return cls(known, (*tensors.values(), *inputs.values()))

    @property
    def target(self) -> Tensor:
        """A tensor that is written, of the shard's size."""
        return self.leaves[self.spec.names.index(self.spec.writes[0])]


class Kernels:
    """Evaluates functions as they are written."""

    compiled = False

    def begin(self, step: int) -> None:
        """A step begins, counted from 1, be it the first one after resuming."""

    def map(
        self,
        function: Function,
        tensors: Tensors,
        *,
        writes: tuple[str, ...],
        shard: Shard | Arena,
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
        self.do(KernelCall.of(function, tensors, writes, inputs), shard=shard)

    def do(self, work: KernelCall, *, shard: Shard | Arena) -> None:
        """As `map`."""
        target, leaves = work.target, work.leaves
        if isinstance(shard, Arena):
            _evaluate_rows(work, shard)
            return
        if target.numel() <= PIECE or not one_run(leaves, shard):
            _evaluate(work.spec, shard.index(target.device), leaves)
            return
        assert shard.first is not None  # or else it is not one run
        dtype = index_dtype(shard.numel)
        for start in range(0, target.numel(), PIECE):
            stop = min(start + PIECE, target.numel())
            places = (shard.first + start, shard.first + stop)
            index = torch.arange(*places, dtype=dtype, device=target.device)
            pieces = [leaf.view(-1)[start:stop] if leaf.dim() else leaf for leaf in leaves]
            _evaluate(work.spec, index, pieces)

    def fill(
        self, targets: Sequence[Tensor], mask: Tensor, value: float, *, shard: Shard | Arena
    ) -> None:
        """Set the masked elements of every target to a value."""
        for target in targets:
            target.masked_fill_(mask, value)

    def sum_abs(self, weight: Tensor) -> Tensor:
        """Σ|w| as a float64 tensor of shape () (float32 on devices that have no float64)."""
        if 0 < weight.numel() <= SMALL and weight.device.type != "mps":
            return total_of(weight.abs())
        wide = torch.float32 if weight.device.type == "mps" else torch.float64
        # In pieces, for float64 copies of the weights are made on the way.
        parts = weight.reshape(-1).split(PIECE)
        return torch.stack([torch.linalg.vector_norm(p, 1, dtype=wide) for p in parts]).sum()

    def sum(
        self,
        function: Callable[[Tensor, Tensors], Tensor],
        weight: Tensor,
        inputs: Tensors,
        *,
        arena: Arena | None = None,
    ) -> Tensor:
        """Σ function(w, inputs) as a float64 tensor of shape (), as `sum_abs`.

        Args:
            function: elementwise, at module level.
            weight: w, of any shape.
            inputs: of shape (), or one value per row of an arena.
            arena: how the weight is laid out, if it is one; then of shape (parameters,).
        """
        if arena is not None:
            return arena.total(arena.clear(function(weight, inputs)))
        if 0 < weight.numel() <= SMALL and weight.device.type != "mps":
            return total_of(function(weight, inputs))
        wide = torch.float32 if weight.device.type == "mps" else torch.float64
        pieces = weight.reshape(-1).split(PIECE)
        return torch.stack([function(piece, inputs).sum(dtype=wide) for piece in pieces]).sum()

    def max_abs(self, weight: Tensor) -> Tensor:
        """max|w| as a tensor of shape (), 0 where there are no weights; NaN if one is."""
        if not weight.numel():
            return weight.new_zeros(())
        # Many times as fast as the norm, without a copy of |w|.
        low, high = torch.aminmax(weight)
        return torch.maximum(-low, high)


def count(mask: Tensor) -> Tensor:
    """How many elements of a mask are true, as a tensor of shape ()."""
    numel = mask.numel()
    apart = mask.device.type != "cpu" or not mask.is_contiguous() or mask.storage_offset() % 8
    if apart or numel <= PIECE:
        return torch.count_nonzero(mask)
    # Eight bytes of 0 and 1 at a time, in a tenth of the time: 128 of them do not overflow.
    line, whole = mask.view(-1), numel - numel % 1024
    words = line[:whole].view(torch.int64).view(-1, 128).sum(1)
    return words.view(torch.uint8).sum() + torch.count_nonzero(line[whole:])


def filling(targets: Tensors, mask: Tensor, values: Sequence[Tensor]) -> KernelCall:
    """The work of setting the masked elements of each target to its value.

    Args:
        targets: of the mask's shape.
        mask: where.
        values: of shape (), or one per row of an arena.
    """
    inputs = {f"value of {name}": value for name, value in zip(targets, values, strict=True)}
    return KernelCall.of(_filled, targets, tuple(targets), {"mask": mask, **inputs})


def _filled(index: Tensor, tensors: Tensors, inputs: Tensors) -> tuple[Tensor, ...]:
    mask = inputs["mask"]
    return tuple(
        torch.where(mask, inputs[f"value of {name}"].to(target.dtype), target)
        for name, target in tensors.items()
    )


def _evaluate_rows(work: KernelCall, arena: Arena) -> None:
    # As few pieces as caches hold, of one size: each costs its calls.
    rows = arena.size[0]
    several = -(-rows // -(-rows * LENGTH // PIECE))
    # Of small networks, each view would be a noticeable part; and what a user's rule gives may
    # broadcast in other ways.
    if several == rows or not all(map(arena.holds, work.leaves)):
        _evaluate(work.spec, arena.first + arena.columns, work.leaves)
        return
    for start in range(0, rows, several):
        part = slice(start, start + several)
        index = arena.first[part] + arena.columns
        pieces = [leaf[part] if leaf.dim() else leaf for leaf in work.leaves]
        _evaluate(work.spec, index, pieces)


def wide(tensor: Tensor) -> Tensor:
    """At least float32: half-precision types would round factors and draws themselves."""
    if tensor.dtype in _WIDE:
        return tensor
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def joined(calls: Sequence[KernelCall]) -> KernelCall:
    """All in one pass over memory; each sees what those before it write."""
    if len(calls) == 1:
        return calls[0]
    leaves: list[Tensor] = []
    for call in calls:
        leaves += call.leaves
    # Once for each step: no loop where a function has one of its own.
    ids = [*map(id, leaves)]
    first = dict(zip(reversed(ids), range(len(ids) - 1, -1, -1), strict=True))
    same = tuple(map(first.__getitem__, ids))
    spec, order = _joined(tuple([call.spec for call in calls]), same)
    return KernelCall(spec, tuple(map(leaves.__getitem__, order)))


@functools.cache
def _joined(
    specs: tuple[KernelSpec, ...], same: tuple[int, ...]
) -> tuple[KernelSpec, tuple[int, ...]]:
    """The spec of all, and the places of its arguments among theirs in a row.

    `same` tells for each of these the first place at which the same tensor stands.
    """
    whole, *others = specs
    order = tuple(range(len(whole.names)))
    start = len(order)
    for later in others:
        own = range(start, start + len(later.names))
        places = {same[place]: number for number, place in enumerate(own)}
        shared = tuple([places.get(same[place], -1) for place in order[: len(whole.tensors)]])
        whole, chosen = _paired(whole, later, shared)
        both = (*own, *order)
        order = tuple([both[place] for place in chosen])
        start = own.stop
    return whole, order


@functools.cache
def _paired(
    first: KernelSpec, second: KernelSpec, shared: tuple[int, ...]
) -> tuple[KernelSpec, tuple[int, ...]]:
    """The spec of both, and the places of its arguments among the second's and the first's.

    `shared` tells for each of the first's tensors its place among the second's arguments, or -1.
    """
    later = len(second.names)
    tensors = {name: place for place, name in enumerate(second.tensors)}
    inputs = {name: len(tensors) + place for place, name in enumerate(second.inputs)}
    own, given = {}, {}
    for place, name in enumerate(first.tensors):
        if shared[place] < 0:
            own[name] = key = _unused(name, {**tensors, **inputs})
            tensors[key] = later + place
        else:
            own[name] = key = second.names[shared[place]]
            tensors[key] = inputs.pop(key, shared[place])
    for place, name in enumerate(first.inputs, later + len(first.tensors)):
        given[name] = key = _unused(name, {**tensors, **inputs})
        inputs[key] = place

    def both(index: Tensor, tensors: Tensors, inputs: Tensors) -> tuple[Tensor, ...]:
        values = first.function(
            index,
            {name: tensors[key] for name, key in own.items()},
            {name: inputs[key] for name, key in given.items()},
        )
        written = {
            own[name]: value.to(tensors[own[name]].dtype)
            for name, value in zip(first.writes, values, strict=True)
        }
        seen = {**tensors, **written}
        left = [value for name, value in written.items() if name not in second.writes]
        theirs = {name: seen[name] for name in second.tensors}
        every = {**inputs, **seen}
        return (*second.function(index, theirs, {n: every[n] for n in second.inputs}), *left)

    # What both write is the second's in the end.
    names = [own[name] for name in first.writes if own[name] not in second.writes]
    writes = (*second.writes, *names)
    rounded = first.rounded or second.rounded
    whole = kernel_spec(both, tuple(tensors), tuple(inputs), writes, rounded)
    return whole, (*tensors.values(), *inputs.values())


def _unused(name: str, names: Container[str]) -> str:
    name = f"earlier {name}"
    return _unused(name, names) if name in names else name


def _evaluate(spec: KernelSpec, index: Tensor, leaves: Sequence[Tensor]) -> None:
    tensors, inputs = spec.named(leaves)
    for name, value in zip(spec.writes, spec.function(index, tensors, inputs), strict=True):
        tensors[name].copy_(value)
