"""What a rule sees of small parameters that it serves together."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from biofx.errors import PlasticityError
from biofx.plasticity.kernels.arena import Arena
from biofx.plasticity.kernels.base import Tensors
from biofx.plasticity.numerics import random
from biofx.plasticity.rules.context import Count
from biofx.plasticity.rules.rule import Context
from biofx.synapses import Synapses

# Steps for which keys are made at once, where they are wanted at every step: 1 byte per synapse.
AHEAD = 16


class Alike:
    """What holds for each of several parameters that share a context, by the names of `Synapses`.

    What differs among them is refused: it would be that of one of them. Their configurations are
    alike in all that their rules read.
    """

    def __init__(self, members: Sequence[Synapses]) -> None:
        first, self._count = members[0], len(members)
        for entry in fields(Synapses):
            values = [getattr(member, entry.name) for member in members]
            if entry.name == "config" or all(value == values[0] for value in values):
                setattr(self, entry.name, getattr(first, entry.name))

    def __getattr__(self, name: str) -> Any:
        if name in Synapses.__dataclass_fields__:
            raise PlasticityError(
                f"a rule reads context.synapses.{name}, which differs among the {self._count} "
                "small parameters that it is handed together: use Context.number, for a number of "
                "each, or let its elementwise return False"
            )
        raise AttributeError(name)


@dataclass(kw_only=True, eq=False)
class ArenaContext(Context):
    """All small parameters that share an arena, as a rule sees one.

    Attributes:
        members: the parameters' own contexts of the same rule.
        arena: where each of them lies.
        names: those of the streams that were drawn from.
        keys: of each stream: the seed, the first step, and one matrix of keys for each from there.
    """

    members: Sequence[Context]
    arena: Arena
    names: dict[str, list[bytes]] = field(default_factory=dict)
    keys: dict[str, tuple[int, int, tuple[Tensor, ...]]] = field(default_factory=dict)

    @property
    @override
    def first(self) -> Synapses:
        return self.members[0].synapses

    @override
    def key(self, stream: str, *, step: int | None = None) -> Tensor:
        """One key per row."""
        step = self.step if step is None else step
        seed, first, known = self.keys.get(stream, (None, step, ()))
        if seed == self.seed and 0 <= step - first < len(known):
            return known[step - first]
        names = self.names.get(stream)
        if names is None:
            names = self.names[stream] = [
                random.stream_name(member.synapses.parameter, f"{self.rule}.{stream}")
                for member in self.members
            ]
        in_a_row = known != () and step == first + len(known)
        steps = range(step, step + (AHEAD if in_a_row else 1))
        made = [random.stream_keys(self.seed, one, names, self.weight.device) for one in steps]
        self.keys[stream] = self.seed, step, self.arena.spread(torch.stack(made)).unbind()
        return self.keys[stream][2][0]

    @override
    def sum(self, function: Callable[[Tensor, Tensors], Tensor], inputs: Tensors) -> Tensor:
        total = self.kernels.sum(function, self.weight, inputs, arena=self.arena)
        return self.arena.spread(total)

    @override
    def mask(self, name: str) -> Tensor:
        found: Tensor | None = self.memo.get(name)
        if found is None:
            found = self.memo[name] = self.arena.empty(torch.bool)
        return found

    @override
    def count(self, mask: Tensor) -> Count:
        return Count(mask)  # a small mask, that is kept: each parameter has a part of it

    @override
    def number(self, value: Callable[[Synapses], float]) -> Tensor:
        values = [value(member.synapses) for member in self.members]
        return self.arena.spread(
            torch.tensor(values, dtype=torch.float32, device=self.weight.device)
        )

    @override
    def constant(self, name: str, function: Callable[[Context], Tensor]) -> Tensor:
        found: Tensor | None = self.memo.get(name)
        if found is None:
            parts = [function(member) for member in self.members]
            # Signs are kept as bytes: 1 byte per synapse instead of 4.
            dtype = torch.int8 if all(map(_small_integers, parts)) else parts[0].dtype
            found = self.memo[name] = self.arena.empty(dtype)
            torch._foreach_copy_(self.arena.views(found), _fitted(parts, self.arena))
        return found


def _small_integers(part: Tensor) -> bool:
    return bool(((part == part.round()) & (part.abs() <= 127)).all())


def _fitted(parts: Sequence[Tensor], arena: Arena) -> list[Tensor]:
    return [part.expand(shape) for part, shape in zip(parts, arena.shapes, strict=True)]
