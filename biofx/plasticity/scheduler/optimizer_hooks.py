"""`OptimizerHooks`: one optimizer's hooks, and what happens between them."""

import functools
import sys
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from biofx.errors import PlasticityError
from biofx.plasticity.numerics.shards import local, reshard
from biofx.plasticity.numerics.uncompiled import is_wrapper, uncompiled
from biofx.plasticity.rules.rule import scalar
from biofx.plasticity.scheduler.apply import Applier
from biofx.plasticity.scheduler.arenas import Arenas, steps_of
from biofx.plasticity.scheduler.binding import ParameterStep
from biofx.plasticity.scheduler.engine import Engine
from biofx.synapses import unwrap

Mode = Literal["update", "gradient"]
Named = list[tuple[str, nn.Parameter, dict[str, Any]]]


@dataclass
class _Step:
    """What the pre-hook leaves for the post-hook."""

    frame: FrameType
    depth: int = 0
    skipped: bool = False
    observed: bool = False
    closure: bool = False
    sites: list[tuple[ParameterStep, nn.Parameter, dict[str, Any]]] | None = None
    before: dict[str, Tensor] | None = None


class OptimizerHooks:
    """Hooks one optimizer and counts its steps.

    Args:
        optimizer: a `torch.optim.Optimizer`.
        engine: the rules.
        mode: where factors act.
        applier: how they are applied.
    """

    def __init__(
        self, optimizer: Optimizer, engine: Engine, *, mode: Mode, applier: Applier
    ) -> None:
        self.optimizer = optimizer
        self.engine = engine
        self.mode = mode
        self.applier = applier
        self.steps = 0
        self._step: _Step | None = None
        self._known: tuple[tuple[int, ...], Named] = ((), [])
        self._copies: dict[str, Tensor] = {}
        self._arenas = Arenas()
        engine.arenas.append(self._arenas)
        engine.counters.append(self)
        self._handles = [
            optimizer.register_step_pre_hook(self._before),
            optimizer.register_step_post_hook(self._after),
        ]

    def detach(self) -> None:
        """Remove the hooks; a step under way finishes as a plain one."""
        for handle in self._handles:
            handle.remove()
        self._step = None
        self._copies.clear()

    def prepare(self) -> None:
        """Bind the parameters that are trained now; others follow when they are."""
        for name, parameter, _ in self.named():
            if parameter.requires_grad:
                self.engine.bind(name, parameter)

    def named(self) -> Named:
        """(name, parameter, its param group) of the model's synapses in this optimizer."""
        groups = self.optimizer.param_groups
        # Loading a state dict makes new groups, with the learning rates that hold from then on.
        ids = tuple(id(held) for group in groups for held in (group, *group["params"]))
        if ids != self._known[0]:
            model = unwrap(self.engine.model)
            reshard(model)
            names = {id(model.get_parameter(name)): name for name in self.engine.synapses}
            found = [
                (names[id(parameter)], parameter, group)
                for group in groups
                for parameter in group["params"]
                if id(parameter) in names
            ]
            if not found:
                raise PlasticityError(
                    f"the optimizer ({type(self.optimizer).__name__}) shares no weight with the "
                    "model: make it from the parameters of the model that was transformed, after "
                    "fully_shard"
                )
            self._known = (ids, found)
        return self._known[1]

    @uncompiled
    def _before(self, optimizer: Optimizer, args: Any, kwargs: Any) -> Any:
        if self._step is not None and _alive(self._step.frame):
            # The step of a base class, called by its subclass. (A step that raised is not on the
            # stack any more.)
            self._step.depth += 1
            return None
        self._step = step = _Step(_outside(sys._getframe(1)))
        found_inf = getattr(optimizer, "found_inf", None)
        if found_inf is not None and bool(found_inf):
            step.skipped = True
            return None
        # args[0] is the optimizer itself: the hook sees the unbound call
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        if callable(closure):
            step.closure = True
            if self.mode == "update":
                step.before = {
                    name: self._copy(name, local(parameter))
                    for name, parameter, _ in self.named()
                    if parameter.requires_grad
                }
            watched = self._watch(closure, step)
            if len(args) > 1:
                return (args[0], watched, *args[2:]), kwargs
            return args, {**kwargs, "closure": watched}
        self._gradients(step)
        return None

    def _watch(self, closure: Callable[[], Any], step: _Step) -> Callable[[], Any]:
        def watched() -> Any:
            loss = closure()
            # LBFGS calls again at points on its way: only the first gradient is at w_before.
            if not step.observed:
                self._gradients(step)
            elif self.mode == "gradient":
                self._scale(step)
            return loss

        return watched

    @torch.no_grad()
    def _gradients(self, step: _Step) -> None:
        step.observed = True
        optimizer = self.optimizer
        scale = getattr(optimizer, "grad_scale", None)
        unscale = None if scale is None else scale.double().reciprocal().float()
        self.engine.kernels.begin(max(counter.steps for counter in self.engine.counters) + 1)
        step.sites = steps_of(
            self.engine,
            self.named(),
            step=self.steps + 1,
            unscale=unscale,
            arenas=None if step.closure else self._arenas,
        )
        sites = [site for site, _, _ in step.sites]
        # Later hooks may change the gradients, or replace them by others.
        last = next(reversed(optimizer._optimizer_step_pre_hooks)) == self._handles[0].id
        keeps = last and step.before is None and _keeps_gradients(optimizer)
        later = self.mode == "gradient" or keeps
        self.engine.observe(sites, later=later)
        self.engine.collect(sites)
        if self.mode == "gradient":
            self._scale(step)
            return
        for site in sites:
            if site.resting:
                self.applier.finish(site)
        if step.before is None:
            step.before = {
                site.binding.name: self._copy(site.binding.name, site.before())
                for site, _, group in step.sites
                # Factors of a user's own may be masks, whose zeros must hold weights to the bit.
                if not (
                    site.resting
                    or (last and not site.factors and _plain_sgd(optimizer, group, site))
                )
            }

    def _copy(self, name: str, weight: Tensor) -> Tensor:
        """A copy of a weight before the step."""
        copy = self._copies.get(name)
        if copy is None or not _alike(copy, weight):
            copy = torch.empty_like(weight)
            # Fresh memory of this size costs a processor five times what the copying does.
            if weight.device.type == "cpu":
                self._copies[name] = copy
        return copy.copy_(weight)

    def _scale(self, step: _Step) -> None:
        for site, _, _ in step.sites or ():
            self.applier.scale(site)
            site.store_gradient()

    @uncompiled
    @torch.no_grad()
    def _after(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        step = self._step
        if step is None:
            return
        if step.depth:
            step.depth -= 1
            return
        self._step = None
        if step.skipped:
            return
        if not step.observed:
            self._gradients(step)  # a closure that was never called
        sites = step.sites or []
        before = step.before or {}
        # It keeps the gradient and the curvature of the place where its step ends.
        remembers = isinstance(optimizer, torch.optim.LBFGS)
        moved = False
        try:
            for site, _, group in sites:
                moves = self.mode == "update" and not site.resting
                if moves or site.binding.acting["after_step"]:
                    site.load()
                if not moves:
                    continue
                if site.binding.name in before:
                    end = site.weight.clone() if remembers else None
                    self.applier.blend(site, before[site.binding.name])
                    if remembers:
                        self.applier.finish(site)
                    moved |= end is not None and not torch.equal(end, site.weight)
                else:
                    self.applier.correct(site, _rate(group, site.weight.device))
            self.steps += 1
            for site, parameter, _ in sites:
                # Only now: optimizers make their state during the first step.
                site.remember(functools.partial(_state, optimizer), parameter)
            replaced = self.engine.settle([site for site, _, _ in sites])
        finally:
            for site, _, _ in sites:
                self.applier.finish(site)
                site.store()
        if remembers and (moved or replaced):
            optimizer.state.clear()


def _state(optimizer: Optimizer, parameter: Tensor) -> dict[str, Any]:
    """What an optimizer keeps for a parameter, or the one in it that does its work (ZeRO's)."""
    state: dict[str, Any] = optimizer.state.get(parameter, {})
    inner = getattr(optimizer, "optim", None)
    return _state(inner, parameter) if not state and isinstance(inner, Optimizer) else state


def _alike(first: Tensor, second: Tensor) -> bool:
    """Whether one tensor can be copied into the other's memory as it lies there."""
    return (
        first.shape == second.shape
        and first.dtype == second.dtype
        and first.device == second.device
        and first.stride() == second.stride()
    )


def _keeps_gradients(optimizer: Optimizer) -> bool:
    """Whether a step is known to leave `.grad` as it is, so that gradients can be judged after."""
    return (
        type(optimizer) in (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW)
        and not hasattr(optimizer, "grad_scale")
        and not any(group.get("nesterov") for group in optimizer.param_groups)
    )


def _plain_sgd(optimizer: Optimizer, group: dict[str, Any], site: ParameterStep) -> bool:
    """Whether the optimizer is known to add −lr·g, g as it stands in `.grad`, and nothing else."""
    return (
        type(optimizer) is torch.optim.SGD
        and group["momentum"] == 0
        and group["weight_decay"] == 0
        and not hasattr(optimizer, "grad_scale")
        and site.grad is not None
        and not site.grad.is_sparse
    )


def _rate(group: dict[str, Any], device: torch.device) -> Tensor:
    """What plain SGD multiplies gradients by before it adds them."""
    lr = group["lr"] if group["maximize"] else -group["lr"]
    return lr.to(device, torch.float32) if isinstance(lr, Tensor) else scalar(float(lr), device)


def _alive(frame: FrameType) -> bool:
    """Whether a frame is still on this thread's stack."""
    current: FrameType | None = sys._getframe(1)
    while current is not None and current is not frame:
        current = current.f_back
    return current is not None


def _outside(frame: FrameType) -> FrameType:
    """The frame itself, or the nearest one around it that is not the compiler's."""
    while frame.f_back is not None and (is_wrapper(frame) or "_dynamo" in frame.f_code.co_filename):
        frame = frame.f_back
    return frame
