"""Turnover of units: those that are of little use give way to new ones (adult neurogenesis)."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor
from typing_extensions import override

from biofx.plasticity.rules.initial import remember_law, remembered_law
from biofx.plasticity.rules.rule import Context, Rule, pick
from biofx.plasticity.rules.validation import require, whole, within
from biofx.synapses import Population, Synapses

UTILITIES = ("contribution", "dormant")


def average_(old: Tensor, new: Tensor, decay: float) -> None:
    """a ← ηa + (1 − η)·new, in place: an average that starts at 0."""
    old.lerp_(new.to(old.dtype), 1 - decay)


def unbiased(average: Tensor, age: Tensor, decay: float) -> Tensor:
    """The average without the 0 that it started at, `age` steps ago; 0 at age 0."""
    return average / (1 - decay ** age.to(average)).clamp(min=torch.finfo(torch.float32).tiny)


def contribution(activity: Tensor, outgoing: Tensor) -> Tensor:
    """mean|h|·Σ|w_out|: how much of a unit arrives at the layers that read it.

    Source:
        Dohare et al. 2024, Loss of plasticity in deep continual learning, Nature 632, Methods.
    """
    return activity * outgoing


def dormant(activity: Tensor, threshold: float) -> Tensor:
    """Units whose mean|h| is at most τ times their layer's mean.

    Source:
        Sokar et al. 2023, The dormant neuron phenomenon in deep reinforcement learning, ICML.
    """
    return activity <= threshold * activity.mean()


def least_useful(utility: Tensor, mature: Tensor, count: int) -> Tensor:
    """Mask of the `count` mature units of the lowest utility; of equal ones, the first."""
    ranked = torch.where(mature, utility, torch.inf).argsort(stable=True)[:count]
    mask = torch.zeros_like(mature)
    mask[ranked] = True
    return mask & mature


@dataclass(frozen=True, kw_only=True)
class UnitTurnover(Rule):
    """Units of low utility are replaced by new ones that nothing reads yet.

    A new unit's incoming weights come from the law that its layer was initialised with; its bias is
    0; its outgoing weights are 0, and what it used to send on the average goes to the biases of the
    layers that read it, so that the network computes nearly what it computed. Scales and shifts of
    norms in between are 1 and 0, running statistics too (their variances 1), and the optimizer
    starts afresh with all of these. Utility is measured where the units are read, in training mode.

    Two settings of it have names:

    - *continual backprop*: ``UnitTurnover(rate=1e-4)``. Each step from the start of its schedule
      on, every unit older than `maturity` adds `rate` to what is owed; when that reaches 1, the
      unit of the lowest mean|h|·Σ|w_out| goes.
    - *ReDo*: ``UnitTurnover(utility="dormant", threshold=0.1, schedule=Schedule(every=100))``: all
      units older than `maturity` with mean|h| at most `threshold` times their layer's mean go.

    It needs to know which units are read where (`Population`): transform the model with
    ``example_inputs``. Layers whose units cannot be followed are left alone, with the reason in
    ``scheduler.metrics()``; so are those one of whose readers is frozen, as long as it is. Where a
    unit and one of its synapses are replaced at one step, the unit's replacement stays.

    Args:
        utility: as `unit_turnover_utility` of `BioConfig`: "contribution" or "dormant", as above.
            None takes the layer's configured value, here and for the next three.
        rate: as `unit_turnover_rate`: units replaced per mature unit and step ("contribution").
        threshold: as `unit_turnover_threshold`: τ ("dormant").
        maturity: as `unit_turnover_maturity`: steps for which a unit is left alone, after the start
            and when it is new.
        decay: η of the running averages of activity and utility.
    """

    utility: Literal["contribution", "dormant"] | None = None
    rate: float | None = None
    threshold: float | None = None
    maturity: int | None = None
    decay: float = 0.99

    replaces: ClassVar[bool] = True
    remembers: ClassVar = {
        "utility": (0.0, math.inf),
        "mean": (-math.inf, math.inf),
        "age": (0, 2**62),
        "owed": (0.0, math.inf),
        **remembered_law(),
    }

    @override
    def interval(self, synapses: Synapses) -> int:
        return synapses.config.unit_turnover_every

    @override
    def settings(self, synapses: Synapses) -> dict[str, Any]:
        plan = self.plan(synapses)
        require(
            plan.utility in UTILITIES,
            self.name,
            f"utility={plan.utility!r} is not one of {UTILITIES}",
        )
        within("(0, 1]", self.name, rate=plan.rate)
        within("[0, 1)", self.name, threshold=plan.threshold, decay=self.decay)
        whole(self.name, 0, maturity=plan.maturity)
        return {**super().settings(synapses), **plan._asdict()}

    @override
    def prepare(self, context: Context) -> None:
        served = self.serves(context.synapses)
        if served or context.wiring.rows:  # units may have rows in several parameters
            remember_law(context)
        if not served:
            return
        device = context.weight.device
        for population in context.wiring.made:
            for name in ("utility", "mean"):
                empty = torch.zeros(population.size, dtype=torch.float32, device=device)
                context.state[key_of(population, name)] = empty
            # On the CPU, where it is known without asking the device how many are mature.
            ages = torch.zeros(population.size, dtype=torch.int64, device="cpu")
            context.state[key_of(population, "age")] = ages
            context.state[key_of(population, "owed")] = 0.0

    def chosen(
        self,
        context: Context,
        population: Population,
        *,
        activity: Tensor,
        mean: Tensor,
        outgoing: Tensor,
    ) -> Tensor | None:
        """Take note of a step, and choose the units that are replaced after it.

        Args:
            context: of the parameter that holds the units' incoming weights.
            population: the units.
            activity, mean: mean |h| and mean h of each unit at this step, float32, (units,).
            outgoing: Σ|w_out|, of this shape.

        Returns:
            A mask of shape (units,), or None.
        """
        plan, state = self.plan(context.synapses), context.state
        utility, means, ages = (
            state[key_of(population, name)] for name in ("utility", "mean", "age")
        )
        by_use = plan.utility == "contribution"
        new = contribution(activity, outgoing) if by_use else activity
        average_(utility, new, self.decay)
        average_(means, mean, self.decay)
        ages += 1
        mature = ages > plan.maturity
        owed = key_of(population, "owed")
        due = context.timing.due(context.step)
        if by_use:
            if context.timing.runs(context.step):  # else all would fall due at the first step
                state[owed] += plan.rate * int(mature.sum())
            if not due or state[owed] < 1:
                return None
            count = int(state[owed])
            state[owed] -= count
        elif not due or not mature.any():
            return None
        known = mature.to(utility.device)
        current = unbiased(utility, ages, self.decay)
        return (
            least_useful(current, known, count) if by_use
            else dormant(current, plan.threshold) & known
        )  # fmt: skip

    def means(self, context: Context, population: Population) -> Tensor:
        """The running mean of each unit's h, of shape (units,)."""
        state = context.state
        return unbiased(
            state[key_of(population, "mean")], state[key_of(population, "age")], self.decay
        )

    def reborn(self, context: Context, population: Population, mask: Tensor) -> None:
        """Forget the units that were replaced."""
        for name in ("utility", "mean", "age"):
            values = context.state[key_of(population, name)]
            values.masked_fill_(mask.to(values.device), 0)

    def plan(self, synapses: Synapses) -> "_Plan":
        """The settings that hold for the units of one parameter."""
        config = synapses.config
        return _Plan(
            pick(self.utility, config.unit_turnover_utility),
            pick(self.rate, config.unit_turnover_rate),
            pick(self.threshold, config.unit_turnover_threshold),
            pick(self.maturity, config.unit_turnover_maturity),
        )

    @override
    def report(self, context: Context) -> dict[str, Any]:
        return dict(context.memo.get("units", {}))


class _Plan(NamedTuple):
    utility: str
    rate: float
    threshold: float
    maturity: int


def key_of(population: Population, name: str) -> str:
    """What a state of a population is called: a parameter may hold several."""
    return f"{population.block}.{name}" if population.block else name
