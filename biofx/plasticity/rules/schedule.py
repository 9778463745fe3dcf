"""`Schedule`: at which optimizer steps a rule acts."""

from dataclasses import dataclass

from biofx.fields import number_of
from biofx.plasticity.rules.validation import whole


@dataclass(frozen=True)
class Schedule:
    """Every `every`-th step after the first `start` steps, up to and including step `stop`.

    Steps are counted from 1 and per optimizer; a step that a `GradScaler` skips does not count.

        >>> [step for step in range(1, 13) if Schedule(every=3, start=2, stop=11).due(step)]
        [5, 8, 11]

    Args:
        every: steps between applications; the first one is at step `start` + `every`.
        start: steps to wait.
        stop: the last step at which the rule may act; None means never to stop.

    Raises:
        PlasticityError: `every` is not a positive whole number, `start` is negative, or `stop` is
            not after `start`.
    """

    every: int = 1
    start: int = 0
    stop: int | None = None

    def __post_init__(self) -> None:
        whole("Schedule", 1, every=self.every)
        whole("Schedule", 0, start=self.start)
        if self.stop is not None:
            whole("Schedule", self.start + 1, stop=self.stop)
        for name, value in vars(self).items():
            object.__setattr__(self, name, number_of(value))  # checkpoints hold plain numbers

    def due(self, step: int) -> bool:
        """Whether the rule acts at this step (the first step is 1)."""
        return self.runs(step) and (step - self.start) % self.every == 0

    def runs(self, step: int) -> bool:
        """Whether a step lies between `start` and `stop`."""
        return self.start < step and (self.stop is None or step <= self.stop)
