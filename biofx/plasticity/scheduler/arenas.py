"""Which parameters are taken through a step together."""

from collections.abc import Callable, Hashable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from biofx.plasticity.kernels.arena import SMALL
from biofx.plasticity.numerics.rounding import NARROW
from biofx.plasticity.scheduler.arena_binding import ArenaBinding, plain
from biofx.plasticity.scheduler.arena_step import ArenaStep
from biofx.plasticity.scheduler.binding import Binding, ParameterStep

if TYPE_CHECKING:
    from biofx.plasticity.scheduler.engine import Engine

Named = Sequence[tuple[str, nn.Parameter, dict[str, Any]]]


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

    @torch.no_grad()
    def deal(self, multiplied: bool = False) -> None:
        """Give the parameters what there is to tell of each: see `ArenaBinding.deal`."""
        for binding in self.bindings:
            binding.deal(multiplied)

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
            own = binding.ids
            if own <= present and binding.complete:
                found.update(own)
                self.active.append(binding)
            elif binding.stepped and not present.isdisjoint(own):
                # What they do one by one is the last that there is to tell.
                binding.deal()
                binding.stepped = False
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


def steps_of(
    engine: "Engine",
    named: Named,
    *,
    step: int,
    unscale: Tensor | None = None,
    bind: Callable[[str, nn.Parameter], Binding],
    arenas: Arenas | None = None,
) -> list[tuple[ParameterStep, nn.Parameter, dict[str, Any]]]:
    """Steps of those parameters that have gradients, with their parameters and param groups.

    Args:
        engine: the rules.
        named: (name, parameter, its param group).
        step: counted from 1.
        unscale: undoes the scale of the gradients.
        bind: finds a parameter's binding.
        arenas: in which small parameters share a step, that of the first of them; None lets
            each have its own.
    """
    trained = [one for one in named if one[1].requires_grad and one[1].grad is not None]
    shared = set() if arenas is None else arenas.serving(trained, bind)
    for name, parameter, _ in trained if arenas is None else ():
        bind(name, parameter)
    found: list[tuple[ParameterStep, nn.Parameter, dict[str, Any]]] = [
        (engine.site(name, p, step=step, grad=p.grad, unscale=unscale), p, group)
        for name, p, group in trained
        if id(p) not in shared
    ]
    for binding in () if arenas is None else arenas.active:
        gradients = [p.grad for p in binding.parameters if p.grad is not None]
        for _, context in binding.pairs:
            context.weight, context.grad = binding.weight, binding.grad
            context.step, context.seed, context.unscale = step, engine.seed, unscale
        first = binding.parameters[0]
        group = next(group for _, parameter, group in trained if parameter is first)
        versions = [grad._version for grad in gradients]
        one = ArenaStep(
            binding, binding.weight, binding.grad, gradients=gradients, versions=versions
        )
        found.append((one, first, group))
    return found


def _kind(binding: Binding, parameter: Tensor) -> Hashable:
    """Parameters with equal ones can share an arena; None for one that can share none."""
    if (
        binding.layout is not None
        or not 0 < parameter.numel() <= SMALL
        or type(parameter.data) is not Tensor
        or parameter.layout is not torch.strided
        or parameter.device.type == "mps"
        or not binding.pairs
        # What is rounded by chance draws by its own parameter's key.
        or parameter.dtype in NARROW
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
