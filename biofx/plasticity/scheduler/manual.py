"""`ManualPlasticity`: rules called by hand, as the seed's package has them called."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from biofx.errors import PlasticityError
from biofx.plasticity.kernels.base import Kernels
from biofx.plasticity.rules.crystallize import Crystallize
from biofx.plasticity.rules.dale import DalesPrinciple
from biofx.plasticity.rules.fuzzy import FuzzyLearningRates
from biofx.plasticity.rules.rejuvenate import Rejuvenate
from biofx.plasticity.rules.rule import Rule
from biofx.plasticity.rules.volume import VolumeDependentRates
from biofx.plasticity.scheduler import checkpoint
from biofx.plasticity.scheduler.apply import Applier
from biofx.plasticity.scheduler.binding import ParameterStep
from biofx.plasticity.scheduler.engine import Engine
from biofx.synapses import synapses_of, unwrap


class ManualPlasticity:
    """One method per mechanism, acting on a model's gradients or weights at the moment of the call.

    Factors act on gradients, so they do little under Adam and its like; `GradScheduler` gives true
    learning rates. Frozen layers, and layers without a gradient, are left alone.

    It keeps what rules must remember but nothing of the model: it is copied and pickled with the
    model that it belongs to, and the copy serves the copied model.

    Args:
        seed: of all draws; the n-th call of a method draws the same numbers in every run.
    """

    def __init__(self, *, seed: int = 0) -> None:
        self.seed = seed
        self._calls: dict[str, int] = {}
        self._state: checkpoint.States = {}
        self._engine: Engine | None = None
        self._applier = Applier(Kernels())

    def __getstate__(self) -> dict[str, Any]:
        state = self._state if self._engine is None else checkpoint.collect(self._engine)
        return {"seed": self.seed, "_calls": self._calls, "_state": state}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._engine, self._applier = None, Applier(Kernels())

    @torch.no_grad()
    def fuzzy_learning_rates(self, model: nn.Module) -> None:
        """g ← f·g with the fuzzy factors, dampened where synapses have crystallized.

        Raises:
            PlasticityError: no weight has a gradient.
        """
        engine, sites = self._sites("fuzzy", model)
        if self._calls["fuzzy"] == 1:  # factors that depend on the weights are drawn at first use
            engine.observe(sites, FuzzyLearningRates)
        self._scale(engine, sites, FuzzyLearningRates, Crystallize)

    @torch.no_grad()
    def update_fuzzy_learning_rates(self, model: nn.Module) -> None:
        """Let TEMPORAL, WEIGHT_ADAPTIVE and ACTIVITY factors evolve by one step."""
        engine, sites = self._sites("update", model, grads=False)
        engine.observe(sites, FuzzyLearningRates)
        engine.settle(sites, FuzzyLearningRates)

    @torch.no_grad()
    def volume_dependent_lr(self, model: nn.Module) -> None:
        """g ← f·g with newly drawn volume-dependent factors.

        Raises:
            PlasticityError: no weight has a gradient, or a weight is not finite.
        """
        self._scale(*self._sites("volume", model), VolumeDependentRates)

    @torch.no_grad()
    def crystallize(self, model: nn.Module) -> None:
        """Dampen, for good, the fuzzy factors of synapses that the gradients show to be settled.

        Raises:
            PlasticityError: no weight has a gradient, or a weight is not finite.
        """
        engine, sites = self._sites("crystallize", model)
        engine.observe(sites, Crystallize)
        for site in sites:
            site.release()

    @torch.no_grad()
    def rejuvenate_weights(self, model: nn.Module) -> None:
        """Replace weak synapses by new ones. An optimizer's momentum of theirs is not known here.

        Raises:
            PlasticityError: a weight is not finite.
        """
        engine, sites = self._sites("rejuvenate", model, grads=False)
        engine.settle(sites, Rejuvenate)

    @torch.no_grad()
    def initialise_dales_principle(self, model: nn.Module) -> None:
        """w ← |w|·sign, one sign per unit, in the layers that are configured for it."""
        _, sites = self._sites("dale", model, grads=False)
        for site in sites:
            for rule, context in site.binding.pairs:
                if isinstance(rule, DalesPrinciple):
                    rule.initialise(context)
            site.release()

    @torch.no_grad()
    def enforce_dales_principle(self, model: nn.Module) -> None:
        """Set weights whose sign is not their unit's to 0.

        Raises:
            PlasticityError: no layer was configured with `apply_dales_principle`.
        """
        engine, sites = self._sites("dale", model, grads=False)
        if not any(DalesPrinciple(configured=True).serves(s) for s in engine.synapses.values()):
            raise PlasticityError(
                "Dale's principle is off in every layer; configure apply_dales_principle=True"
            )
        engine.settle(sites, DalesPrinciple)

    def _scale(self, engine: Engine, sites: Sequence[ParameterStep], *rules: type[Rule]) -> None:
        engine.measure(sites, ("factor",), rules)
        engine.collect(sites, *rules)
        for site in sites:
            self._applier.scale(site)
            site.release()

    def _sites(
        self, call: str, model: nn.Module, *, grads: bool = True
    ) -> tuple[Engine, Sequence[ParameterStep]]:
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
        engine = self._engine
        step = self._calls[call] = self._calls.get(call, 0) + 1
        sites = []
        for name in engine.synapses:
            parameter = model.get_parameter(name)
            if parameter.requires_grad and not (grads and parameter.grad is None):
                sites.append(engine.site(name, parameter, step=step, grad=parameter.grad))
        if grads and not sites:
            raise PlasticityError(
                "no weight has a gradient: call this after loss.backward() and before zero_grad()"
            )
        return engine, sites


def _rules() -> list[Rule]:
    return [
        FuzzyLearningRates(),
        Crystallize(),
        VolumeDependentRates(),
        Rejuvenate(),
        DalesPrinciple(configured=True),
    ]
