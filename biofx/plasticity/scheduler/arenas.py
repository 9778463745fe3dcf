"""Small parameters that the same rules serve, taken through a step together."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from biofx.plasticity.kernels.arena import SMALL, Arena
from biofx.plasticity.kernels.base import Kernels, Tensors
from biofx.plasticity.numerics import random
from biofx.plasticity.rules.rule import Context, Rule
from biofx.plasticity.scheduler.binding import Binding, ParameterStep, changed, resettable
from biofx.synapses import Synapses

Named = Sequence[tuple[str, nn.Parameter, dict[str, Any]]]


@dataclass
class Count:
    """How many synapses of each parameter a mask says; counted when somebody asks."""

    mask: Tensor

    def __float__(self) -> float:
        return float(torch.count_nonzero(self.mask))


@dataclass(kw_only=True, eq=False)
class ArenaContext(Context):
    """All small parameters that share an arena, as a rule sees one.

    Attributes:
        members: the parameters' own contexts of the same rule.
        arena: where each of them lies.
    """

    members: Sequence[Context]
    arena: Arena

    @override
    def key(self, stream: str, *, step: int | None = None) -> Tensor:
        """One key per row."""
        step = self.step if step is None else step
        name = f"{self.rule}.{stream}"
        keys = [
            random.stream_key(self.seed, step, member.synapses.parameter, name)
            for member in self.members
        ]
        return self.arena.spread(random.key_tensor(keys, self.weight.device))

    @override
    def sum(self, function: Callable[[Tensor, Tensors], Tensor], inputs: Tensors) -> Tensor:
        total = self.kernels.sum(function, self.weight, inputs, arena=self.arena)
        return self.arena.spread(total)

    @override
    def count(self, mask: Tensor) -> Any:
        return Count(mask)

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


class ArenaBinding(Binding):
    """Small parameters and the rules that serve all of them.

    The state of each is a part of this binding's, so that parameters may be taken one by one at a
    step at which some have no gradient.

    Args:
        members: bindings of the parameters, with equal rules and settings.
        parameters: theirs.
    """

    def __init__(self, members: Sequence[Binding], parameters: Sequence[nn.Parameter]) -> None:
        self.members = tuple(members)
        self.parameters = tuple(parameters)
        first = parameters[0]
        self.arena = Arena([parameter.shape for parameter in parameters], first.device)
        self.weight = self.arena.empty(first.dtype)
        self.grad = self.arena.empty(first.dtype)
        self.weights, self.grads = map(self.arena.views, (self.weight, self.grad))
        self.plain: list[dict[str, Any]] = []
        self.dealt = True
        pairs: list[tuple[Rule, Context]] = []
        for place, (rule, like) in enumerate(members[0].pairs):
            own = [member.pairs[place][1] for member in members]
            context = ArenaContext(
                synapses=like.synapses,
                rule=like.rule,
                shard=self.arena,  # type: ignore[arg-type]
                weight=self.weight,
                timing=like.timing,
                seed=like.seed,
                kernels=like.kernels,
                members=own,
                arena=self.arena,
            )
            self._adopt(context)
            self.plain.append(plain(context))
            pairs.append((rule, context))
        name = members[0].name
        if len(members) > 1:
            name = f"{name} (one of {len(members)} parameters)"
        super().__init__(name, self.arena, pairs)  # type: ignore[arg-type]

    def _adopt(self, context: ArenaContext) -> None:
        """Lay the members' state out in matrices, of which they keep their parts."""
        for key, value in context.members[0].state.items():
            if not isinstance(value, Tensor):
                context.state[key] = value
                continue
            matrix = context.state[key] = self.arena.empty(value.dtype)
            views = self.arena.views(matrix)
            torch._foreach_copy_(views, [member.state[key] for member in context.members])
            for member, view in zip(context.members, views, strict=True):
                member.state[key] = view

    @property
    def names(self) -> list[str]:
        """Of the parameters."""
        return [member.name for member in self.members]

    def load(self) -> None:
        """Copy the parameters, as they are now."""
        torch._foreach_copy_(self.weights, list(self.parameters))

    def store(self) -> None:
        """Copy what has become of the parameters back; padding may have been written to."""
        self.arena.clear(self.weight)
        torch._foreach_copy_(list(self.parameters), self.weights)

    @property
    def complete(self) -> bool:
        """Whether all parameters have gradients that can be laid out at this step."""
        dtype, device = self.weight.dtype, self.weight.device
        for parameter, shape in zip(self.parameters, self.arena.shapes, strict=True):
            grad = parameter.grad
            if (
                grad is None
                or grad.dtype is not dtype
                or grad.layout is not torch.strided
                or grad.device != device
                or parameter.shape != shape
                or parameter.dtype is not dtype
                or type(grad) is not Tensor
            ):
                return False
        return True

    @override
    def note(self, site: ParameterStep) -> None:
        self.stepped, self.dealt = True, False
        self.expressions, self.samples = site.expressions, site.factors

    def deal(self) -> None:
        """Give the members what the metrics tell of each."""
        if self.dealt:
            return
        self.dealt = True
        views = self.arena.views
        for place, member in enumerate(self.members):
            row = sum(self.arena.rows[:place])

            def own(value: Any, place: int = place, row: int = row) -> Any:
                if isinstance(value, Count):
                    return Count(views(value.mask)[place])
                if not isinstance(value, Tensor) or not value.dim():
                    return value
                if value.shape == self.arena.size:
                    return views(value)[place]
                return value[row, 0]

            step = ParameterStep(member, self.weights[place], None)
            step.expressions = [
                expression._replace(inputs={k: own(v) for k, v in expression.inputs.items()})
                for expression in self.expressions
            ]
            step.factors = [own(factor) for factor in self.samples]
            member.note(step)
            member.numbers.update({key: own(value) for key, value in self.numbers.items()})
            for (_, shared), (_, context) in zip(self.pairs, member.pairs, strict=True):
                counts = {k: own(v) for k, v in shared.memo.items() if isinstance(v, Count)}
                context.memo.update(counts)

    def tell(self) -> None:
        """Give the members those plain values of the rules' states that have changed."""
        for (_, shared), known in zip(self.pairs, self.plain, strict=True):
            now = plain(shared)
            if now != known:
                known.update(now)
                for member in shared.members:  # type: ignore[attr-defined]
                    member.state.update(now)


@dataclass(slots=True)
class ArenaStep(ParameterStep):
    """The parameters of an arena at one step: matrices of their weights and gradients.

    `gradients` are the parameters' own, `versions` those that they had when they were copied;
    `moved`, whether the weights were copied after the optimizer's step; `states` finds what the
    optimizer keeps for a parameter.
    """

    gradients: list[Tensor] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)
    moved: bool = False
    states: Callable[[Tensor], Mapping[str, Any]] | None = None

    @property
    def home(self) -> ArenaBinding:
        """The binding."""
        assert isinstance(self.binding, ArenaBinding)
        return self.binding

    @override
    def judged(self) -> Tensor:
        assert self.grad is not None
        if [grad._version for grad in self.gradients] != self.versions:
            for member, grad, version in zip(
                self.home.members, self.gradients, self.versions, strict=True
            ):
                if grad._version != version:
                    raise changed(member.name)
        return self.grad

    @override
    def load(self) -> None:
        self.home.load()
        self.moved = True

    @override
    def store(self) -> None:
        if self.moved:
            self.home.store()

    @override
    def store_gradient(self) -> None:
        torch._foreach_copy_(self.gradients, self.home.grads)

    @override
    def remember(self, states: Callable[[Tensor], Mapping[str, Any]], parameter: Tensor) -> None:
        self.states = states

    @override
    def forget(self, fresh: Tensor, kernels: Kernels) -> None:
        home = self.home
        fresh = home.arena.clear(fresh.contiguous())
        # Plain: of few elements, and a kernel for masks would be one more to compile.
        kernels = Kernels()
        for rule, context in home.pairs:
            rule.replaced(context, fresh)
        if self.states is None:
            return
        some = home.arena.any(fresh)
        masks = home.arena.views(fresh)
        for member, parameter, mask, new in zip(
            home.members, home.parameters, masks, some, strict=True
        ):
            if new:
                states = resettable(self.states(parameter), mask)
                kernels.fill(states, mask, 0.0, shard=member.shard)

    @override
    def release(self) -> None:
        ParameterStep.release(self)
        self.home.tell()


class Arenas:
    """Which of the parameters that are trained share arenas.

    They are laid out anew when other parameters have been trained in two steps in a row; in
    between, those of an arena that is not complete take their steps one by one.
    """

    def __init__(self) -> None:
        self.bindings: list[ArenaBinding] = []
        self.active: list[ArenaBinding] = []
        self._laid_out: tuple[int, ...] = ()
        self._seen: tuple[int, ...] = ()

    def clear(self) -> None:
        """Forget all: the states of the parameters have been replaced."""
        self.bindings = []
        self._laid_out = ()

    def deal(self) -> None:
        """Give the parameters what the metrics tell of each."""
        for binding in self.bindings:
            binding.deal()

    def serving(self, trained: Named, bind: Callable[[str, nn.Parameter], Binding]) -> set[int]:
        """Complete the arenas for a step.

        Args:
            trained: (name, parameter, param group) of those that have gradients.
            bind: finds a parameter's own binding.

        Returns:
            ids of the parameters that can share a step now.
        """
        ids = tuple([id(parameter) for _, parameter, _ in trained])
        if ids != self._laid_out and (not self._laid_out or ids == self._seen):
            self._lay_out(trained, bind)
            self._laid_out = ids
        self._seen = ids
        present = set(ids)
        found: set[int] = set()
        self.active = []
        for binding in self.bindings:
            own = list(map(id, binding.parameters))
            if present.issuperset(own) and binding.complete:
                found.update(own)
                self.active.append(binding)
        return found

    def _lay_out(self, trained: Named, bind: Callable[[str, nn.Parameter], Binding]) -> None:
        groups: dict[Hashable, list[tuple[Binding, nn.Parameter]]] = {}
        for name, parameter, group in trained:
            binding = bind(name, parameter)
            kind = _kind(binding, parameter)
            if kind is not None:
                groups.setdefault((id(group), kind), []).append((binding, parameter))
        self.bindings = [
            ArenaBinding(*zip(*members, strict=True))
            for members in groups.values()
            if len(members) > 1
        ]


def _kind(binding: Binding, parameter: Tensor) -> Hashable:
    """Parameters with equal ones can share an arena; None for one that can share none."""
    if (
        binding.layout is not None
        or not 0 < parameter.numel() <= SMALL
        or type(parameter.data) is not Tensor
        or parameter.layout is not torch.strided
        or parameter.device.type == "mps"
        or not binding.pairs
    ):
        return None
    parts: list[Hashable] = [parameter.dtype, parameter.device]
    for rule, context in binding.pairs:
        if not rule.elementwise(context.synapses):
            return None
        tensors = {k: v for k, v in context.state.items() if isinstance(v, Tensor)}
        if any(value.shape != parameter.shape for value in tensors.values()):
            return None
        kinds = [(key, value.dtype) for key, value in tensors.items()]
        settings = rule.alike(context.synapses)
        parts += [context.rule, context.timing, repr((settings, kinds, plain(context)))]
    return tuple(parts)


def plain(context: Context) -> dict[str, Any]:
    """The part of a rule's state that are no tensors."""
    return {key: value for key, value in context.state.items() if not isinstance(value, Tensor)}
