"""The rules of a scheduler, bound to parameters, run stage by stage over many of them at once."""

from collections.abc import Container, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from biofx.errors import PlasticityError
from biofx.plasticity.kernels.base import Kernels
from biofx.plasticity.kernels.statistics import Request, measure
from biofx.plasticity.numerics.shards import (
    Shard,
    layout_of,
    local,
    local_gradient,
    shard_of,
)
from biofx.plasticity.rules.rule import Context, Rule, Stage
from biofx.plasticity.rules.turnover import UnitTurnover
from biofx.plasticity.scheduler import newborns
from biofx.plasticity.scheduler.activity import collect_activity, counters
from biofx.plasticity.scheduler.arena_binding import ArenaBinding
from biofx.plasticity.scheduler.arenas import Arenas
from biofx.plasticity.scheduler.binding import FUNCTIONS, Binding, ParameterStep, overrides
from biofx.plasticity.scheduler.checkpoint import restore
from biofx.plasticity.scheduler.contexts import contexts_of, padding_of
from biofx.plasticity.scheduler.observer import Observers
from biofx.plasticity.scheduler.rule_outputs import checked_factor, checked_mask, note_place
from biofx.plasticity.scheduler.surgery import Surgery
from biofx.plasticity.scheduler.totals import add_up
from biofx.plasticity.scheduler.undo import Undo
from biofx.plasticity.scheduler.units import States, UnitEngine, no_state
from biofx.synapses import Followed, Synapses, record_of

# Of a parameter that no optimizer moves.
_NO_GROUP: Mapping[str, Any] = MappingProxyType({})


class Engine:
    """Rules bound to the synapses of one model. Call its stages with gradients switched off.

    Args:
        model: a transformed model, wrapped or not.
        synapses: {parameter name: Synapses}.
        rules: in the order in which they act.
        seed: of all random draws.
        kernels: how the rules' functions are evaluated.
    """

    def __init__(
        self,
        model: nn.Module,
        synapses: Mapping[str, Synapses],
        *,
        rules: Sequence[Rule],
        seed: int,
        kernels: Kernels,
    ) -> None:
        self.model = model
        self.synapses = synapses
        self.rules = tuple(rules)
        self.seed = seed
        self.kernels = kernels
        # Whether rules may change the weights of a parameter when they first see it.
        self.initialises = True
        # Parameters that were trained with these rules before: their weights are not begun again.
        self.begun: set[str] = set()
        self.bindings: dict[str, Binding] = {}
        # Of each optimizer: what counts its steps, and how its small parameters are laid out.
        self.counters: list[Any] = []
        self.arenas: list[Arenas] = []
        self.observers = Observers()
        self.surgery = Surgery(model, synapses)
        # States from a checkpoint, of parameters that have not been trained since (frozen ones).
        self.waiting: dict[str, dict[str, dict[str, Any]]] = {}
        names = [rule.name for rule in self.rules]
        # Two rules of one class are told apart by their place.
        self.keys = [
            name if names.count(name) == 1 else f"{name}.{place}"
            for place, name in enumerate(names)
        ]
        for rule in self.rules:
            served = [entry for entry in synapses.values() if rule.serves(entry)]
            for entry in served:
                rule.settings(entry)  # refuses bad hyperparameters
            if not (served or rule.configured):
                raise PlasticityError(
                    f"{rule.name} serves no parameter: only={rule.only} matches none of "
                    f"{', '.join(list(synapses)[:8])}"
                )
        turnover = [rule for rule in self.rules if isinstance(rule, UnitTurnover)]
        self.followed = Followed(record_of(model).populations, synapses)
        self.units = UnitEngine(model, synapses, self.followed.populations, turnover)

    def kept(self) -> dict[str, Synapses]:
        """The synapses without those of layers that were found changed since (see `Surgery`)."""
        left = self.surgery.left
        return {name: entry for name, entry in self.synapses.items() if name not in left}

    def has(self, stage: Stage) -> bool:
        """Whether any rule does something to weights, or to their moves, at a stage."""
        return any(
            overrides(rule, *FUNCTIONS[stage]) and rule.serves(entry) and rule.acts_in(entry, stage)
            for rule in self.rules
            if stage != "after_step" or rule.changes_weights
            for entry in self.synapses.values()
        )

    def bind(self, name: str, parameter: Tensor) -> Binding:
        """The binding of a parameter; prepares rules for one that was not seen before."""
        binding = self.bindings.get(name)
        if binding is not None and binding.fits(parameter):
            return binding
        shard = shard_of(parameter, name)
        if binding is not None:
            if binding.shard.size != shard.size or binding.shard.offsets != shard.offsets:
                raise PlasticityError(
                    f"{name} was sharded anew after its scheduler was made; make the scheduler "
                    "after fully_shard or parallelize_module"
                )
            binding.remember(parameter)
            return binding
        entry = self.synapses[name]
        if tuple(entry.shape) != shard.shape:
            raise PlasticityError(
                f"{name} has shape {shard.shape}, but the model was transformed when it had "
                f"{tuple(entry.shape)}; transform the model again"
            )
        pairs = self.contexts(name, parameter, shard)
        binding = Binding(name, shard, pairs, layout_of(parameter))
        binding.padding = padding_of(self.model, entry, shard)
        for rule, context in pairs:
            context.padding = binding.padding
            if rule.needs_activity(entry):
                binding.watched = True
                counters(self.model, entry)
            rule.prepare(context)
        if self.initialises:
            if name not in self.begun and name not in self.waiting:
                for rule, context in pairs:
                    rule.initialise(context)
            for rule, context in pairs:
                rule.begin(context)
        waiting = self.waiting.pop(name, None)
        if waiting is not None:
            restore(binding, waiting)
        binding.remember(parameter)
        self.bindings[name] = binding
        return binding

    def contexts(self, name: str, parameter: Tensor, shard: Shard) -> list[tuple[Rule, Context]]:
        """The rules that serve a parameter, each with a new context, not prepared yet."""
        entry = self.synapses[name]
        return contexts_of(
            self.model,
            self.followed,
            [
                (key, rule)
                for key, rule in zip(self.keys, self.rules, strict=True)
                if rule.serves(entry) or self.units.needs(rule, name)
            ],
            entry=entry,
            weight=local(parameter),
            shard=shard,
            seed=self.seed,
            kernels=self.kernels,
        )

    def site(
        self,
        name: str,
        parameter: Tensor,
        group: Mapping[str, Any] = _NO_GROUP,
        *,
        step: int,
        grad: Tensor | None = None,
        unscale: Tensor | None = None,
    ) -> ParameterStep:
        """One parameter at one step, as it stands now, with its gradient."""
        binding = self.bind(name, parameter)
        if binding.layout is None:
            weight = parameter.detach()
            # What is done to a detached sparse tensor does not reach the one that it comes from.
            if grad is not None and not grad.is_sparse:
                grad = grad.detach()
        else:
            weight, grad = local(parameter), local_gradient(grad, parameter)
        for _, context in binding.pairs:
            context.weight, context.grad = weight, grad
            context.step, context.seed, context.unscale = step, self.seed, unscale
        return ParameterStep(binding, weight, grad, parameter, group)

    def observe(
        self,
        sites: Sequence[ParameterStep],
        *kinds: type[Rule],
        later: bool = False,
        undo: Undo | None = None,
    ) -> None:
        """Gradients are known, weights have not moved: update the rules' states.

        Args:
            sites: parameters at this step.
            kinds: classes of the rules meant; none means all.
            later: gradients stay as they are until factors are applied; what can be done in that
                pass is left in `ParameterStep.work`.
            undo: remembers what is changed before the optimizer's step.
        """
        # What the factors need is measured in the same go.
        self.measure(sites, ("observe", "factor"), kinds)
        users = [
            context
            for site in sites
            if site.binding.watched
            for rule, context in site.binding.pairs
            if isinstance(rule, kinds or Rule) and rule.needs_activity(context.synapses)
        ]
        if users:
            collect_activity(self.model, users, undo)
        for site in sites:
            for rule, context in site.due("observe", kinds):
                site.see(gradient=True)
                waits = later and rule.observes_with_factors  # its state is as it was, then
                if undo is not None and not waits:
                    undo.keep(context)
                context.later = site.work if later else None
                done = len(site.work)
                try:
                    rule.observe(context)
                except Exception as error:
                    note_place(error, rule, site)
                    raise
                finally:
                    context.later = None
                if undo is not None and waits and not undo.deferred:
                    if site.large and len(site.work) > done:
                        site.work[done:] = [undo.apart(site.work[done:], context)]
                    else:
                        undo.keep(context)

    def collect(self, sites: Sequence[ParameterStep], *kinds: type[Rule]) -> None:
        """Find the factors of each parameter: its `expressions` and `factors`.

        `observe` comes first, or `measure`.
        """
        for site in sites:
            for rule, context in site.due("factor", kinds):
                try:
                    expression = rule.expression(context)
                    if expression is not None:
                        site.expressions.append(expression)
                        site.sources.append(context)
                        continue
                    site.see(gradient=True)
                    factor = rule.factor(context)
                    if factor is not None:
                        site.factors.append(checked_factor(factor, rule, site))
                except Exception as error:
                    note_place(error, rule, site)
                    raise

    def settle(
        self,
        sites: Sequence[ParameterStep],
        *kinds: type[Rule],
        states: States = no_state,
        held: Container[str] | None = None,
    ) -> bool:
        """Weights have moved: let the rules change them, and let go of the step.

        Args:
            sites: parameters at this step.
            kinds: classes of the rules meant; none means all.
            states: what the optimizer keeps for a parameter.
            held: names of the parameters whose step it is, trained or not; None means all.

        Returns:
            Whether synapses were replaced by new ones.
        """
        replaced = self.change(sites, "after_step", kinds)
        if self.units.watching:
            padding = [site.padding() for site in sites]
            fresh = self.units.step(sites, states, held)
            for site, row in zip(sites, padding, strict=True):
                site.keep_padding(row, fresh.get(site.binding.name))
                if site.binding.name in fresh:
                    self._forget(site, fresh[site.binding.name])
                    replaced = True
        for site in sites:
            site.release()
        return replaced

    def _forget(self, site: ParameterStep, fresh: Tensor) -> None:
        newborns.note(site, fresh)
        site.forget(fresh, self.kernels)
        site.finish(self.kernels)
        for name, part in site.binding.parts(fresh) if self.observers else ():
            self.observers.replaced(name, part)

    def change(
        self, sites: Sequence[ParameterStep], stage: Stage, kinds: tuple[type[Rule], ...] = ()
    ) -> bool:
        """Let the rules change weights before or after the optimizer's step.

        Where several replace a synapse, what the last one has put there stays.

        Returns:
            Whether synapses were replaced by new ones.
        """
        acting = []
        for site in sites:
            if site.due(stage, kinds):
                site.statistics.clear()
                acting.append(site)
            else:
                site.finish(self.kernels)
        if acting:
            self.measure(acting, (stage,), kinds)
            add_up(acting, stage, kinds, self.kernels)
        replaced = False
        for site in acting:
            fresh: Tensor | None = None
            if site.binding.padding is not None:
                site.finish(self.kernels)
            row = site.padding()
            for rule, context in site.due(stage, kinds):
                context.fresh = fresh
                if rule.maps_only:
                    context.later = site.work
                else:
                    site.finish(self.kernels)
                try:
                    function = rule.before_update if stage == "before_update" else rule.after_step
                    mask = function(context)
                    if mask is not None:
                        mask = checked_mask(mask, rule, site, stage)
                        if fresh is not None:
                            site.finish(self.kernels)
                        fresh = mask if fresh is None else fresh | mask
                except Exception as error:
                    note_place(error, rule, site)
                    raise
                finally:
                    context.later = None
            if row is not None:
                site.finish(self.kernels)
                site.keep_padding(row, fresh)
            if fresh is None:
                site.finish(self.kernels)
            else:
                self._forget(site, fresh)
                replaced = True
        return replaced

    def measure(
        self,
        sites: Iterable[ParameterStep],
        stages: tuple[Stage, ...],
        kinds: tuple[type[Rule], ...],
    ) -> None:
        """Find the statistics that rules need: `Context.statistics`.

        Args:
            sites: parameters at this step.
            stages: functions of the rules that will read them.
            kinds: classes of the rules meant; none means all.
        """
        requests = []
        for site in sites:
            if not site.binding.asking:
                continue
            found = site.statistics
            wanted: dict[str, None] = {}
            rules: dict[str, None] = {}
            for stage in stages:
                for rule, context in site.due(stage, kinds):
                    if context not in site.binding.asking:
                        continue
                    context.statistics = found
                    for name in rule.needs(context, stage):
                        if name not in found:
                            wanted[name] = rules[rule.name] = None
            if wanted:
                if stages[0] in ("before_update", "after_step"):
                    site.finish(self.kernels)
                else:
                    site.see()
                binding, asking = site.binding, " and ".join(rules)
                names = binding.names if isinstance(binding, ArenaBinding) else binding.name
                requests.append(
                    Request(names, site.weight, binding.shard, tuple(wanted), asking, found)
                )
        if requests:
            measure(requests, self.kernels)

    def drop_counts(self, sites: Sequence[ParameterStep]) -> None:
        """Forget how often units of these were active since the rules were told."""
        for site in sites:
            if site.binding.watched:
                torch._foreach_zero_(counters(self.model, self.synapses[site.binding.name]))

    def drop_activity(self, binding: Binding) -> None:
        """Forget what was counted since the last step: a checkpoint has been loaded."""
        self.units.forget()
        for arenas in self.arenas:
            arenas.clear()
        for rule, context in binding.pairs:
            if rule.needs_activity(context.synapses):
                torch._foreach_zero_(counters(self.model, context.synapses))
