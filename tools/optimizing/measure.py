"""What one optimizer makes of factors and of new synapses, over many steps."""

import contextlib
import inspect
import io
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

import biofx
from biofx.plasticity import Context, Rejuvenate, Rule, Schedule
from biofx.plasticity.scheduler.optimizer_state import innermost
from biofx.plasticity.scheduler.trial import tried
from optimizing.libraries import Entry

SIZE = 64  # 4096 synapses: from there on, low-bit optimizers keep states of few bits
STEPS = 100
REST = 20  # steps with gradients of 0, after synapses were replaced
FACTORS = (0.0, 0.5, 1.0, 1.5)
CLOSE = 0.02  # of a factor


class Fixed(Rule):
    """The factors above, over and over."""

    def factor(self, context: Context) -> Tensor:
        return torch.tensor(FACTORS)[context.index.long() % len(FACTORS)]


class Witness(Rule):
    """Remembers which synapses were replaced."""

    def prepare(self, context: Context) -> None:
        context.state["new"] = torch.zeros(context.weight.shape, dtype=torch.bool)

    def replaced(self, context: Context, mask: Tensor) -> None:
        context.state["new"] |= mask


@dataclass
class Result:
    """What was found.

    Attributes:
        library, name: of the optimizer.
        kind: what moves its weights, as a trial of it says.
        ways: how far synapses of each factor get, as a multiple of those whose factor is 1.
        whole: how far those get, as a multiple of a plain run.
        drift: the longest way of a new synapse while gradients are 0, in multiples of the mean
            move of a step.
        refused, unkind: the message, if factors or new synapses are refused.
        skipped: why nothing was tried.
        error: what went wrong.
    """

    library: str
    name: str
    kind: str = ""
    ways: list[float] = field(default_factory=list)
    whole: float = 1.0
    drift: float | None = None
    refused: str = ""
    unkind: str = ""
    skipped: str = ""
    error: str = ""

    @property
    def exact(self) -> bool:
        return bool(self.ways) and all(
            abs(way - factor) < CLOSE for way, factor in zip(self.ways, FACTORS, strict=True)
        )

    @property
    def failures(self) -> bool:
        """Whether something is wrong, and nobody says so."""
        return bool(self.error) or (bool(self.ways) and not self.exact)


def measure(entry: Entry, *, debug: bool = False) -> Result:
    result = Result(entry.library, entry.name, skipped=entry.skip or "")
    if entry.skip:
        return result
    try:
        with quietly():
            result.kind = kind_of(entry)
            plain = Run(entry, []).way()
            if not (plain.isfinite().all() and plain.any()):
                result.skipped = "does not move such weights"
                return result
            ways(entry, plain, result)
            rebirth(entry, plain.abs().mean() / STEPS, result)
    except Exception as error:
        if debug:
            raise
        result.error = f"{type(error).__name__}: {error}"
    return result


def kind_of(entry: Entry) -> str:
    """What moves the weights of this optimizer, found by trial whatever biofx knows of it."""
    weight = nn.Parameter(torch.randn(SIZE, SIZE))
    inner, around = innermost(entry.make([weight]))
    traits = tried(inner, inner.param_groups[0], weight)
    if not traits.tried:
        return "could not be tried"
    places = ", ".join(sorted(traits.positions))
    if traits.averages:
        kind = "schedule-free: the factor acts on z"
    elif traits.pulls:
        kind = f"pulled to {places}" if places else "pulled to places of its own"
    else:
        kind = f"gradients; {places} follows" if places else "gradients"
    return f"{kind} (inside {type(around[0]).__name__})" if around else kind


class Run:
    """A run over gradients that do not depend on the weights."""

    def __init__(
        self, entry: Entry, rules: list[Rule], *, steps: int = STEPS, rest: int = 0
    ) -> None:
        torch.manual_seed(0)
        bio = biofx.transform(nn.Sequential(nn.Linear(SIZE, SIZE, bias=False)))
        self.weight = bio.get_parameter("0.weight")
        self.start = self.weight.detach().clone()
        self.optimizer = entry.make([self.weight])
        self.turn("train")
        self.scheduler = biofx.GradScheduler(bio, self.optimizer, rules=rules) if rules else None
        generator = torch.Generator().manual_seed(1)
        mean = torch.randn(SIZE, SIZE, generator=generator)
        for _ in range(steps):
            self.step(mean + torch.randn(SIZE, SIZE, generator=generator))
        self.middle = self.weight.detach().clone()
        for _ in range(rest):
            self.step(torch.zeros(SIZE, SIZE))
        self.turn("eval")

    def step(self, gradient: Tensor) -> None:
        def closure() -> Tensor:
            self.weight.grad = gradient.clone()
            return gradient.sum()

        given = inspect.signature(self.optimizer.step).parameters.get("closure")
        if given is not None and given.default is given.empty:
            self.optimizer.step(closure)
        else:
            closure()
            self.optimizer.step()

    def turn(self, mode: str) -> None:
        turn: Any = getattr(self.optimizer, mode, None)
        if callable(turn):
            turn()

    def way(self) -> Tensor:
        return self.weight.detach() - self.start


def ways(entry: Entry, plain: Tensor, result: Result) -> None:
    try:
        found = Run(entry, [Fixed()]).way().flatten()
    except biofx.PlasticityError as error:
        result.refused = str(error)
        return
    plain = plain.flatten()
    for place in range(len(FACTORS)):
        own, theirs = found[place :: len(FACTORS)], plain[place :: len(FACTORS)]
        result.ways.append(float((own * theirs).sum() / theirs.square().sum()))
    result.whole = result.ways[FACTORS.index(1.0)]
    result.ways = [way / result.whole for way in result.ways]


def rebirth(entry: Entry, move: Tensor, result: Result) -> None:
    # Replaced at the last step that has gradients.
    rule = Rejuvenate(schedule=Schedule(every=STEPS, stop=STEPS), max_share=0.1)
    try:
        run = Run(entry, [rule, Witness()], rest=REST)
    except biofx.PlasticityError as error:
        result.unkind = str(error)
        return
    assert run.scheduler is not None
    new = run.scheduler.state_dict()["state"]["Witness"]["0.weight"]["new"]
    if not new.any():
        raise ValueError("no synapse was replaced")
    drift = (run.weight.detach() - run.middle).abs()[new].max()
    result.drift = float(drift / move) if float(move) else 0.0


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Without what libraries say, and without compiling their steps."""
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        torch.compiler.set_stance("force_eager"),
    ):
        warnings.simplefilter("ignore")
        yield
