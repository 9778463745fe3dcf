"""What an optimizer's state means, found by trying the optimizer on a parameter of our own.

A factor multiplies the move that an optimizer has made. Under most optimizers that is a learning
rate: the next move depends on gradients, not on where the weight stands. Others keep *positions*
(slow weights, a running average, master weights, the place where they began) and move the weight
towards them: those would undo the factor, or never move at all. No name tells which is which, but
a trial does: after its first step, one of two equal parameters is put elsewhere; where both are
pulled together again, the state holds positions.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from biofx.plasticity.scheduler import averaging
from biofx.plasticity.scheduler.entries import is_near, per_synapse
from biofx.quiet import quietly

SIZE = (16, 16)  # of the parameter on trial: some optimizers take matrices only
STEPS = 24
LONG = 240  # steps where positions are kept that pull at nothing within the first ones
SLOW = 1e-3  # learning rate: all moves together stay far below the kick
FAST = 1e-2  # learning rate: moves stand out from rounding
KICK = 2.0**-3


@dataclass(frozen=True)
class Traits:
    """What an optimizer's state means.

    Attributes:
        pulls: whether weights are moved towards something in the state.
        positions: names of entries that hold places of weights.
        starts: {entry: value} of those that start with another value than 0.
        mixed: names of entries that have a number for each weight, but of all gradients: of rotated
            ones, for instance. What they hold for a weight is not that weight's alone.
        averages: whether it is a schedule-free optimizer as `averaging` knows them.
        masters: those of the positions that weights of a narrower type are rounded from.
        tried: False if the optimizer could not be tried; the rest is then unknown.
    """

    pulls: bool = False
    positions: frozenset[str] = frozenset()
    starts: Mapping[str, float] = field(default_factory=dict)
    mixed: frozenset[str] = frozenset()
    averages: bool = False
    masters: frozenset[str] = frozenset()
    tried: bool = True


UNKNOWN = Traits(tried=False)
PLAIN = Traits()

# Tried once and for all, in the suite: what is used at each step by nearly everybody.
KNOWN: dict[type[Optimizer], Callable[[Mapping[str, Any]], Traits]] = {
    **dict.fromkeys(
        (
            torch.optim.SGD,
            torch.optim.Adam,
            torch.optim.AdamW,
            torch.optim.NAdam,
            torch.optim.RAdam,
            torch.optim.Adamax,
            torch.optim.Adadelta,
            torch.optim.Adafactor,
            torch.optim.RMSprop,
            torch.optim.SparseAdam,
            torch.optim.Muon,
            torch.optim.LBFGS,
        ),
        lambda group: PLAIN,
    ),
    torch.optim.ASGD: lambda group: Traits(positions=frozenset({"ax"})),
    torch.optim.Adagrad: lambda group: _starting("sum", group["initial_accumulator_value"]),
    torch.optim.Rprop: lambda group: _starting("step_size", group["lr"]),
}


def traits_of(optimizer: Optimizer, group: Mapping[str, Any], parameter: Tensor) -> Traits:
    """What the state of the optimizer means, for one of its groups and a parameter like this."""
    known = KNOWN.get(type(optimizer))
    if known is not None:
        return known(group)
    # They compile their step for each shape; a table of the documentation shows their trial.
    if type(optimizer).__module__.partition(".")[0] == "torchao":
        return PLAIN
    return tried(optimizer, group, parameter)


def tried(optimizer: Optimizer, group: Mapping[str, Any], parameter: Tensor) -> Traits:
    """The same, found by trial whatever the optimizer is."""
    make = _maker(optimizer, group)
    if make is None:
        return UNKNOWN
    try:
        with _alone(parameter.device):
            return _Trial(make, parameter.dtype, parameter.device).traits()
    except Exception:  # whatever an optimizer raises that is not made for such a parameter
        return UNKNOWN


class _Trial:
    def __init__(
        self, make: Callable[..., Optimizer], dtype: torch.dtype, device: torch.device
    ) -> None:
        self.make = make
        generator = torch.Generator().manual_seed(0)
        signs = torch.randint(0, 2, (3, *SIZE), generator=generator) * 2.0 - 1
        sizes = 0.5 + torch.rand((3, *SIZE), generator=generator)
        values = (signs * sizes).to(device, dtype)
        self.start, self.gradient, self.direction = values.unbind()

    def traits(self) -> Traits:
        plain, state = self.run(STEPS)
        entries = per_synapse(state, plain.shape)
        positions = frozenset(
            name for name, (value, *_) in entries.items() if is_near(value, plain.detach())
        )
        pulls = self.pulled(plain, STEPS)
        if positions and not pulls:
            pulls = self.pulled(self.run(LONG)[0], LONG)
        return Traits(
            pulls,
            positions,
            self.starts(),
            mixed=self.mixed(entries) - positions,
            averages=positions == {averaging.PLACE} and self.averages(),
            masters=frozenset(name for name in positions if _rounded(entries[name][0], plain)),
        )

    def mixed(self, entries: Mapping[str, list[Tensor]]) -> frozenset[str]:
        """Entries whose numbers depend on the gradients of other weights, but for their scale."""
        other = self.direction > 0
        gradient = torch.where(other, -3 * self.gradient, self.gradient)
        changed = per_synapse(self.run(STEPS, gradient=gradient)[1], other.shape)
        found = set()
        for name, (value, *_) in entries.items():
            ours, theirs = (
                one.reshape(-1)[~other.reshape(-1)].double()
                for one in (value, *changed.get(name, [value])[:1])
            )
            scale = (ours @ theirs) / (ours @ ours).clamp(min=1e-300)
            if not (theirs - scale * ours).norm() <= 0.05 * theirs.norm():
                found.add(name)
        return frozenset(found)

    def pulled(self, plain: Tensor, steps: int) -> bool:
        """Whether a parameter that was put elsewhere after its first step comes back."""
        kick = KICK * self.direction
        moved = self.run(steps, kick=kick)[0].detach().float() - plain.detach().float()
        return not bool((moved / kick.float() - 1).abs().mean() < 0.25)

    def run(
        self, steps: int, *, kick: Tensor | None = None, gradient: Tensor | None = None
    ) -> tuple[nn.Parameter, Mapping[str, Any]]:
        """A parameter after some steps, and what the optimizer then keeps for it."""
        torch.manual_seed(0)  # some optimizers draw numbers: each run the same ones
        parameter = nn.Parameter(self.start.clone())
        optimizer = self.make(parameter, lr=SLOW)
        for step in range(steps):
            _step(optimizer, parameter, self.gradient if gradient is None else gradient)
            if step == 0 and kick is not None:
                with torch.no_grad():
                    parameter.add_(kick)
        return parameter, optimizer.state[parameter]

    def averages(self) -> bool:
        """Whether the weights move as the equations of `averaging` say."""
        parameter = nn.Parameter(self.start.float())
        optimizer = self.make(parameter, lr=FAST)
        state, (group,) = optimizer.state[parameter], optimizer.param_groups
        for _ in range(STEPS):
            before = parameter.detach().clone()
            place_before = state.get(averaging.PLACE, before).clone()
            mean = averaging.mean_of(group)
            _step(optimizer, parameter, self.gradient.float())
            if mean is None or averaging.PLACE not in state:
                return False
            place, share = state[averaging.PLACE], mean.share(group)
            expected = averaging.predicted(before, place_before, place, beta=mean.beta, share=share)
            move = (parameter.detach() - before).norm()
            if not (parameter.detach() - expected).norm() <= 1e-3 * move + 1e-4 * FAST:
                return False
        return True

    def starts(self) -> dict[str, float]:
        """What the optimizer puts into its state before any gradient has come."""
        parameter = nn.Parameter(self.start.clone())
        optimizer = self.make(parameter)
        first = _First(optimizer.state[parameter])
        optimizer.state[parameter] = first
        _step(optimizer, parameter, torch.zeros_like(parameter))
        found = {}
        for name, (value, *_) in per_synapse(first.values_put, parameter.shape).items():
            number = float(value.reshape(-1)[0])
            if number and bool((value == number).all()):
                found[name] = number
        return found


class _First(dict[str, Any]):
    """A dictionary that remembers the first value that was put under each key."""

    def __init__(self, existing: Mapping[str, Any]) -> None:
        super().__init__(existing)
        self.values_put: dict[str, Any] = {}
        for name, value in existing.items():
            self._keep(name, value)

    def __setitem__(self, name: str, value: Any) -> None:
        self._keep(name, value)
        super().__setitem__(name, value)

    def setdefault(self, name: str, value: Any = None) -> Any:
        self._keep(name, value)
        return super().setdefault(name, value)

    def update(self, *args: Any, **kwargs: Any) -> None:
        for name, value in dict(*args, **kwargs).items():
            self[name] = value

    def _keep(self, name: str, value: Any) -> None:
        if name not in self.values_put:
            self.values_put[name] = value.clone() if isinstance(value, Tensor) else value


def _step(optimizer: Optimizer, parameter: nn.Parameter, gradient: Tensor) -> None:
    def closure() -> Tensor:
        parameter.grad = gradient.clone()
        return gradient.sum()

    closure()
    needed = inspect.signature(optimizer.step).parameters.get("closure")
    if needed is not None and needed.default is needed.empty:
        optimizer.step(closure)  # type: ignore[arg-type]
    else:
        optimizer.step()


def _rounded(place: Tensor, weight: Tensor) -> bool:
    """Whether the weights are these places, rounded to a narrower type."""
    wider = place.element_size() > weight.element_size()
    return wider and torch.equal(place.to(weight.dtype), weight.detach())


def _starting(name: str, value: Any) -> Traits:
    return Traits(starts={name: float(value)} if value else {})


def _maker(optimizer: Optimizer, group: Mapping[str, Any]) -> Callable[..., Optimizer] | None:
    """A function that makes an optimizer of the same class and settings for one parameter."""
    cls: Any = type(optimizer)
    try:
        signature = inspect.signature(cls).parameters
    except (TypeError, ValueError):
        return None
    _, *rest = signature.values()
    known = {**optimizer.defaults, **group}
    options = {one.name: known[one.name] for one in rest if one.name in known}
    needed = [one for one in rest if one.default is one.empty and one.name not in options]
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    if any(one.kind not in kinds for one in needed):
        return None
    # Decay moves weights by where they stand; and a step is not to be compiled for a trial.
    options |= {name: 0.0 for name in ("weight_decay",) if name in options}
    # Flags that tell groups apart, such as Muon's; counters start anew.
    flags = {
        name: value
        for name, value in group.items()
        if isinstance(value, bool | str) and name not in optimizer.defaults
    }

    def make(parameter: nn.Parameter, **more: Any) -> Optimizer:
        more = {name: value for name, value in more.items() if name in signature}
        made: Optimizer = cls([{"params": [parameter], **flags}], **{**options, **more})
        train = getattr(made, "train", None)
        if callable(train):
            train()  # schedule-free
        return made

    return make


@contextmanager
def _alone(device: torch.device) -> Iterator[None]:
    """No trace of the trial in random generators or on the screen; nothing is compiled."""
    devices = [device] if device.type == "cuda" else []
    with (
        quietly(),
        torch.random.fork_rng(devices=devices),
        torch.compiler.set_stance("force_eager"),
        torch.enable_grad(),
    ):
        yield
