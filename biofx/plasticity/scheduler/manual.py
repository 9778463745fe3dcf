"""`ManualPlasticity`: rules called by hand, as the seed's package has them called."""

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from biofx.errors import PlasticityError
from biofx.plasticity.kernels.base import Kernels
from biofx.plasticity.rules.crystallize import Crystallize
from biofx.plasticity.rules.dale import DalesPrinciple
from biofx.plasticity.rules.fuzzy import FuzzyLearningRates
from biofx.plasticity.rules.rejuvenate import Rejuvenate
from biofx.plasticity.rules.rule import STATIC, Rule
from biofx.plasticity.rules.schedule import Schedule
from biofx.plasticity.rules.volume import VolumeDependentRates
from biofx.plasticity.scheduler import checkpoint
from biofx.plasticity.scheduler.activity import counters
from biofx.plasticity.scheduler.apply import Applier
from biofx.plasticity.scheduler.binding import ParameterStep
from biofx.plasticity.scheduler.engine import Engine
from biofx.plasticity.scheduler.metrics import applied_factors
from biofx.synapses import synapses_of, unwrap

Names = Collection[str] | None  # of parameters; None means all


class UnsignedError(PlasticityError, AttributeError):
    """Units have no signs, because Dale's principle is off."""


class ManualPlasticity:
    """One method per mechanism, acting on a model's gradients or weights at the moment of the call.

    Factors act on gradients, so they do little under Adam and its like; `GradScheduler` gives true
    learning rates. Frozen layers, and layers without a gradient, are left alone.

    It keeps what rules must remember but nothing of the model: it is copied and pickled with the
    model that it belongs to, and the copy serves the copied model.

    Args:
        seed: of all draws; the n-th call of a method for a parameter draws the same in every run.
    """

    def __init__(self, *, seed: int = 0) -> None:
        self.seed = seed
        self._calls: dict[tuple[str, str], int] = {}  # {(method, parameter): how often}
        self._state: checkpoint.States = {}
        self._engine: Engine | None = None
        self._applier = Applier(Kernels())
        self.owner: nn.Module | None = None  # for those who know a layer and not its model
        self._used: set[str] = set()
        # {parameter: (what `rates` gave, what was in it)}
        self._shown: dict[str, tuple[nn.Parameter, Tensor]] = {}

    def __getstate__(self) -> dict[str, Any]:
        self._take_up()
        state = self._state if self._engine is None else checkpoint.collect(self._engine)
        return {
            "seed": self.seed,
            "_calls": dict(self._calls),
            "_state": state,
            "_used": set(self._used),
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._engine, self._applier, self._shown = None, Applier(Kernels()), {}
        self.owner = None

    @torch.no_grad()
    def fuzzy_learning_rates(self, model: nn.Module, only: Names = None) -> None:
        """g ← f·g with the fuzzy factors, dampened where synapses have crystallized.

        Raises:
            PlasticityError: no weight has a gradient.
        """
        engine, sites = self._sites("fuzzy", model, only)
        # Factors that depend on the weights are drawn at first use.
        first = [site for site in sites if site.binding.name not in self._used]
        self._used.update(site.binding.name for site in first)
        engine.observe(first, FuzzyLearningRates)
        self._scale(engine, sites, FuzzyLearningRates, Crystallize)

    @torch.no_grad()
    def update_fuzzy_learning_rates(self, model: nn.Module, only: Names = None) -> None:
        """Let TEMPORAL, WEIGHT_ADAPTIVE and ACTIVITY factors evolve by one step."""
        engine, sites = self._sites("update", model, only, grads=False)
        engine.observe(sites, FuzzyLearningRates)
        engine.settle(sites, FuzzyLearningRates)
        engine.observers.stepped()
        self._show()

    @torch.no_grad()
    def volume_dependent_lr(self, model: nn.Module, only: Names = None) -> None:
        """g ← f·g with newly drawn volume-dependent factors.

        Raises:
            PlasticityError: no weight has a gradient, or a weight is not finite.
        """
        self._scale(*self._sites("volume", model, only), VolumeDependentRates)

    @torch.no_grad()
    def crystallize(self, model: nn.Module, only: Names = None) -> None:
        """Dampen, for good, the fuzzy factors of synapses that the gradients show to be settled.

        Raises:
            PlasticityError: no weight has a gradient, or a weight is not finite.
        """
        engine, sites = self._sites("crystallize", model, only)
        engine.observe(sites, Crystallize)
        for site in sites:
            site.release()
        self._show()

    @torch.no_grad()
    def rejuvenate_weights(self, model: nn.Module, only: Names = None) -> None:
        """Replace weak synapses by new ones. An optimizer's momentum of theirs is not known here.

        Raises:
            PlasticityError: a weight is not finite.
        """
        engine, sites = self._sites("rejuvenate", model, only, grads=False)
        engine.settle(sites, Rejuvenate)
        engine.observers.stepped()
        self._show()

    @torch.no_grad()
    def initialise_dales_principle(self, model: nn.Module, only: Names = None) -> None:
        """w ← |w|·sign, one sign per unit, in the layers that are configured for it."""
        _, sites = self._sites("dale", model, only, grads=False)
        for site in sites:
            for rule, context in site.binding.pairs:
                if isinstance(rule, DalesPrinciple):
                    rule.initialise(context)
            site.release()

    @torch.no_grad()
    def enforce_dales_principle(self, model: nn.Module, only: Names = None) -> None:
        """Set weights whose sign is not their unit's to 0.

        Raises:
            PlasticityError: no layer was configured with `apply_dales_principle`.
        """
        engine, sites = self._sites("dale", model, only, grads=False)
        asked = [s for name, s in engine.synapses.items() if only is None or name in only]
        if not any(DalesPrinciple(configured=True).serves(s) for s in asked):
            raise UnsignedError(
                "Can not enforce dales principle without apply_dales_principle set True."
            )
        engine.settle(sites, DalesPrinciple)
        engine.observers.stepped()

    @torch.no_grad()
    def signs(self, model: nn.Module, name: str) -> Tensor:
        """±1 per unit, broadcastable to the parameter, by Dale's principle.

        Raises:
            PlasticityError: its layer was not configured with `apply_dales_principle`.
        """
        engine = self._engine_of(model)
        binding = engine.bind(name, _parameter(engine, name))
        for rule, context in binding.pairs:
            if isinstance(rule, DalesPrinciple):
                context.seed = self.seed
                return rule.signs(context)
        raise UnsignedError(f"{name} has no signs; configure apply_dales_principle=True")

    def rates(self, model: nn.Module, name: str) -> nn.Parameter:
        """The factors by which `fuzzy_learning_rates` scales a parameter's gradient.

        It follows them from then on; what is written into it, in place or as its ``data``, holds.
        """
        self._take_up()
        if name not in self._shown:
            engine = self._engine_of(model)
            values = self._factors(engine, name)
            self._shown[name] = nn.Parameter(values, requires_grad=False), values.clone()
        return self._shown[name][0]

    @torch.no_grad()
    def set_rates(self, model: nn.Module, name: str, values: Tensor) -> None:
        """Replace those factors.

        Raises:
            PlasticityError: they do not broadcast to the parameter, or one is negative or not
                finite.
        """
        engine = self._engine_of(model)
        parameter = _parameter(engine, name)
        shape = tuple(parameter.shape)
        try:
            given = torch.as_tensor(values, dtype=torch.float32, device=parameter.device)
            factors = given.broadcast_to(shape).clone()
        except (RuntimeError, TypeError, ValueError) as error:
            raise PlasticityError(
                f"the factors of {name} must broadcast to its shape {shape}"
            ) from error
        if not bool((torch.isfinite(factors) & (factors >= 0)).all()):
            raise PlasticityError(f"the factors of {name} must be finite and not negative")
        for rule, context in engine.bind(name, parameter).pairs:
            if isinstance(rule, FuzzyLearningRates):
                context.state["factors"] = factors
            elif isinstance(rule, Crystallize):
                context.state["factors"].fill_(1.0)
        self._used.add(name)
        self._applier.forget()
        self._show()

    def weight_adaptive_drawn(self, model: nn.Module, name: str) -> bool:
        """Whether a parameter's WEIGHT_ADAPTIVE factors have been drawn."""
        return bool(self._memory(model, name)["drawn"] != STATIC)

    def draw_weight_adaptive_again(self, model: nn.Module, name: str) -> None:
        """Let the next update draw a parameter's WEIGHT_ADAPTIVE factors."""
        self._memory(model, name)["drawn"] = STATIC

    def activation_count(self, model: nn.Module, name: str) -> Tensor:
        """How often each of a parameter's output units was active so far, of shape (units,)."""
        memory = self._memory(model, name)
        waiting = counters(model, synapses_of(model)[name])
        counts: Tensor = memory["counts"] + torch.stack(waiting).sum(0)
        return counts

    def _memory(self, model: nn.Module, name: str) -> dict[str, Any]:
        """What the rule of the fuzzy factors remembers of a parameter."""
        engine = self._engine_of(model)
        for rule, context in engine.bind(name, _parameter(engine, name)).pairs:
            if isinstance(rule, FuzzyLearningRates):
                return context.state
        raise PlasticityError(f"{name} has no fuzzy factors")

    def _take_up(self) -> None:
        """What was written into the tensors that `rates` has given holds from now on."""
        for name, (shown, known) in list(self._shown.items()):
            if self._engine is not None and not torch.equal(shown.detach(), known):
                self.set_rates(self._engine.model, name, shown.detach().clone())

    @torch.no_grad()
    def _show(self) -> None:
        """Let the tensors that `rates` has given follow."""
        for name, (shown, known) in self._shown.items():
            if self._engine is not None:
                known.copy_(self._factors(self._engine, name))
                shown.data = known.clone() if shown.shape != known.shape else shown.data
                shown.copy_(known)

    @torch.no_grad()
    def _factors(self, engine: Engine, name: str) -> Tensor:
        step = max(self._calls.get(("fuzzy", name), 0), 1)
        site = engine.site(name, _parameter(engine, name), step=step)
        engine.collect([site], FuzzyLearningRates, Crystallize)
        site.binding.note(site)
        site.release()
        return applied_factors(site.binding, site.weight)

    def _scale(self, engine: Engine, sites: Sequence[ParameterStep], *rules: type[Rule]) -> None:
        engine.measure(sites, ("factor",), rules)
        engine.collect(sites, *rules)
        for site in sites:
            site.binding.note(site)
            self._applier.scale(site)
            site.release()

    def _sites(
        self, call: str, model: nn.Module, only: Names, *, grads: bool = True
    ) -> tuple[Engine, Sequence[ParameterStep]]:
        engine = self._engine_of(model)
        self._take_up()
        sites = []
        for name in engine.surgery.present():
            if only is not None and name not in only:
                continue
            parameter = _parameter(engine, name)
            step = self._calls[call, name] = self._calls.get((call, name), 0) + 1
            if parameter.requires_grad and not (grads and parameter.grad is None):
                sites.append(engine.site(name, parameter, step=step, grad=parameter.grad))
        if grads and not sites:
            raise PlasticityError(
                "No gradients found for the weights: call this after loss.backward() and before "
                "zero_grad()"
            )
        return engine, sites

    def _engine_of(self, model: nn.Module) -> Engine:
        model = unwrap(model)
        if self._engine is None or self._engine.model is not model:
            state = self.__getstate__()["_state"]
            self._engine = Engine(
                model,
                synapses_of(model),
                rules=_rules(),
                seed=self.seed,
                kernels=self._applier.kernels,
            )
            self._engine.initialises = False
            checkpoint.spread(self._engine, checkpoint.by_parameter(state))
        return self._engine


def _parameter(engine: Engine, name: str) -> nn.Parameter:
    return unwrap(engine.model).get_parameter(name)


def _rules() -> list[Rule]:
    """The rules, without a scheduler's intervals and its place of acting in a step."""
    now = Schedule()
    return [
        FuzzyLearningRates(),
        Crystallize(schedule=now),
        VolumeDependentRates(schedule=now),
        Rejuvenate(schedule=now, before_step=False),
        DalesPrinciple(configured=True, initialisation="signs"),
    ]
