"""Units: their activity where they are read, and the surgery that replaces some of them."""

import warnings
from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from biofx.errors import PlasticityError
from biofx.plasticity.numerics.shards import local, replicas, shard_of
from biofx.plasticity.numerics.uncompiled import compile_anew
from biofx.plasticity.rules.initial import draw_initial, law_inputs
from biofx.plasticity.rules.rule import Context, Rule
from biofx.plasticity.rules.turnover import UnitTurnover
from biofx.plasticity.scheduler.binding import ParameterStep
from biofx.plasticity.scheduler.unit_activity import UnitActivity
from biofx.plasticity.scheduler.unit_entries import (
    add_mask,
    entries_mask,
    obstacle,
    of_units,
    sent_on_average,
    summed,
    weights_of,
)
from biofx.synapses import Entries, Population, Reader, Synapses, unwrap

# What a new unit has besides incoming and outgoing weights.
AT_BIRTH = {"bias": 0.0, "scale": 1.0, "shift": 0.0, "running_mean": 0.0, "running_var": 1.0}

States = Callable[[Tensor], Mapping[str, Any]]


def no_state(parameter: Tensor) -> Mapping[str, Any]:
    """Without an optimizer, nothing is kept for a parameter."""
    return {}


class UnitEngine:
    """Replaces the units of one model by the rules `UnitTurnover`, one after the other.

    Args:
        model: a transformed model, wrapped or not.
        synapses: {parameter name: Synapses}.
        populations: its units.
        rules: in the order in which they act.

    Raises:
        PlasticityError: nothing is known of any units.

    Warns:
        UserWarning: no layer's units can be replaced.
    """

    def __init__(
        self,
        model: nn.Module,
        synapses: Mapping[str, Synapses],
        populations: Sequence[Population],
        rules: Sequence[UnitTurnover],
    ) -> None:
        self.model, self.synapses = model, synapses
        self.left: list[tuple[Population, str]] = []
        self.populations: list[Population] = []
        self._observers: dict[str, UnitActivity] = {}
        served = {
            name for name, entry in synapses.items() if any(rule.serves(entry) for rule in rules)
        }
        if not served:
            return
        if not populations:
            raise PlasticityError(
                "UnitTurnover must know which layers read which units, and the graph of this model "
                "is not known: give biofx.transform example_inputs=…"
            )
        for population in populations:
            if population.carrier not in served:
                continue
            reason = obstacle(population, synapses)
            if reason is None:
                self.populations.append(population)
                self._observe(population)
            else:
                self.left.append((population, reason))
        if self._observers:
            compile_anew()
        if not self.populations:
            some = "; ".join(f"{p.name}: {reason}" for p, reason in self.left[:5])
            warnings.warn(
                f"UnitTurnover can replace no unit of this model ({some or 'no hidden layer'})",
                UserWarning,
                stacklevel=4,  # whoever makes the scheduler
            )

    def needs(self, rule: Rule, parameter: str) -> bool:
        """Whether a rule changes a parameter for the sake of units that others hold."""
        return isinstance(rule, UnitTurnover) and any(
            rule.serves(self.synapses[population.carrier])
            and parameter in (entry.name for entry in weights_of(population))
            for population in self.populations
        )

    @property
    def watching(self) -> bool:
        """Whether there are units to take note of."""
        return bool(self.populations or self.left)

    def detach(self) -> None:
        """Remove the hooks."""
        for observer in self._observers.values():
            observer.detach()
        self._observers = {}

    def forget(self) -> None:
        """Drop what was seen since the last step: a checkpoint has been loaded."""
        for observer in self._observers.values():
            observer.reset()

    def _observe(self, population: Population) -> None:
        reader = self._observed(population)
        axis = UnitActivity.axis(self.synapses[reader.weight.name])
        key = f"{reader.layer} {axis}"
        if key not in self._observers:
            module = unwrap(self.model).get_submodule(reader.layer)
            columns = self.synapses[reader.weight.name].shape[reader.weight.axis]
            self._observers[key] = UnitActivity(module, columns, axis)
        self._observers[population.name] = self._observers[key]

    def _observed(self, population: Population) -> Reader:
        """The reader at whose input the units' activity is measured."""
        return next(
            r for r in population.readers if UnitActivity.axis(self.synapses[r.weight.name])
        )

    def step(
        self, sites: Sequence[ParameterStep], states: States, held: Container[str] | None = None
    ) -> dict[str, Tensor]:
        """Weights have moved: take note of the units' activity, and replace some.

        Args:
            sites: parameters at this step.
            states: the optimizer's state of a parameter.
            held: the parameters whose step it is; the activity of other units is left to theirs.
                None means all.

        Returns:
            {parameter: mask of its new synapses, of the local shape}.
        """
        known = {site.binding.name: site for site in sites}
        for population, reason in self.left:
            for _, context in _turning(known.get(population.carrier)):
                context.memo["units"] = {"units_replaced": 0, "units_left_alone": reason}
        seen = self._collect(held)
        fresh: dict[str, Tensor] = {}
        for population in self.populations:
            if held is not None and population.carrier not in held:
                continue
            frozen = [e.name for e in weights_of(population) if e.name not in known]
            for rule, context in _turning(known.get(population.carrier)):
                told = context.memo.setdefault("units", {})
                told["units_replaced"] = 0
                told.pop("units_left_alone", None)
                observer = self._observers[population.name]
                if frozen or id(observer) not in seen:
                    told["units_left_alone"] = (
                        f"{frozen[0]} was not trained at this step" if frozen
                        else f"{self._observed(population).layer} was not called"
                    )  # fmt: skip
                    continue
                mask = self._chosen(rule, context, population, known, seen[id(observer)])
                if mask is not None and bool(mask.any()):
                    told["units_replaced"] = int(mask.sum())
                    self._replace(rule, context, population, mask, known, states, fresh)
        return fresh

    def _collect(self, held: Container[str] | None) -> dict[int, tuple[Tensor, Tensor]]:
        """Mean |x| and mean x of each column seen since the last step, over all processes."""
        observers: dict[int, UnitActivity] = {}
        for population in self.populations:
            observer = self._observers[population.name]
            reader = self._observed(population).weight.name
            if observer.seen and (held is None or reader in held):
                observers[id(observer)] = observer
        if not observers:
            return {}
        whole = torch.cat([observer.totals for observer in observers.values()])
        for group in replicas(self.model):
            dist.all_reduce(whole, group=group)
        found = {}
        sizes = [len(observer.totals) for observer in observers.values()]
        for (key, observer), part in zip(observers.items(), whole.split(sizes), strict=True):
            means = part[:-1] / part[-1].clamp(min=1)
            found[key] = (means[: observer.columns], means[observer.columns :])
            observer.reset()
        return found

    def _chosen(
        self,
        rule: UnitTurnover,
        context: Context,
        population: Population,
        known: Mapping[str, ParameterStep],
        seen: tuple[Tensor, Tensor],
    ) -> Tensor | None:
        columns = self._observed(population).weight
        activity, mean = (of_units(v, columns, population.size).mean(1) for v in seen)
        outgoing = torch.zeros_like(activity)
        if rule.plan(context.synapses).utility == "contribution":
            for reader in population.readers:
                site, entries = known[reader.weight.name], reader.weight
                axes = [axis for axis in range(site.weight.dim()) if axis != entries.axis]
                dtype = torch.promote_types(site.weight.dtype, torch.float32)
                sizes = torch.linalg.vector_norm(site.weight, 1, dim=axes, dtype=dtype)
                sizes = summed(sizes, site.binding.shard, entries.axis)
                outgoing += of_units(sizes, entries, population.size).sum(1)
        return rule.chosen(context, population, activity=activity, mean=mean, outgoing=outgoing)

    def _replace(
        self,
        rule: UnitTurnover,
        context: Context,
        population: Population,
        mask: Tensor,
        known: Mapping[str, ParameterStep],
        states: States,
        fresh: dict[str, Tensor],
    ) -> None:
        model = unwrap(self.model)
        units = mask.nonzero().flatten()
        means = rule.means(context, population)[units]
        for reader in population.readers:
            site = known[reader.weight.name]
            if reader.bias is not None:
                bias = model.get_parameter(reader.bias)
                if bias.requires_grad:
                    sent = sent_on_average(
                        site, self.synapses[reader.weight.name], reader, units, means
                    )
                    part = shard_of(bias, reader.bias).part(sent)
                    local(bias).add_(part.to(bias.dtype))
            cut = entries_mask(site.weight, site.binding.shard, reader.weight, units)
            site.weight.masked_fill_(cut, 0.0)
            add_mask(fresh, reader.weight.name, cut, site.weight)
        for entries in population.incoming:
            site = known[entries.name]
            new = entries_mask(site.weight, site.binding.shard, entries, units)
            own = next((c for _, c in site.binding.pairs if c.rule == context.rule), context)
            normal, inputs = law_inputs(own)
            drawn = draw_initial(own.key("units"), own.index, inputs, normal=normal)
            site.weight.copy_(torch.where(new, drawn.to(site.weight.dtype), site.weight))
            add_mask(fresh, entries.name, new, site.weight)
        for kind, value in AT_BIRTH.items():
            for entries in population.vectors.get(kind, ()):
                self._reset(entries, units, value, states)
        rule.reborn(context, population, mask)

    def _reset(self, entries: Entries, units: Tensor, value: float, states: States) -> None:
        owner, _, name = entries.name.rpartition(".")
        tensor = getattr(unwrap(self.model).get_submodule(owner), name)
        if isinstance(tensor, nn.Parameter) and not tensor.requires_grad:
            return
        shard, values = shard_of(tensor, entries.name), local(tensor)
        mask = entries_mask(values, shard, entries, units).expand(values.shape)
        values.masked_fill_(mask, value)
        for state in states(tensor).values():
            if isinstance(state, Tensor) and state.dim() and state.is_floating_point():
                part = local(state)
                if part.shape == mask.shape:
                    part.masked_fill_(mask, 0.0)


def _turning(site: ParameterStep | None) -> list[tuple[UnitTurnover, Context]]:
    """The rules that replace the units whose incoming weights a parameter holds."""
    return [
        (rule, context)
        for rule, context in (() if site is None else site.binding.pairs)
        if isinstance(rule, UnitTurnover) and rule.serves(context.synapses)
    ]
