"""`OptimizerHooks`: one optimizer's hooks, and what happens between them."""

import functools
import sys
from collections.abc import Callable, Mapping
from typing import Any, Literal
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from biofx.errors import PlasticityError
from biofx.plasticity.kernels.base import KernelCall
from biofx.plasticity.numerics.shards import local, local_gradient, reshard
from biofx.plasticity.numerics.uncompiled import uncompiled
from biofx.plasticity.numerics.untracked import untracked
from biofx.plasticity.scheduler import newborns
from biofx.plasticity.scheduler.apply import Applier
from biofx.plasticity.scheduler.arenas import Arenas, steps_of
from biofx.plasticity.scheduler.binding import Binding, ParameterStep
from biofx.plasticity.scheduler.copies import Copies
from biofx.plasticity.scheduler.engine import Engine
from biofx.plasticity.scheduler.entries import tensors_in
from biofx.plasticity.scheduler.frames import alive, outside, refuse_threads
from biofx.plasticity.scheduler.known_steps import (
    is_initialising,
    keeps_gradients,
    plain_sgd,
    rate,
    scaler_attribute,
)
from biofx.plasticity.scheduler.optimizer_state import state_of, warn_of_lost_state
from biofx.plasticity.scheduler.optimizer_step import OptimizerStep
from biofx.plasticity.scheduler.positions import Positions
from biofx.plasticity.scheduler.silence import Silence
from biofx.plasticity.scheduler.undo import Undo
from biofx.plasticity.scheduler.unseen import UnseenSteps
from biofx.synapses import unwrap

Mode = Literal["update", "gradient"]
Named = list[tuple[str, nn.Parameter, dict[str, Any]]]

# Optimizers that some scheduler has acted in.
_ACTED_IN: WeakSet[Optimizer] = WeakSet()


class OptimizerHooks:
    """Hooks one optimizer and counts its steps.

    Args:
        optimizer: the `torch.optim.Optimizer` that moves the weights.
        around: those that are wrapped around it, from the outside.
        engine: the rules.
        mode: where factors act.
        applier: how they are applied.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        engine: Engine,
        *,
        mode: Mode,
        applier: Applier,
        around: tuple[Any, ...] = (),
    ) -> None:
        self.optimizer = optimizer
        self.around = around
        self.engine = engine
        self.mode = mode
        self.applier = applier
        self.steps = 0
        self._silence = Silence()
        self._law = newborns.law_of(optimizer)
        self.resumed = False
        self.positions = Positions(optimizer)
        self._unseen: UnseenSteps | None = None
        self._step: OptimizerStep | None = None
        self._known: tuple[tuple[int, ...], Named] = ((), [])
        self._held: list[tuple[Mapping[str, Any], str]] = []
        self._copy = Copies()
        self._arenas = Arenas()
        engine.arenas.append(self._arenas)
        engine.counters.append(self)
        self._handles = [
            optimizer.register_step_pre_hook(self._before),
            optimizer.register_step_post_hook(self._after),
        ]
        # Whoever looks at the weights after a step (a mean of them, a mask, a clamp) is to see what
        # the step has made of them, and to have the last word.
        optimizer._optimizer_step_post_hooks.move_to_end(  # type: ignore[attr-defined]
            self._handles[1].id, last=False
        )

    def detach(self) -> None:
        """Remove the hooks; a step under way finishes as a plain one."""
        self.interrupted()
        for handle in self._handles:
            handle.remove()
        if self._unseen is not None:
            self._unseen.stop()
        if self._step is not None and self._step.undo is not None:
            self._step.undo.back()
        self._step = None
        self._copy.kept.clear()

    def prepare(self) -> None:
        """Bind the parameters that are trained now; others follow when they are.

        Raises:
            PlasticityError: under this optimizer, what a rule does would be undone.
        """
        named = self.named()
        factors = self.mode == "update" and self.engine.has("factor")
        for name, parameter, group in named if factors or self.engine.has("after_step") else ():
            self.positions.refuse(name, self.positions.traits(group, parameter), factors=factors)
        for name, parameter, _ in named:
            if parameter.requires_grad:
                self._bind(name, parameter)
        self._unseen = UnseenSteps([p for _, p, _ in named], type(self.optimizer).__name__)

    def _bind(self, name: str, parameter: nn.Parameter) -> Binding:
        binding = self.engine.bind(name, parameter)
        if self._law is not None:
            binding.corrected = True
            newborns.prepare(binding)
        return binding

    def interrupted(self) -> None:
        """If the last step has raised: it has never been, as far as the rules are concerned."""
        step = self._step
        if step is not None and not alive(step.frame, step.thread):
            self._step = None
            if step.undo is not None:
                with torch.no_grad():
                    step.undo.back()
                self.applier.forget()

    def named(self) -> Named:
        """(name, parameter, its param group) of the model's synapses in this optimizer."""
        ids = self._ids()
        if ids != self._known[0]:
            model = unwrap(self.engine.model)
            reshard(model)
            names = {id(model.get_parameter(name)): name for name in self.engine.surgery.present()}
            # Loading a state dict makes new groups, with the rates that hold from then on.
            found = [
                (names[id(parameter)], parameter, group)
                for group in self.optimizer.param_groups
                for parameter in group["params"]
                if id(parameter) in names
            ]
            if self._known[1] and not (found or self.engine.surgery.left):
                raise PlasticityError(
                    f"{type(self.optimizer).__name__} shares no weight with the model any more, "
                    "for its parameters were replaced; make optimizer and scheduler anew"
                )
            places = [name.rpartition(".") for name, _, _ in found]
            self._held = [(model.get_submodule(owner)._parameters, key) for owner, _, key in places]
            self._known = (self._ids(), found)
        return self._known[1]

    def _ids(self) -> tuple[int, ...]:
        """What changes when parameters are replaced, pruned, or put into other groups."""
        ids: list[int] = []
        for group in self.optimizer.param_groups:
            ids += id(group), len(group["params"]), *map(id, group["params"])
        return (*ids, *[id(registry.get(key)) for registry, key in self._held])

    @uncompiled
    def _before(self, optimizer: Optimizer, args: Any, kwargs: Any) -> Any:
        self.interrupted()
        if self._step is not None:
            refuse_threads(self._step.thread, type(optimizer).__name__)
            # The step of a base class, called by its subclass.
            self._step.depth += 1
            return None
        self._step = step = OptimizerStep(outside(sys._getframe(1)))
        # args[0] is the optimizer itself: the hook sees the unbound call
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        overflown = scaler_attribute("found_inf", (*self.around, optimizer))
        if (overflown is not None and bool(overflown)) or (
            not callable(closure) and is_initialising(optimizer, kwargs)
        ):
            step.skipped = True
            return None
        if self._unseen is not None:
            self._unseen.stop()
            self._unseen = None
        if callable(closure):
            step.closure = True
            if self.mode == "update":
                step.before = {
                    name: self._copy(name, local(parameter))
                    for name, parameter, _ in self.named()
                    if parameter.requires_grad
                }
                if not self.positions.plain:
                    self.positions.begin(self.named(), step.before, self._copy)
            watched = self._watch(closure, step)
            if len(args) > 1:
                return (args[0], watched, *args[2:]), kwargs
            return args, {**kwargs, "closure": watched}
        self._gradients(step)
        return None

    def _watch(self, closure: Callable[[], Any], step: OptimizerStep) -> Callable[[], Any]:
        def watched() -> Any:
            loss = closure()
            if self._step is not step:
                return loss  # detached since
            # LBFGS calls again at points on its way: only the first gradient is at w_before.
            if not step.observed:
                self._gradients(step)
            elif self.mode == "gradient":
                for site in step.sites:  # zero_grad has let go of the first ones
                    site.grad = local_gradient(site.parameter.grad, site.parameter)
                self._scale(step)
            return loss

        return watched

    @untracked
    def _gradients(self, step: OptimizerStep) -> None:
        step.observed = True
        optimizer, named = self.optimizer, self.named()
        if self.steps == 0:
            self._look_for_lost_state()
        scale = scaler_attribute("grad_scale", (*self.around, optimizer))
        unscale = None if scale is None else scale.double().reciprocal().float()
        self.engine.kernels.begin(max([counter.steps for counter in self.engine.counters]) + 1)
        # What is done to places in an optimizer's state is done parameter by parameter.
        together = self.positions.plain and not step.closure
        if not together:
            self._arenas.part()
        step.sites = steps_of(
            self.engine,
            named,
            step=self.steps + 1,
            unscale=unscale,
            bind=self._bind,
            leaves=self._left,
            arenas=self._arenas if together else None,
        )
        sites = step.sites
        self._silence.look(named, self.engine.bindings, self.steps + 1)
        renewing = [site for site in sites if site.due("before_update")]
        # Later hooks may change the gradients, or replace them by others.
        last = next(reversed(optimizer._optimizer_step_pre_hooks)) == self._handles[0].id
        keeps = last and step.before is None and keeps_gradients(optimizer)
        later = (self.mode == "gradient" or keeps) and not renewing
        step.undo = Undo(self._copy, deferred=later and self.mode == "update")
        self.engine.observe(sites, later=later, undo=step.undo)
        self.engine.collect(sites)
        if renewing:
            self._renew(step, renewing)
        if self.mode == "gradient":
            self._scale(step)
        for site in sites:
            if site.resting:
                self.applier.finish(site)
        if step.before is None:
            step.before = {
                site.binding.name: site.before(self._copy)
                for site in sites
                # Factors of a user's own may be masks, whose zeros must hold weights to the bit.
                if not (
                    site.resting
                    or self.mode == "gradient"
                    or (last and not site.factors and plain_sgd(optimizer, site))
                )
                or (self._law is not None and newborns.young(site))
            }
            if not self.positions.plain:
                self.positions.begin(named, step.before, self._copy)

    def _renew(self, step: OptimizerStep, sites: list[ParameterStep]) -> None:
        """Let rules replace synapses before the optimizer moves them."""
        for site in sites:
            site.remember(self._states, self.positions.traits(site.group, site.parameter))
            self._remember(step, site)
            site.see()
        self.engine.change(sites, "before_update")
        for site in sites:
            site.store(before=True)
            if step.before is not None:  # it was taken before the closure was called
                step.before[site.binding.name].copy_(site.weight)

    def _remember(self, step: OptimizerStep, site: ParameterStep) -> None:
        """Remember all of a parameter that is lost with its synapses, before the step is taken."""
        assert step.undo is not None
        for _, context in site.binding.pairs:
            step.undo.keep(context)
        for one in site.parameters:
            entries = [value for state in self._states(one) for value in state.values()]
            held = [one, *[tensor for entry in entries for tensor in tensors_in(entry)]]
            step.undo.keep_values(map(local, held))

    def _left(self, name: str, parameter: nn.Parameter) -> bool:
        """Whether a parameter is left alone, because it was changed since."""
        binding = self.engine.bindings.get(name)
        if binding is not None and binding.fits(parameter):
            return False
        return self.engine.surgery.leaves(name, parameter)

    def _look_for_lost_state(self) -> None:
        if not self.resumed and self.optimizer not in _ACTED_IN:
            states = [state_of(self.optimizer, parameter) for _, parameter, _ in self.named()]
            warn_of_lost_state(self.optimizer, states)

    def _scale(self, step: OptimizerStep) -> None:
        for site in step.sites:
            if site.grad is not None:
                self.applier.scale(site)
                site.store_gradient()

    @uncompiled
    @untracked
    def _after(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        step = self._step
        if step is None:
            return
        if step.depth:
            step.depth -= 1
            return
        if step.skipped:
            self._step = None
            return
        if not step.observed:
            self._gradients(step)  # a closure that was never called
        sites = step.sites
        if step.closure:  # its first call is what counts of the units' activity
            self.engine.drop_counts(sites)
        due: dict[str, KernelCall] = {}
        if self._law is not None:
            due = newborns.corrections(sites, optimizer, self._law, step.before or {})
        try:
            moved = self._scale_moves(step, due)
            self._step = None
            self.steps += 1
            _ACTED_IN.add(optimizer)
            for site in sites:
                site.binding.note(site)  # not before: a step that raises has no factors
            acting = [site for site in sites if site.binding.changes]
            for site in acting:
                # Only now: optimizers make their state during the first step.
                site.remember(self._states, self.positions.traits(site.group, site.parameter))
                if not self.positions.plain:
                    self.positions.settle(site, self._copy)
            replaced = self.engine.settle(
                sites,
                states=functools.partial(state_of, optimizer),
                held={name for name, _, _ in self.named()} if self.engine.units.watching else None,
            )
            for site in acting:
                self.applier.finish(site)
                if not self.positions.plain:
                    self.positions.settled(site)
        finally:
            for site in sites:
                self.applier.finish(site)
                site.store()
        self.engine.observers.stepped()
        # It keeps the gradient and the curvature of the place where its step ends.
        if isinstance(optimizer, torch.optim.LBFGS) and (moved or replaced):
            optimizer.state.clear()

    def _states(self, parameter: Tensor) -> list[dict[str, Any]]:
        return [state_of(one, parameter) for one in (self.optimizer, *self.around)]

    def _scale_moves(self, step: OptimizerStep, due: Mapping[str, KernelCall]) -> bool:
        """Multiply the moves of the weights by their factors.

        Args:
            step: that the optimizer has taken.
            due: what is to be done to the weights of some bindings before.

        Returns:
            Whether any weight is elsewhere than LBFGS, if it is that, has left it.
        """
        before, moved, done = step.before or {}, False, False
        remembers = isinstance(self.optimizer, torch.optim.LBFGS)
        try:
            for site in step.sites:
                name = site.binding.name
                moves = self.mode == "update" and not site.resting
                if moves or site.due("after_step") or self.engine.units.watching:
                    site.load()
                work = due.get(name)
                if work is not None and not (moves and self.positions.plain):
                    self.engine.kernels.do(work, shard=site.binding.shard)
                if not moves:
                    continue
                if name not in before:
                    self.applier.correct(site, rate(site.group, site.weight.device))
                    done = True
                    continue
                end = site.weight.clone() if remembers else None
                if self.positions.plain:
                    self.applier.blend(site, before[name], work)
                else:
                    if self.steps == 0:
                        self.positions.look(name, before[name], site.parameter, site.group)
                    self.positions.blend(site, before[name], self.applier)
                if remembers:
                    self.applier.finish(site)
                done = True
                moved |= end is not None and not torch.equal(end, site.weight)
        except BaseException:
            if done:  # it has been a step, for the optimizer and for some of the parameters
                self._step = None
                self.steps += 1
            raise
        return moved
