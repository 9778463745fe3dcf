"""`GradientHooks`: factors without an optimizer, applied to each gradient as it arrives."""

import warnings
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from biofx.errors import PlasticityError
from biofx.plasticity.numerics.shards import is_sharded
from biofx.plasticity.numerics.uncompiled import uncompiled
from biofx.plasticity.scheduler.apply import Applier, scaled
from biofx.plasticity.scheduler.binding import ParameterStep
from biofx.plasticity.scheduler.engine import Engine
from biofx.synapses import unwrap

PATIENCE = 2  # first steps that may pass without a gradient
UNSEEN = (
    "GradScheduler.step was called, but no gradient has come to any weight of the model: "
    "plasticity has not acted. Gradients that torch.func computes, or those of copies of the "
    "weights, pass the model's parameters by: write them to their .grad and pass the optimizer "
    "that takes the step to GradScheduler"
)


class GradientHooks:
    """Hooks the gradients of all parameters that carry synapses.

    Each incoming gradient is scaled before it is added to `.grad`, so that accumulation over
    micro-batches gives f·Σg. Factors stay the same until `step`.

    Args:
        engine: the rules.
        applier: how factors are applied.

    Raises:
        PlasticityError: parameters are sharded, or a rule that judges gradients would see each
            process's own.
    """

    def __init__(self, engine: Engine, applier: Applier) -> None:
        self.engine = engine
        self.applier = applier
        self.steps = 0
        self._reached = False  # whether any gradient has come
        self._sites: dict[str, ParameterStep] = {}
        self._handles: dict[str, tuple[int, RemovableHandle]] = {}
        self.refresh()

    def refresh(self) -> None:
        """Hook parameters that have begun to require gradients, or were replaced."""
        model = unwrap(self.engine.model)
        many = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        for name in self.engine.surgery.present():
            parameter = model.get_parameter(name)
            known = self._handles.get(name)
            hooked = known is not None and known[0] == id(parameter)
            if not parameter.requires_grad or (hooked and name in self.engine.bindings):
                continue
            if is_sharded(parameter):
                raise PlasticityError(
                    f"{name} is sharded: pass the optimizer to GradScheduler, whose steps see the "
                    "gradients of the shards"
                )
            binding = self.engine.bind(name, parameter)
            for rule, context in binding.pairs:
                if rule.settings(context.synapses).get("before_step"):
                    raise PlasticityError(
                        f"{rule.name}: before_step=True needs the optimizer, which moves the "
                        "weights after it: pass it to GradScheduler"
                    )
            judges = [rule.name for rule, _ in binding.pairs if rule.judges_gradients]
            if many and judges:
                raise PlasticityError(
                    f"{judges[0]} would judge each process's own gradients: pass the optimizer to "
                    "GradScheduler, whose steps see the averaged ones"
                )
            if known is not None:
                known[1].remove()
            handle = parameter.register_hook(self._hook(name, parameter))
            self._handles[name] = (id(parameter), handle)

    def _hook(self, name: str, parameter: nn.Parameter) -> Callable[[Tensor], Tensor | None]:
        @uncompiled
        def scale(grad: Tensor) -> Tensor | None:
            if name not in self.engine.bindings:
                return None  # a state from before it was thawed has been loaded
            with torch.no_grad():
                site = self._site(name, parameter, grad.detach())
                if site.resting:
                    return None
                if not grad.requires_grad:
                    site.grad = grad.clone()
                    self.applier.scale(site)
                    found, site.grad = site.grad, None
                    return found
                factors = self.applier.factors(site, site.weight).clone()
            # create_graph=True: somebody differentiates the gradient itself, as MAML does.
            return scaled(grad, factors).to(grad.dtype)

        return scale

    def _site(self, name: str, parameter: nn.Parameter, grad: Tensor) -> ParameterStep:
        """The parameter at this step, whose first gradient is the one that is judged."""
        site = self._sites.get(name)
        if site is None:
            self.engine.kernels.begin(self.steps + 1)
            site = self.engine.site(name, parameter, step=self.steps + 1, grad=grad)
            self.engine.observe([site])
            self.engine.collect([site])
            site.binding.note(site)
            self._sites[name] = site
        return site

    @torch.no_grad()
    def step(self) -> None:
        """The weights have been updated: apply the rest, and begin the next step."""
        sites = list(self._sites.values())
        self._sites = {}
        self.steps += 1
        for site in sites:
            site.load()
        self._reached = self._reached or bool(sites)
        if self._handles and not self._reached and self.steps == PATIENCE:
            warnings.warn(UNSEEN, UserWarning, stacklevel=4)
        self.engine.settle(sites)
        self.engine.observers.stepped()
        self.refresh()

    def detach(self) -> None:
        """Remove the hooks."""
        for _, handle in self._handles.values():
            handle.remove()
        self._handles = {}
