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
        self.active: list[tuple[ArenaBinding, list[Tensor]]] = []
        # Of each parameter and its param group.
        self._laid_out: tuple[tuple[int, int], ...] = ()
        self._seen: tuple[tuple[int, int], ...] = ()
        # Of the last step at which all arenas were complete: all parameters, those of them that
        # were trained alone, and those that were not trained.
        self._named: Named | None = None
        self._alone: Named = []
        self._resting: Named = []

    def part(self) -> None:
        """All parameters take their steps one by one."""
        self._named = None
        for binding in self.bindings:
            binding.part()

    def clear(self) -> None:
        """Forget all: the states of the parameters have been replaced."""
        self.deal()
        self.bindings = []
        self._laid_out = ()
        self._named = None

    @torch.no_grad()
    def deal(self, multiplied: bool = False) -> None:
        """Give the parameters what there is to tell of each: see `ArenaBinding.deal`."""
        for binding in self.bindings:
            binding.deal(multiplied)

    def serving(
        self,
        named: Named,
        bind: Callable[[str, nn.Parameter], Binding],
        leaves: Callable[[str, nn.Parameter], bool],
    ) -> Named:
        """Complete the arenas for a step: `active`, with the gradients of each.

        Args:
            named: (name, parameter, param group) of all.
            bind: finds a parameter's own binding.
            leaves: whether a parameter is left alone.

        Returns:
            Those that are trained, but not in an arena.
        """
        if named is self._named and self._again(leaves):
            return self._alone
        self._named = None
        kept = [entry for entry in named if not leaves(entry[0], entry[1])]
        trained = trained_of(kept)
        for name, parameter, _ in trained:
            bind(name, parameter)
        ids = tuple([(id(parameter), id(group)) for _, parameter, group in trained])
        if ids != self._laid_out and (not self._laid_out or ids == self._seen):
            self._lay_out(trained, bind)
            self._laid_out = ids
        self._seen = ids
        present = set(ids)
        stepping = {parameter for parameter, _ in ids}
        found: set[tuple[int, int]] = set()
        self.active = []
        for binding in self.bindings:
            own = binding.ids
            gradients = binding.gradients() if own <= present else None
            if gradients is not None and (not binding.parted or binding.rejoined()):
                found.update(own)
                self.active.append((binding, gradients))
            elif gradients is not None:
                self.bindings = [other for other in self.bindings if other is not binding]
                self._laid_out = ()  # anew at the next step
            elif not stepping.isdisjoint(parameter for parameter, _ in own):
                binding.part()
        alone = [entry for entry in trained if (id(entry[1]), id(entry[2])) not in found]
        if ids == self._laid_out and len(kept) == len(named):
            self._named, self._alone = named, alone
            self._resting = [e for e in named if (id(e[1]), id(e[2])) not in present]
        return alone

    def _again(self, leaves: Callable[[str, nn.Parameter], bool]) -> bool:
        """Whether the same parameters are trained as at the last step, and as they were then."""
        if self._resting and trained_of(self._resting):
            return False
        if self._alone:
            if len(trained_of(self._alone)) < len(self._alone):
                return False
            if any(leaves(name, parameter) for name, parameter, _ in self._alone):
                return False
        active = []
        for binding, _ in self.active:
            gradients = binding.gradients()
            if gradients is None:
                return False
            active.append((binding, gradients))
        self.active = active
        return True

    def _lay_out(self, trained: Named, bind: Callable[[str, nn.Parameter], Binding]) -> None:
        alike: dict[Hashable, tuple[list[Binding], list[nn.Parameter], dict[str, Any]]] = {}
        for name, parameter, group in trained:
            binding = bind(name, parameter)
            kind = _kind(binding, parameter)
            if kind is not None:
                bindings, parameters, _ = alike.setdefault((id(group), kind), ([], [], group))
                bindings.append(binding)
                parameters.append(parameter)
        self.deal()
        self.bindings = [
            ArenaBinding(*members) for members in alike.values() if len(members[0]) > 1
        ]


def steps_of(
    engine: "Engine",
    named: Named,
    *,
    step: int,
    unscale: Tensor | None = None,
    bind: Callable[[str, nn.Parameter], Binding],
    leaves: Callable[[str, nn.Parameter], bool],
    arenas: Arenas | None = None,
) -> list[ParameterStep]:
    """Steps of those parameters that have gradients.

    Args:
        engine: the rules.
        named: (name, parameter, its param group).
        step: counted from 1.
        unscale: undoes the scale of the gradients.
        bind: finds a parameter's binding.
        leaves: whether a parameter is left alone.
        arenas: in which small parameters share a step, that of the first of them; None lets
            each have its own.
    """
    if arenas is not None:
        alone = arenas.serving(named, bind, leaves)
    else:
        alone = trained_of([entry for entry in named if not leaves(entry[0], entry[1])])
        for name, parameter, _ in alone:
            bind(name, parameter)
    found = [
        engine.site(name, parameter, group, step=step, grad=parameter.grad, unscale=unscale)
        for name, parameter, group in alone
    ]
    for binding, gradients in () if arenas is None else arenas.active:
        for _, context in binding.pairs:
            context.weight, context.grad = binding.weight, binding.grad
            context.step, context.seed, context.unscale = step, engine.seed, unscale
        one = ArenaStep(
            binding=binding,
            weight=binding.weight,
            grad=binding.grad,
            parameter=binding.parameters[0],
            group=binding.group,
            gradients=gradients,
        )
        found.append(one)
    return found


def trained_of(named: Named) -> list[tuple[str, nn.Parameter, dict[str, Any]]]:
    """Those that have gradients."""
    return [one for one in named if one[1].requires_grad and one[1].grad is not None]


def _kind(binding: Binding, parameter: Tensor) -> Hashable:
    """Parameters with equal ones can share an arena; None for one that can share none."""
    if (
        binding.layout is not None
        or binding.padding is not None
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
