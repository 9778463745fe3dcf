"""`Context`: what a rule sees at one step, and `Expression`: factors as a function."""

import functools
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from biofx.plasticity.kernels.base import (
    NONE,
    Function,
    KernelCall,
    Kernels,
    Tensors,
    count,
    filling,
    joined,
)
from biofx.plasticity.numerics import random
from biofx.plasticity.numerics.shards import Shard
from biofx.plasticity.rules.schedule import Schedule
from biofx.synapses import Neighbours, Synapses
from biofx.synapses.initial import InitialLaw

STATIC = 0  # the step that keys draws made once and for all
EVERY_STEP = Schedule()
Stage = Literal["observe", "factor", "before_update", "after_step"]


class Expression(NamedTuple):
    """A factor as a pure function, so that the factors of several rules can share one kernel.

    Attributes:
        function: ``f(weight, index, **inputs) -> factors``, elementwise, float32, at module level;
            finite, for nobody looks.
        inputs: tensors of shape () or broadcastable to the weight; new values never recompile.
        token: equal tokens promise equal factors; None if they depend on the weights.
        costly: with a token, keep the factors (4 bytes per synapse) rather than compute them anew.
        rounded: compiled code may fuse products with sums, which is faster and rounds once.
    """

    function: Callable[..., Tensor]
    inputs: Mapping[str, Tensor]
    token: Hashable = None
    costly: bool = False
    rounded: bool = False


NOBODY = Neighbours()


def _nowhere(name: str) -> tuple[Tensor, Shard]:
    raise KeyError(name)


class Count:
    """How many synapses a mask says; counted at the end of the step, or when somebody asks.

    Until then the mask may be left to be written.
    """

    def __init__(self, mask: Tensor) -> None:
        self.mask: Tensor | None = mask
        self.number: Tensor | None = None

    def settle(self) -> None:
        """Count now, and let go of the mask."""
        if self.mask is not None:
            self.number, self.mask = count(self.mask), None

    def __float__(self) -> float:
        number = self.number if self.mask is None else count(self.mask)
        assert number is not None
        return float(number)


@dataclass(kw_only=True, eq=False)
class Context:
    """One parameter at one step, as a rule sees it.

    Under FSDP and tensor parallelism, tensors are the local shard; statistics are global.

    Attributes:
        synapses: what is known of the parameter.
        rule: the rule's name; with its place in the list, if there are several of one class.
        shard: where the local part lies in the whole; ``shard.numel`` counts all synapses.
        weight: the weights, of shape ``shard.size``, in the parameter's own type and memory. In
            `Rule.factor` those before the update; in `Rule.after_step` the updated ones, to be
            changed in place.
        grad: the gradient as the optimizer gets it, or None. Multiply by `unscale` to undo the
            scale of a `GradScaler` whose optimizer unscales by itself.
        unscale: None, or a tensor of shape ().
        step: optimizer steps counted from 1.
        timing: the schedule that holds for this parameter.
        seed: the scheduler's seed.
        state: the rule's own tensors and numbers for this parameter; kept in checkpoints. Tensors
            of shape ``shard.size`` are sharded like the parameter.
        optimizer_state: the optimizer's state of this parameter, ``{}`` without one.
        activity: how often each post-synaptic unit was active since the last step, or None.
        initial: what PyTorch draws the weights of such a layer from; None if it has no such type.
        wiring: the units whose incoming weights the parameter holds, and those that it reads.
        lookup: gives the local part of another parameter or buffer of the model, and its place.
        fresh: mask of the synapses that an earlier rule replaced at this step, or None.
        statistics: what `Rule.needs` asked for, tensors of shape (): "mean_abs" is mean|w|,
            "max_abs" is max|w|, "finite" is for those who read no value,
            "log_mean" and "log_std" are the moments of ln|w| over w ≠ 0.
        padding: the local row of an embedding's padding index, which stays as it is whatever a
            rule does to it; else None.
        total: what `Rule.total` gave, summed over all shards, or None.
        events: numbers of this step for `GradScheduler.metrics`: tensors of shape (), or `count`s.
        counts: those that are to be settled when the step is over.
        kernels: evaluates elementwise functions, compiled or not.
        memo: what a rule has worked out from settings alone, and need not work out at each step.
        later: None, or where `map` leaves what can be done in the pass that applies the factors.
    """

    synapses: Synapses
    rule: str
    shard: Shard
    weight: Tensor
    grad: Tensor | None = None
    unscale: Tensor | None = None
    step: int = 0
    timing: Schedule = EVERY_STEP
    seed: int = 0
    state: dict[str, Any] = field(default_factory=dict)
    optimizer_state: Mapping[str, Any] = field(default_factory=dict)
    activity: Tensor | None = None
    initial: InitialLaw | None = None
    wiring: Neighbours = NOBODY
    lookup: Callable[[str], tuple[Tensor, Shard]] = _nowhere
    fresh: Tensor | None = None
    padding: int | None = None
    statistics: Mapping[str, Tensor] = field(default_factory=dict)
    total: Tensor | None = None
    events: dict[str, "Tensor | Count"] = field(default_factory=dict)
    counts: list[Count] = field(default_factory=list)
    kernels: Kernels = field(default_factory=Kernels)
    memo: dict[str, Any] = field(default_factory=dict)
    later: list[KernelCall] | None = None

    def key(self, stream: str, *, step: int | None = None) -> Tensor:
        """The key of the rule's own draws for one purpose at one step, int64 of shape ()."""
        step = self.step if step is None else step
        key = random.stream_key(self.seed, step, self.synapses.parameter, f"{self.rule}.{stream}")
        return random.key_tensor(key, self.weight.device)

    @property
    def first(self) -> Synapses:
        """The parameter, or the first of several that share a context."""
        return self.synapses

    @property
    def index(self) -> Tensor:
        """Global index of each local synapse, of shape ``shard.size``."""
        return self.shard.index(self.weight.device)

    def map(
        self,
        function: Function,
        tensors: Tensors,
        *,
        writes: tuple[str, ...],
        inputs: Tensors = NONE,
        with_factors: bool = False,
    ) -> None:
        """Write ``function(index, tensors, inputs)`` into some of the tensors: see `Kernels.map`.

        What only the rule's own `Expression` reads may be written `with_factors`, in one pass.
        """
        work = KernelCall.of(function, tensors, writes, inputs)
        self._do(work, later=with_factors)

    def fill(self, targets: Tensors, mask: Tensor, value: float) -> None:
        """Set the masked elements of some of the rule's tensors, as `map` does with_factors."""
        values = [scalar(value, mask.device)] * len(targets)
        self._do(filling(targets, mask, values), later=True)

    def _do(self, work: KernelCall, *, later: bool) -> None:
        if self.later is None or not later:
            self.kernels.do(work, shard=self.shard)
        else:
            self.later.append(work)

    def finish(self) -> None:
        """Do now what `map` has left for later."""
        if self.later:
            work = joined(self.later)
            self.later.clear()
            self.kernels.do(work, shard=self.shard)

    def sum(self, function: Callable[[Tensor, Tensors], Tensor], inputs: Tensors) -> Tensor:
        """Σ of an elementwise function of the weights: what `Rule.total` may return."""
        return self.kernels.sum(function, self.weight, inputs)

    def mask(self, name: str) -> Tensor:
        """Room for a mask that is written and counted at this step, and not read any later."""
        return torch.empty(self.weight.shape, dtype=torch.bool, device=self.weight.device)

    def count(self, mask: Tensor) -> Count:
        """How many synapses a mask says, for `events` and `memo`; a number once it is asked for."""
        found = Count(mask)
        self.counts.append(found)
        return found

    def number(self, value: Callable[[Synapses], float]) -> Tensor:
        """A hyperparameter as float32 of shape (); for a matrix, one per row."""
        return scalar(value(self.synapses), self.weight.device)

    def constant(self, name: str, function: Callable[["Context"], Tensor]) -> Tensor:
        """What a function of the parameter gives, worked out at the first call and then kept.

        Args:
            name: tells apart what one rule keeps.
            function: gives a tensor that broadcasts to the weight, the same at every call.
        """
        found: Tensor | None = self.memo.get(name)
        if found is None:
            found = self.memo[name] = function(self)
        if self.kernels.compiled and found.shape != self.weight.shape:
            # Compiled code wants memory in one run.
            found = self.memo[name] = found.expand(self.weight.shape).contiguous()
        return found

    def uniform(self, stream: str = "", *, draw: int = 0) -> Tensor:
        """Uniforms on [0, 1), float32, one per local synapse, new at each step."""
        return random.uniform(self.key(stream), self.index, draw=draw)

    def symmetric(self, stream: str = "", *, draw: int = 0) -> Tensor:
        """Uniforms on [−1, 1), otherwise as `uniform`."""
        return random.symmetric(self.key(stream), self.index, draw=draw)

    def normal(self, stream: str = "", *, draw: int = 0) -> Tensor:
        """Standard normals, float32, one per local synapse, new at each step."""
        return random.normal(self.key(stream), self.index, draw=draw)

    def per_unit(self, values: Tensor, axis: int) -> Tensor:
        """Spread values per unit over the local synapses.

        Args:
            values: one value per unit along `axis`, of shape (units,): see `units`.
            axis: the post- or pre-synaptic axis.

        Returns:
            A tensor that broadcasts against `weight`.
        """
        rows, groups = self.shard, self.synapses.groups
        start, count = rows.offsets[axis], rows.size[axis]
        ones = [1] * len(rows.shape)
        if groups == 1 or axis == 0:
            ones[axis] = count
            return values[start : start + count].view(ones)
        # Axis 1 of a grouped convolution counts units within a group; axis 0 tells the group.
        first = torch.arange(rows.size[0], device=values.device) + rows.offsets[0]
        second = torch.arange(count, device=values.device) + start
        group = first // (rows.shape[0] // groups)
        ones[0], ones[1] = rows.size[0], count
        return values[group[:, None] * rows.shape[1] + second].view(ones)

    def units(self, axis: int) -> int:
        """Units along the post- or pre-synaptic axis, over all groups of a convolution."""
        return self.shard.shape[axis] * (1 if axis == 0 else self.synapses.groups)


@functools.lru_cache(maxsize=1024)
def scalar(value: float, device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
    """A hyperparameter as a tensor of shape (): not a constant of a compiled kernel."""
    return torch.tensor(value, dtype=dtype, device=device)
