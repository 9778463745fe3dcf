"""The small parameters of an arena at one step."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from biofx.plasticity.kernels.base import KernelCall, Kernels, Tensors, filling
from biofx.plasticity.rules.rule import scalar
from biofx.plasticity.scheduler.arena_binding import ArenaBinding
from biofx.plasticity.scheduler.binding import ParameterStep, States, changed, number
from biofx.plasticity.scheduler.copies import Copies
from biofx.plasticity.scheduler.optimizer_state import is_plain, start_afresh
from biofx.plasticity.scheduler.trial import Traits


@dataclass(slots=True, kw_only=True)
class ArenaStep(ParameterStep):
    """The parameters of an arena at one step: matrices of their weights and gradients.

    Both are copied when somebody asks: `seen` and `judgeable` say whether they were. `gradients`
    are the parameters' own, `versions` those that they had before the optimizer's step; `moved`,
    whether the weights were copied after it, and `apart`, whether to another matrix; `kept` finds
    what the optimizer keeps for one, and `laid_out` holds what was asked of that.
    """

    binding: ArenaBinding
    gradients: list[Tensor]
    versions: list[int] = field(init=False)
    moved: bool = False
    apart: bool = False
    seen: bool = False
    judgeable: bool = False
    kept: States | None = None
    laid_out: dict[int, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.versions = [grad._version for grad in self.gradients]

    @override
    def judged(self) -> Tensor:
        assert self.grad is not None
        if [grad._version for grad in self.gradients] != self.versions:
            for member, grad, version in zip(
                self.binding.members, self.gradients, self.versions, strict=True
            ):
                if grad._version != version:
                    raise changed(member.name)
        self._see_gradient()
        return self.grad

    @override
    def see(self, gradient: bool = False) -> None:
        if not self.seen:
            self.seen = True
            self.binding.load()
        if gradient:
            self._see_gradient()

    def _see_gradient(self) -> None:
        if not self.judgeable:
            self.judgeable = True
            torch._foreach_copy_(self.binding.grads, self.gradients)

    @property
    @override
    def large(self) -> bool:
        return False

    @property
    @override
    def parameters(self) -> Sequence[Tensor]:
        return self.binding.parameters

    @override
    def joined(self, entries: Sequence[Tensor]) -> Tensor:
        # Two may ask for the same.
        matrix = self.laid_out.get(id(entries[0]))
        if matrix is None:
            matrix = self.laid_out[id(entries[0])] = self.binding.arena.joined(entries)
        return matrix

    @override
    def each(self, numbers: Sequence[Any]) -> Tensor:
        device = self.weight.device
        if device.type == "cpu":
            values = {float(value) for value in numbers}
            if len(values) == 1:  # as counts of steps nearly always are
                return torch.scalar_tensor(*values, dtype=torch.float32)
        found = torch.stack([number(value, device) for value in numbers])
        return self.binding.arena.spread(found)

    @override
    def date(self, births: Tensor, fresh: Tensor) -> Sequence[Any]:
        assert self.kept is not None
        states = [self.kept(parameter)[0] for parameter in self.binding.parameters]
        counts = [state.get("step", 0) for state in states]
        inputs = {"mask": fresh, "count": self.each(counts), "end": self.binding.arena.end}
        self.work.append(KernelCall.of(_dated, {"births": births}, ("births",), inputs))
        return counts

    @override
    def before(self, copy: Copies) -> Tensor:
        self.see()
        self.apart = True
        return self.weight

    @override
    def load(self) -> None:
        if self.moved:
            return
        self.moved = True
        self.laid_out.clear()  # the optimizer has moved that too
        if self.apart:
            self.binding.turn()
            self.weight = self.binding.weight
            for _, context in self.binding.pairs:
                context.weight = self.weight
        self.binding.load()

    @override
    def store(self, before: bool = False) -> None:
        if self.moved or before:
            self.binding.store()

    @override
    def store_gradient(self) -> None:
        if not self.resting:
            torch._foreach_copy_(self.gradients, self.binding.grads)

    @override
    def remember(self, states: States, traits: Traits) -> None:
        self.kept, self.traits = states, traits

    @override
    def forget(self, fresh: Tensor, kernels: Kernels) -> None:
        home = self.binding
        self.announce(fresh, kernels)
        if self.kept is None or self._reset(fresh, kernels):
            return
        self.finish(kernels)
        fresh = home.arena.clear(fresh.contiguous())
        some = home.arena.any(fresh)
        masks = home.arena.views(fresh)
        for member, parameter, weight, mask, new in zip(
            home.members, home.parameters, home.weights, masks, some, strict=True
        ):
            if new:
                start_afresh(
                    member.name,
                    self.kept(parameter),
                    mask,
                    weight=weight,
                    traits=self.traits,
                    shard=member.shard,
                    kernels=Kernels(),  # of few elements
                )

    def _reset(self, fresh: Tensor, kernels: Kernels) -> bool:
        """As `start_afresh`, of all parameters together; False where some need it one by one."""
        assert self.kept is not None
        states = [self.kept(parameter) for parameter in self.binding.parameters]
        traits, arena, device = self.traits, self.binding.arena, self.weight.device
        one_by_one = not traits.tried or traits.positions or traits.mixed
        if one_by_one or any(len(own) > 1 for own in states):
            return False
        # Before its first step, the optimizer keeps nothing for a parameter.
        if any(own[0].keys() != states[0][0].keys() for own in states):
            return False
        entries: dict[str, list[Tensor]] = {}
        for key, first in states[0][0].items():
            if isinstance(first, Tensor) and not first.dim():
                continue  # a count of steps
            values: list[Any] = [own[0].get(key) for own in states]
            if not all(
                is_plain(value) and value.dtype is first.dtype and value.shape == shape
                for value, shape in zip(values, arena.shapes, strict=True)
            ):
                return False
            entries[key] = values
        if entries:
            matrices = {key: self.joined(values) for key, values in entries.items()}
            starts = [
                scalar(float(traits.starts.get(key, 0.0)), device, matrix.dtype)
                for key, matrix in matrices.items()
            ]
            self.work.append(filling(matrices, fresh, starts))
            self.finish(kernels)
            for key, values in entries.items():
                torch._foreach_copy_(values, arena.views(matrices[key]))
        return True

    @override
    def release(self) -> None:
        ParameterStep.release(self)
        self.binding.tell()


def _dated(index: Tensor, tensors: Tensors, inputs: Tensors) -> tuple[Tensor]:
    births, count = tensors["births"], inputs["count"]
    # Padding is never born: its update, of averages that are 0, need not be a number.
    mask = inputs["mask"] & (index < inputs["end"])
    return (torch.where(mask, count.to(births.dtype), births),)
