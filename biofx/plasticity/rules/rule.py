"""`Rule`: what a plasticity rule is."""

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, ClassVar

from torch import Tensor

from biofx.fields import number_of
from biofx.plasticity.rules.context import STATIC, Context, Expression, Stage, scalar
from biofx.plasticity.rules.schedule import Schedule
from biofx.plasticity.rules.validation import require
from biofx.synapses import Synapses

__all__ = ["STATIC", "Context", "Expression", "Rule", "Stage", "pick", "scalar"]


@dataclass(frozen=True, kw_only=True)
class Rule:
    """A plasticity rule: hyperparameters, and functions of a `Context`.

    A rule holds no state of its own: what it must remember goes into ``context.state``, which
    checkpoints keep. Write one by overriding what you need; a factor is usually all:

        >>> class SmallFirst(Rule):
        ...     '''Synapses above the mean learn at half the rate.'''
        ...
        ...     def needs(self, context, stage):
        ...         return ("mean_abs",) if stage == "factor" else ()
        ...
        ...     def factor(self, context):
        ...         large = context.weight.abs() > context.statistics["mean_abs"]
        ...         return torch.where(large, 0.5, 1.0)
        >>> SmallFirst(schedule=Schedule(start=100), only=("encoder.*",)).name
        'SmallFirst'

    Hyperparameters are fields of a class under ``@dataclass(frozen=True, kw_only=True)``.

    Per step, for each parameter that has a gradient: `observe`, then `factor`, then
    `before_update`, then the optimizer moves the weights, then `after_step`. Factors of several
    rules multiply. Draw random numbers with ``context.uniform(...)``, never with ``torch.rand``,
    to stay reproducible and the same on every rank.

    Args:
        schedule: when the rule acts; None takes the configuration's interval, else every step.
        only: one or more globs over parameter names; other parameters are left alone.
        configured: act only where the layer's own configuration turns the rule on.
    """

    schedule: Schedule | None = None
    only: str | tuple[str, ...] = ("*",)
    configured: bool = False

    # Whether `observe` reads gradients: those must then be the whole step's, over all processes.
    judges_gradients: ClassVar[bool] = False
    # Whether masks of replaced synapses come back from `before_update` or `after_step`: then there
    # is room for them in checkpoints from the start.
    replaces: ClassVar[bool] = False
    # Whether `after_step` and `replaced` read and write weights, state and masks through
    # `Context.fill` and `Context.map` alone, with_factors: then they can share a pass over memory
    # with what comes before and after.
    maps_only: ClassVar[bool] = False

    # {field of `context.state`: (lowest, highest) of its values, or the texts that it may be}, by
    # which a checkpoint is checked: `prepare` creates some of these fields and no others, under
    # their names or behind a prefix and a dot. None: a checkpoint may hold anything.
    remembers: ClassVar[Mapping[str, tuple[float, float] | frozenset[str]] | None] = None
    # Whether `observe` changes the state by `Context.map` with_factors alone.
    observes_with_factors: ClassVar[bool] = False
    # Whether `after_step` changes weights, and not only the rule's state.
    changes_weights: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require(
            self.schedule is None or isinstance(self.schedule, Schedule),
            self.name,
            f"schedule={self.schedule!r} must be a Schedule, such as Schedule(every=10)",
        )
        globs = self._globs
        require(
            isinstance(globs, tuple | list) and all(isinstance(glob, str) for glob in globs),
            self.name,
            f"only={self.only!r} must be one or more globs over parameter names (strings)",
        )
        require(
            isinstance(number_of(self.configured), bool),
            self.name,
            f"configured={self.configured!r} must be True or False",
        )
        for name, value in vars(self).items():
            object.__setattr__(self, name, number_of(value))  # checkpoints hold plain numbers

    @property
    def name(self) -> str:
        """What checkpoints, metrics and messages call the rule."""
        return type(self).__name__

    @property
    def _globs(self) -> tuple[str, ...]:
        return (self.only,) if isinstance(self.only, str) else self.only

    def interval(self, synapses: Synapses) -> int | None:
        """Steps between applications in the layer's configuration: 0 is off, None unconfigured."""
        return None

    def serves(self, synapses: Synapses) -> bool:
        """Whether the rule acts on this parameter."""
        if not any(fnmatchcase(synapses.parameter, glob) for glob in self._globs):
            return False
        return not (self.configured and self.interval(synapses) == 0)

    def timing(self, synapses: Synapses) -> Schedule:
        """The schedule that holds for this parameter."""
        return self.schedule or Schedule(every=self.interval(synapses) or 1)

    def settings(self, synapses: Synapses) -> dict[str, Any]:
        """Effective hyperparameters for this parameter: plain values, compared on resuming.

        Refuses, with a `PlasticityError`, those out of range and parameters it cannot serve.
        """
        own = {
            name: value
            for name, value in vars(self).items()
            if name not in ("schedule", "only", "configured")
        }
        timing = self.timing(synapses)
        return {**own, "every": timing.every, "start": timing.start, "stop": timing.stop}

    def acts_in(self, synapses: Synapses, stage: Stage) -> bool:
        """Whether this function of the rule, if it has one, is ever called for a parameter."""
        return True

    def active(self, context: Context, stage: Stage) -> bool:
        """Whether this function of the rule is called at this step: when the schedule says so."""
        return context.timing.due(context.step)

    def needs(self, context: Context, stage: Stage) -> tuple[str, ...]:
        """Global statistics of the weights that the function reads in ``context.statistics``.

        A parameter for which one is not finite is refused, before anything is written.
        """
        return ()

    def elementwise(self, synapses: Synapses) -> bool:
        """Whether the functions below, but `initialise` and `begin`, treat synapses one by one.

        Small parameters that are `alike` are then handed over together, in one `Context`: their
        synapses are the rows of a matrix, and keys and statistics come as one number per row, of
        shape (rows, 1). Write with elementwise operations, `Context.map`, `Context.sum`,
        `Context.count` and `Context.constant` alone, and of ``context.synapses`` read nothing but
        `alike`. State must be tensors of the weight's shape and plain values.
        """
        return False

    def alike(self, synapses: Synapses) -> dict[str, Any]:
        """Parameters for which this is equal may share a `Context`.

        Leave out what the rule takes from `Context.number`.
        """
        return self.settings(synapses)

    def needs_activity(self, synapses: Synapses) -> bool:
        """Whether `observe` reads ``context.activity``."""
        return False

    def prepare(self, context: Context) -> None:
        """Once, before the first step: create ``context.state``."""

    def initialise(self, context: Context) -> None:
        """Once, before the first step: change ``context.weight`` in place."""

    def begin(self, context: Context) -> None:
        """Once, before the first step, when all rules have initialised the weights."""

    def observe(self, context: Context) -> None:
        """Gradients are known, weights have not moved: update the rule's state."""

    def expression(self, context: Context) -> Expression | None:
        """The factor as an `Expression`; None leaves the parameter alone."""
        return None

    def factor(self, context: Context) -> Tensor | None:
        """Factors of the local synapses' updates, broadcastable to the weight; None means 1."""
        expression = self.expression(context)
        if expression is None:
            return None
        return expression.function(context.weight.float(), context.index, **expression.inputs)

    def total(self, context: Context) -> Tensor | None:
        """A float64 sum over the local synapses, of shape (); None asks for none.

        `after_step` finds the sum over all shards in ``context.total``: those of all parameters
        are sent in one go. It may read ``context.statistics``.
        """
        return None

    def before_update(self, context: Context) -> Tensor | None:
        """Change ``context.weight`` in place, before the optimizer moves it by the gradient known.

        Returns:
            As `after_step`.
        """
        return None

    def after_step(self, context: Context) -> Tensor | None:
        """Change ``context.weight`` in place after the update.

        Returns:
            None, or a boolean mask, of the weight's shape, of synapses that were replaced by new
            ones. Their optimizer state is zeroed, and every rule is told through `replaced`.
        """
        return None

    def replaced(self, context: Context, mask: Tensor) -> None:
        """Some synapses are new (boolean mask of shape ``shard.size``): forget the old ones."""

    def report(self, context: Context) -> dict[str, Any]:
        """What `GradScheduler.metrics` adds for this parameter."""
        return {}


def pick(own: Any, configured: Any) -> Any:
    """A rule's own hyperparameter if it was given, else the layer's configured one."""
    return configured if own is None else own
