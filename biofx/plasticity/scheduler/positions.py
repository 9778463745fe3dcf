"""Factors and rules under optimizers whose state holds places of weights (see `trial`)."""

from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from biofx.errors import PlasticityError
from biofx.plasticity.numerics.shards import local
from biofx.plasticity.scheduler import averaging
from biofx.plasticity.scheduler.apply import Applier
from biofx.plasticity.scheduler.binding import ParameterStep
from biofx.plasticity.scheduler.copies import Copies
from biofx.plasticity.scheduler.entries import fits, is_near, tensors_in
from biofx.plasticity.scheduler.optimizer_state import state_of
from biofx.plasticity.scheduler.trial import KNOWN, Traits, traits_of


@dataclass
class Before:
    """What was there before the step of an optimizer that keeps places of weights.

    Attributes:
        places: {parameter name: z, or the master weights}.
        means: of schedule-free groups, by their identity.
        settling: {parameter name: the weights before rules change them}.
    """

    places: dict[str, Tensor] = field(default_factory=dict)
    means: dict[int, averaging.Mean] = field(default_factory=dict)
    settling: dict[str, Tensor] = field(default_factory=dict)


class Positions:
    """What one optimizer's state means, and what follows from it.

    Args:
        optimizer: the optimizer that moves the weights.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer
        # Whether nothing of this is needed: nearly always.
        self.plain = type(optimizer) in KNOWN and type(optimizer) is not torch.optim.ASGD
        self._tried: Traits | None = None
        self.before = Before()

    def traits(self, group: Mapping[str, Any], parameter: Tensor) -> Traits:
        """What the state of a group's parameters means; the optimizer is tried once."""
        known = KNOWN.get(type(self.optimizer))
        if known is not None:
            return known(group)
        if self._tried is None:
            self._tried = traits_of(self.optimizer, group, local(parameter))
        return self._tried

    def refuse(self, name: str, traits: Traits, *, factors: bool = True) -> None:
        """Refuse an optimizer under which a factor would be no learning rate.

        Args:
            name: of a parameter.
            traits: of its state.
            factors: whether a rule has factors; if not, rules change weights after a step.

        Raises:
            PlasticityError: it moves weights to places of its own.
        """
        if not traits.pulls or traits.averages or traits.masters:
            return
        cls = type(self.optimizer).__name__
        if factors:
            places = f"towards places in its state ({', '.join(sorted(traits.positions))})"
            raise PlasticityError(
                f"{cls} moves weights {places if traits.positions else 'to places of its own'}, "
                "and would undo, or never carry out, what a factor leaves of a move (found at "
                f"{name}): no learning rate per synapse acts under it. Use the optimizer that it "
                "builds on (for Lookahead and Ranger, that with which they take their steps), or "
                'GradScheduler(..., apply="gradient"), which scales gradients'
            )
        if not traits.positions:
            raise PlasticityError(
                f"{cls} moves weights to places of its own, and nothing in its state says where "
                f"they are: what rules make of weights after a step, at {name} and elsewhere, "
                "would be undone. Use the optimizer that it builds on, or only rules with factors "
                'and GradScheduler(..., apply="gradient")'
            )

    def look(self, name: str, weight: Tensor, parameter: Tensor, group: Mapping[str, Any]) -> None:
        """After the first step of an optimizer that could not be tried: refuse what holds places.

        Raises:
            PlasticityError: an entry of the state lies where the weight does.
        """
        if self.traits(group, parameter).tried:
            return
        found = [
            key
            for key, value in state_of(self.optimizer, parameter).items()
            for tensor in map(local, tensors_in(value))
            if tensor.is_floating_point() and fits(tensor, weight.shape) and is_near(tensor, weight)
        ]
        if found:
            self.refuse(name, Traits(pulls=True, positions=frozenset(found)))

    def begin(
        self,
        named: Iterable[tuple[str, Tensor, Mapping[str, Any]]],
        wanted: Container[str],
        copy: Copies,
    ) -> None:
        """Before the step: remember the places of the parameters whose moves are to be scaled."""
        for name, parameter, group in named:
            traits = self.traits(group, parameter)
            for key in _moving(traits) if name in wanted else ():
                state = state_of(self.optimizer, parameter)
                place = local(state.get(key, parameter))  # as the first step will make it
                if traits.masters:
                    place = place.float()
                self.before.places[name] = copy(f"{name} {key}", place)
                mean = averaging.mean_of(group)
                if mean is not None:
                    self.before.means[id(group)] = mean

    def blend(self, site: ParameterStep, before: Tensor, applier: Applier) -> None:
        """Multiply the move of one parameter by its factors, and let the state follow."""
        parameter, group = site.parameter, site.group
        traits = self.traits(group, parameter)
        state = state_of(self.optimizer, parameter)
        if traits.averages:
            mean = self.before.means[id(group)]
            averaging.rescale(
                site.weight,
                local(state[averaging.PLACE]),
                self.before.places[site.binding.name],
                applier.factors(site, before),
                beta=mean.beta,
                share=mean.share(group),
            )
            return
        for key in traits.masters if traits.pulls else ():
            weight, site.weight = site.weight, local(state[key])
            applier.blend(site, self.before.places[site.binding.name])
            applier.finish(site)
            weight.copy_(site.weight)
            site.weight = weight
            return
        shares = {key: _share(key, state) for key in traits.positions if key in state}
        end = site.weight.clone() if any(shares.values()) else None
        applier.blend(site, before)
        applier.finish(site)
        for key, share in shares.items():
            if end is not None and share == 1:
                local(state[key]).copy_(site.weight)
            elif end is not None and share:
                local(state[key]).add_(site.weight - end, alpha=share)

    def settle(self, site: ParameterStep, copy: Copies) -> None:
        """Before rules change the weights: remember where they are."""
        traits = site.traits
        if traits.averages or traits.masters or "ax" in traits.positions:
            name = site.binding.name
            self.before.settling[name] = copy(f"{name} settling", site.weight)

    def settled(self, site: ParameterStep) -> None:
        """Rules have changed weights: let places follow. (Those of new synapses have.)"""
        before = self.before.settling.pop(site.binding.name, None)
        if before is None:
            return
        state, traits = site.states[0], site.traits
        changed = site.weight != before
        if site.fresh is not None:
            changed &= ~site.fresh
        for key in traits.masters:
            place = local(state[key])
            place.copy_(torch.where(changed, site.weight.to(place.dtype), place))
        for key in traits.positions - traits.masters:
            if key in state and (traits.averages or _share(key, state) == 1):
                place = local(state[key])
                move = torch.where(changed, site.weight - before, 0.0)
                place.add_(move.to(place.dtype))


def _moving(traits: Traits) -> tuple[str, ...]:
    """The entry whose move is the optimizer's, if it is not the weight's."""
    if traits.averages:
        return (averaging.PLACE,)
    return tuple(traits.masters)[:1] if traits.pulls else ()


def _share(key: str, state: Mapping[str, Any]) -> float:
    """How much of the weight's last move is in a mean of places that nothing is pulled to.

    That is `torch.optim.ASGD`'s ``ax``, the mean of the weights since step t0: until then it is
    the weights themselves.
    """
    eta, mu = state.get("eta"), state.get("mu")
    if key != "ax" or eta is None or mu is None:
        return 0.0
    # `mu` is that of the next step: 1/max(1, n), where this step's was 1/max(1, n − 1).
    following = 1 / float(mu)
    return 1 / max(1.0, following - 1)
