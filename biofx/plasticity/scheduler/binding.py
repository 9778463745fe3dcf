"""`Binding`: one parameter and its rules; `ParameterStep`: that parameter at one step."""

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from biofx.errors import PlasticityError
from biofx.plasticity.kernels.arena import SMALL
from biofx.plasticity.kernels.base import KernelCall, Kernels, filling, joined
from biofx.plasticity.numerics.shards import Shard, local
from biofx.plasticity.rules.context import Count
from biofx.plasticity.rules.rule import Context, Expression, Rule, Stage, scalar
from biofx.plasticity.scheduler.copies import Copies
from biofx.plasticity.scheduler.optimizer_state import start_afresh
from biofx.plasticity.scheduler.trial import PLAIN, Traits

# Finds what an optimizer, and those wrapped around it, keep for a parameter.
States = Callable[[Tensor], Sequence[Mapping[str, Any]]]

# The functions of a rule that each stage of a step calls.
FUNCTIONS: dict[Stage, tuple[str, ...]] = {
    "observe": ("observe",),
    "factor": ("expression", "factor"),
    "before_update": ("before_update",),
    "after_step": ("after_step",),
}


@dataclass
class Binding:
    """One parameter and the rules that serve it, each with its context and state.

    `layout` is the device mesh and the placements of a DTensor; `watched`, whether a rule needs the
    layer's activity; `padding`, the local row of an embedding that stays as it is; `corrected`,
    whether the parameter's optimizer corrects bias; `parameter`, what was last found to be as the
    binding says. For the metrics of the last step: `numbers`, the factors as `expressions`, and
    `factors` that are none; or all of them multiplied, `product`.
    """

    name: str
    shard: Shard
    pairs: list[tuple[Rule, Context]]
    layout: tuple[Any, Any] | None = None
    watched: bool = False
    padding: int | None = None
    corrected: bool = False
    parameter: weakref.ref[Tensor] | None = None
    stepped: bool = False
    numbers: dict[str, Tensor | Count] = field(default_factory=dict)
    expressions: Sequence[Expression] = ()
    factors: Sequence[Tensor] = ()
    product: Tensor | None = None

    def __post_init__(self) -> None:
        # A step calls only what a rule has: most rules have one or two of the functions.
        self.acting = {
            stage: [
                (rule, context)
                for rule, context in self.pairs
                if overrides(rule, *functions) and rule.acts_in(context.synapses, stage)
            ]
            for stage, functions in FUNCTIONS.items()
        }
        self.asking = frozenset(context for rule, context in self.pairs if overrides(rule, "needs"))
        changing = self.acting["before_update"] + self.acting["after_step"]
        self.changes = bool(changing) or any(rule.replaces for rule, _ in self.pairs)
        self.adding = frozenset(context for rule, context in self.pairs if overrides(rule, "total"))
        self.told = [pair for pair in self.pairs if overrides(pair[0], "replaced")]

    def remember(self, parameter: Tensor) -> None:
        """Take the next steps of this parameter without another look, unless it is sharded."""
        self.parameter = weakref.ref(parameter) if self.layout is None else None

    def fits(self, parameter: Tensor) -> bool:
        """Whether this is the ordinary parameter that was bound, of the same size."""
        known = self.parameter
        return known is not None and known() is parameter and parameter.shape == self.shard.size

    def parts(self, mask: Tensor) -> Iterator[tuple[str, Tensor]]:
        """(name, its part of a mask) of each parameter that is bound here."""
        yield self.name, mask

    def note(self, site: "ParameterStep") -> None:
        """Remember the factors of a step."""
        self.stepped, self.product = True, None
        self.expressions, self.factors = site.expressions, site.factors


@dataclass(slots=True)
class ParameterStep:
    """One parameter at one step: its local tensors, and the factors of its update.

    `parameter` is the parameter itself, or the first of several, and `group` its param group.
    `acts` holds the rules that act at each stage, once they have been asked. `sources` are the
    contexts that the `expressions` come from. `work` is what rules have left to be done in the pass
    that applies the factors; `version` counts the changes of the gradient before that. After the
    step, `states` are what the optimizer, and those wrapped around it, keep for the parameter,
    `traits` says what that means, and `fresh` is the mask of new synapses.
    """

    binding: Binding
    weight: Tensor
    grad: Tensor | None
    parameter: Tensor
    group: Mapping[str, Any]
    acts: dict[Stage, list[tuple[Rule, Context]]] = field(default_factory=dict)
    expressions: list[Expression] = field(default_factory=list)
    sources: list[Context] = field(default_factory=list)
    factors: list[Tensor] = field(default_factory=list)
    work: list[KernelCall] = field(default_factory=list)
    statistics: dict[str, Tensor] = field(default_factory=dict)
    version: int = 0
    states: Sequence[Mapping[str, Any]] = ()
    traits: Traits = PLAIN
    fresh: Tensor | None = None

    def __post_init__(self) -> None:
        if self.grad is not None:
            self.version = self.grad._version

    def due(self, stage: Stage, kinds: tuple[type[Rule], ...] = ()) -> list[tuple[Rule, Context]]:
        """The rules whose function of a stage is called at this step.

        Args:
            stage: of the step.
            kinds: classes of the rules meant; none means all.
        """
        acting = self.binding.acting[stage]
        if not acting:
            return acting
        found = self.acts.get(stage)
        if found is None:
            found = self.acts[stage] = [pair for pair in acting if pair[0].active(pair[1], stage)]
        return [pair for pair in found if isinstance(pair[0], kinds)] if kinds else found

    def judged(self) -> Tensor:
        """The gradient, after the optimizer's step.

        Raises:
            PlasticityError: it is not the one that the rules have judged.
        """
        assert self.grad is not None
        if self.grad._version != self.version:
            raise changed(self.binding.name)
        return self.grad

    def finish(self, kernels: Kernels) -> None:
        """Do what has been left to be done, in one pass."""
        if self.work:
            work = joined(self.work)
            self.work.clear()
            kernels.do(work, shard=self.binding.shard)

    @property
    def parameters(self) -> Sequence[Tensor]:
        """All that take this step."""
        return [self.parameter]

    def joined(self, entries: Sequence[Tensor]) -> Tensor:
        """What an optimizer keeps for each weight, of each parameter, laid out as the weights."""
        return local(entries[0])

    def each(self, numbers: Sequence[Any]) -> Tensor:
        """Numbers of each parameter, as float32 that broadcasts to the weights."""
        return number(numbers[0], self.weight.device)

    def date(self, births: Tensor, fresh: Tensor) -> Sequence[Any]:
        """Write for new synapses (a mask) at which of the optimizer's steps they are born.

        Left to be done by `finish`.

        Returns:
            The numbers of those steps, by parameters.
        """
        counts = [state.get("step", 0) for state in self.states[:1]] or [0]
        self.work.append(filling({"births": births}, fresh, [self.each(counts)]))
        return counts

    def padding(self) -> Tensor | None:
        """A copy of the row that is to stay as it is, if there is one."""
        place = self.binding.padding
        return None if place is None else self.weight[place].clone()

    def keep_padding(self, row: Tensor | None, fresh: Tensor | None) -> None:
        """Put that row back, and let no synapse of it be new (a mask)."""
        place = self.binding.padding
        if row is not None and place is not None:
            self.weight[place] = row
            if fresh is not None:
                fresh[place] = False

    def see(self, gradient: bool = False) -> None:
        """Have the weights from before the step at hand, and the gradient if need be."""

    def before(self, copy: Copies) -> Tensor:
        """The weights from before the step, for as long as it takes."""
        return copy(self.binding.name, self.weight)

    def load(self) -> None:
        """Find the weights as the optimizer has left them."""
        weight = local(self.parameter)
        if weight.data_ptr() != self.weight.data_ptr():  # p.data = p.data - …
            self.weight = weight
            for _, context in self.binding.pairs:
                context.weight = weight

    def store(self, before: bool = False) -> None:
        """Let the parameters have the weights, those from before the step if it is yet to come."""

    def store_gradient(self) -> None:
        """Let the parameters have the gradients."""

    @property
    def step(self) -> int:
        """Optimizer steps, this one included."""
        return self.binding.pairs[0][1].step if self.binding.pairs else 0

    @property
    def large(self) -> bool:
        """Whether what belongs to it is worth more than a copy, and never a part of an arena's."""
        return self.weight.numel() > SMALL

    @property
    def resting(self) -> bool:
        """Whether every factor is 1."""
        return not (self.expressions or self.factors)

    def remember(self, states: States, traits: Traits) -> None:
        """Show the rules that change weights what the optimizer keeps for this parameter.

        Args:
            states: finds what the optimizer, and those around it, keep for a parameter.
            traits: what the first of these means.
        """
        if self.binding.changes:
            self.states, self.traits = states(self.parameter), traits
            for _, context in self.binding.pairs:
                context.optimizer_state = self.states[0]

    def forget(self, fresh: Tensor, kernels: Kernels) -> None:
        """New synapses start without a past: neither in the rules nor in the optimizer.

        Args:
            fresh: a mask of the weight's local shape, true where a synapse is new.

        Raises:
            PlasticityError: the optimizer's state cannot be reset for some synapses alone.
        """
        self.fresh = fresh
        self.announce(fresh, kernels)
        self.finish(kernels)
        start_afresh(
            self.binding.name,
            self.states,
            fresh,
            weight=self.weight,
            traits=self.traits,
            shard=self.binding.shard,
            kernels=kernels,
        )

    def announce(self, fresh: Tensor, kernels: Kernels) -> None:
        """Tell the rules of new synapses; what they do then may be left to be done."""
        for rule, context in self.binding.told:
            if rule.maps_only:
                context.later = self.work
            else:
                self.finish(kernels)
            try:
                rule.replaced(context, fresh)
            finally:
                context.later = None

    def release(self) -> None:
        """The step is over: hold no gradient, and take the rules' numbers for the metrics."""
        self.grad = None
        for _, context in self.binding.pairs:
            if context.events:
                self.binding.numbers.update(context.events)
                context.events.clear()
            for count in context.counts:
                count.settle()
            context.counts.clear()
            context.grad = context.fresh = context.activity = context.total = None
            context.optimizer_state = context.statistics = {}


def number(value: Any, device: torch.device) -> Tensor:
    """A number, or what an optimizer keeps for one, as a float32 tensor of shape ()."""
    if isinstance(value, Tensor):
        return value.detach().reshape(()).to(device, torch.float32)
    return scalar(float(value), device)


def changed(name: str) -> PlasticityError:
    """The error for a gradient that is not the one that was judged."""
    return PlasticityError(
        f"{name}: .grad was changed during optimizer.step(), after it was judged; if a hook of the "
        "optimizer does that, register it after the GradScheduler"
    )


def overrides(rule: Rule, *functions: str) -> bool:
    """Whether a rule has one of these functions of its own."""
    return any(getattr(type(rule), name) is not getattr(Rule, name) for name in functions)
