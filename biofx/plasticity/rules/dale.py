"""Dale's principle: all outgoing synapses of a unit have one sign."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor
from typing_extensions import override

from biofx.plasticity.kernels.base import Tensors, wide
from biofx.plasticity.numerics import random
from biofx.plasticity.numerics.shards import gathered
from biofx.plasticity.rules.pairs import (
    drifted,
    entries_of,
    mirrored,
    obey,
    paired,
    pairs_of,
    read_by,
    same_inputs,
)
from biofx.plasticity.rules.rule import STATIC, Context, Rule, pick
from biofx.plasticity.rules.validation import require
from biofx.synapses import Belonging, Entries, Neighbours, Population, Reader, Synapses


def dale_signs(draw: Tensor) -> Tensor:
    """+1 or −1 per unit, each with probability ½, from uniforms on [0, 1); shape of `draw`."""
    return torch.where(draw < 0.5, -1.0, 1.0)


def project_dale(weight: Tensor, signs: Tensor) -> tuple[Tensor, Tensor]:
    """Set synapses whose sign is not their unit's to 0: w ← sign·max(sign·w, 0).

    Args:
        weight: w.
        signs: ±1, broadcastable to the weight.

    Returns:
        The new weights, and a mask of those that were changed.

    Source:
        Hofmann et al. 2025, Methods, "Dale's principle".
    """
    wrong = weight * signs < 0
    return torch.where(wrong, 0.0, weight), wrong


def _projected(index: Tensor, tensors: Tensors, inputs: Tensors) -> tuple[Tensor, ...]:
    weight, signs = wide(tensors["weight"]), inputs["signs"]
    if "fresh" in inputs:
        weight = _signed(weight, signs, inputs["fresh"])
    return project_dale(weight, signs)


def _resigned(index: Tensor, tensors: Tensors, inputs: Tensors) -> tuple[Tensor]:
    return (_signed(wide(tensors["weight"]), inputs["signs"], inputs["fresh"]),)


def _signed(weight: Tensor, signs: Tensor, mask: Tensor) -> Tensor:
    """The masked weights with their unit's sign, if it has one (it is 0 where weights are free)."""
    return torch.where(mask & (signs != 0), weight.abs() * signs, weight)


class _Plan(NamedTuple):
    """How one parameter obeys: "mirrored", "signs" or "free", and why it is not mirrored."""

    way: Literal["mirrored", "signs", "free"]
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class DalesPrinciple(Rule):
    """Gives each unit a sign, and after each update sets synapses of the other sign to 0.

    When the scheduler is made, weights get their signs. By default units come in *mirrored* pairs:
    units 2k and 2k + 1 start with equal incoming weights and biases (and norm entries), the first
    excites and the second inhibits, and both share one free weight for each unit that they reach
    (see `mirrored`). Training lets them drift apart. The weights of the input layer stay free, for
    inputs are no units of the network. It takes an even number of units that can be followed to
    their readers: transform the model with ``example_inputs``. Elsewhere, and everywhere with
    ``initialisation="signs"``, weights become |w|·sign, with signs that are a function of the
    scheduler's seed and the name of the units alone (where units are not followed, of the
    parameter that reads them). That makes the units of a layer alike (one singular value of the
    weights grows with the width), and deep networks do not learn from it.
    Weights that obey already stay as they are: those of a trained model that was loaded.

    Synapses that another rule has just replaced get their unit's sign instead of becoming 0.

    Args:
        axis: whose sign it is. "pre": all outgoing weights of a unit agree (columns of a linear
            layer); "post": all incoming ones, which silences units behind a ReLU. None takes the
            configured `dale_axis`.
        initialisation: as `dale_initialisation` of `BioConfig`; None takes the configured value.
    """

    axis: Literal["pre", "post"] | None = None
    initialisation: Literal["mirrored", "signs"] | None = None

    maps_only: ClassVar[bool] = True
    remembers: ClassVar = {}

    @override
    def interval(self, synapses: Synapses) -> int:
        return int(synapses.config.apply_dales_principle)

    @override
    def settings(self, synapses: Synapses) -> dict[str, Any]:
        axis, initialisation = self._axis(synapses), self._initialisation(synapses)
        require(axis in ("pre", "post"), self.name, f"axis={axis!r} must be 'pre' or 'post'")
        require(
            initialisation in ("mirrored", "signs"),
            self.name,
            f"initialisation={initialisation!r} must be 'mirrored' or 'signs'",
        )
        require(
            synapses.kind != "bilinear",
            self.name,
            f"{synapses.parameter} is of a layer with two inputs, for which the principle is not "
            "defined; leave it out with only=… or the configuration's overrides",
        )
        require(
            len(synapses.shape) > 1 and synapses.pre_axis != synapses.post_axis,
            self.name,
            f"{synapses.parameter} ({synapses.kind}) of shape {synapses.shape} does not connect "
            "units to units; leave it out with only=… or the configuration's overrides",
        )
        return {**super().settings(synapses), "axis": axis, "initialisation": initialisation}

    @override
    def initialise(self, context: Context) -> None:
        plan, pairs = self.plan(context), self._pairs(context)
        if plan.way == "signs":
            context.weight.abs_().mul_(self.signs(context).to(context.weight.dtype))
        if plan.way != "mirrored" and not pairs:
            return
        synapses, shard = context.synapses, context.shard
        whole = gathered(context.weight, shard)
        for population, entries in pairs:
            if self._begun(context, population):
                continue
            whole = paired(whole, entries_of(population, entries, whole), entries.axis)
            if population.carrier == synapses.parameter:
                for vector in (e for kind in population.vectors.values() for e in kind):
                    self._pair(context, population, vector)
        if plan.way == "mirrored":
            for population, entries in read_by(synapses, context.wiring):
                index = entries_of(population, entries, whole)
                if not obey(*pairs_of(whole, index, synapses.pre_axis)):
                    whole = mirrored(whole, index, synapses.pre_axis)
        context.weight.copy_(shard.part(whole))

    @override
    def elementwise(self, synapses: Synapses) -> bool:
        return True  # once the weights have begun, all that is left of the wiring are signs

    @override
    def after_step(self, context: Context) -> None:
        weight = context.weight
        if self.plan(context).way == "free":
            context.events["dale_projected"] = weight.new_zeros(())
            return
        wrong = context.mask("wrong")
        inputs = {"signs": context.constant("signs", self.signs)}
        if context.fresh is not None:
            inputs["fresh"] = context.fresh
        context.map(
            _projected,
            {"weight": weight, "wrong": wrong},
            writes=("weight", "wrong"),
            inputs=inputs,
            with_factors=True,
        )
        context.events["dale_projected"] = context.count(wrong)

    @override
    def replaced(self, context: Context, mask: Tensor) -> None:
        if self.plan(context).way == "free" or context.fresh is mask:
            return  # no signs, or given by `after_step`
        context.map(
            _resigned,
            {"weight": context.weight},
            writes=("weight",),
            inputs={"signs": context.constant("signs", self.signs), "fresh": mask},
            with_factors=True,
        )

    @override
    def report(self, context: Context) -> dict[str, Any]:
        plan = self.plan(context)
        return {"dale": f"{plan.way}: {plan.reason}" if plan.reason else plan.way}

    def plan(self, context: Context) -> _Plan:
        """How a parameter obeys the principle."""
        plan: _Plan | None = context.memo.get("dale")
        if plan is None:
            plan = context.memo["dale"] = self._plan(context.synapses, context.wiring)
        return plan

    def _plan(self, synapses: Synapses, wiring: Neighbours) -> _Plan:
        if self._axis(synapses) == "post" or self._initialisation(synapses) == "signs":
            return _Plan("signs")
        if not wiring.known:
            return _Plan("signs", "the graph is not known: give biofx.transform example_inputs=…")
        read = read_by(synapses, wiring)
        if not read and not synapses.fed:
            return _Plan("free", "inputs are no units of the network")
        columns = sum(p.size * entries.count for p, entries in read)
        if synapses.groups > 1 or columns != synapses.shape[synapses.pre_axis]:
            return _Plan("signs", "not all units that it reads can be followed")
        for population, _ in read:
            if population.size % 2:
                return _Plan("signs", f"{population.name} has an odd number of units")
            sources = [wiring.followed.synapses.get(own.name) for own in population.incoming]
            if not sources or not all(s is not None and self._pairs_rows(s) for s in sources):
                return _Plan("signs", f"{population.name} does not obey the principle")
            if "constant" in population.vectors:
                return _Plan(
                    "signs", f"constants of the model differ by units of {population.name}"
                )
            if not same_inputs(population, wiring.followed.synapses):
                return _Plan("signs", f"pairs of {population.name} read different inputs")
        return _Plan("mirrored")

    def _pairs_rows(self, source: Synapses) -> bool:
        """Whether rows of a parameter may be equal in pairs: none of its own signs forbid it."""
        return self.serves(source) and self._axis(source) == "pre"

    def _pairs(self, context: Context) -> list[Belonging]:
        """The units that the parameter holds incoming weights of, if they come in pairs."""
        return [
            (population, entries)
            for population, entries in context.wiring.rows
            if population.size % 2 == 0
            and any(self._mirrored(context, reader) for reader in population.readers)
        ]

    def _mirrored(self, context: Context, reader: Reader) -> bool:
        followed = context.wiring.followed
        synapses = followed.synapses.get(reader.weight.name)
        if synapses is None or not self.serves(synapses):
            return False
        return self._plan(synapses, Neighbours(reader.weight.name, followed)).way == "mirrored"

    def _begun(self, context: Context, population: Population) -> bool:
        """Whether pairs of units have been trained as such: those may differ by now.

        Their readers tell, whether these have been initialised before or are yet to be.
        """
        for reader in population.readers:
            entries = reader.weight
            if entries.name in context.wiring.held:
                whole = gathered(*context.lookup(entries.name))
                pairs = pairs_of(whole, entries_of(population, entries, whole), entries.axis)
                if obey(*pairs) and drifted(*pairs):
                    return True
        return False

    def _pair(self, context: Context, population: Population, entries: Entries) -> None:
        values, shard = context.lookup(entries.name)
        whole = gathered(values, shard)
        whole = paired(whole, entries_of(population, entries, whole), entries.axis)
        values.copy_(shard.part(whole))

    def signs(self, context: Context) -> Tensor:
        """±1 per unit, broadcastable to the weight; 0 where weights are free."""
        synapses, device = context.synapses, context.weight.device
        axis = synapses.pre_axis if self._axis(synapses) == "pre" else synapses.post_axis
        plan = self.plan(context)
        if plan.way == "free":
            return torch.zeros([1] * context.weight.dim(), dtype=torch.float32, device=device)
        unit = random.counters(context.units(axis), device)
        signs = dale_signs(random.uniform(context.key("signs", step=STATIC), unit))
        # Units that are known have the same sign in each layer that reads them.
        known = read_by(synapses, context.wiring) if axis == synapses.pre_axis else ()
        for population, entries in known:
            unit = random.counters(population.size, device)
            if any(self._mirrored(context, reader) for reader in population.readers):
                own = 1.0 - 2.0 * (unit % 2)
            else:
                name, stream = population.name, f"{context.rule}.signs"
                key = random.key_tensor(random.stream_key(context.seed, STATIC, name, stream))
                own = dale_signs(random.uniform(key.to(device), unit))
            columns = entries_of(population, entries, signs)
            if entries.axis != axis:  # rows of a depthwise convolution: several may read one unit
                columns = columns // (context.shard.shape[entries.axis] // synapses.groups)
            signs[columns] = own.view(-1, *[1] * (columns.dim() - 1)).expand(columns.shape)
        return context.per_unit(signs, axis)

    def _axis(self, synapses: Synapses) -> str:
        axis: str = pick(self.axis, synapses.config.dale_axis)
        return axis

    def _initialisation(self, synapses: Synapses) -> str:
        chosen: str = pick(self.initialisation, synapses.config.dale_initialisation)
        return chosen
