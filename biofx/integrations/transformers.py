"""Plasticity as a callback of Transformers' Trainer."""

import functools
from collections.abc import Iterable
from typing import Any

from biofx.config import BioConfig
from biofx.integrations.attachment import Attachment
from biofx.integrations.logging import log
from biofx.plasticity import GradScheduler, Rule

try:
    from transformers import TrainerCallback
except ImportError as error:
    raise ImportError(
        "biofx.integrations.transformers needs Transformers: pip install 'biofx[transformers]'"
    ) from error


class Plasticity(TrainerCallback):
    """Trains the transformed modules of a Trainer's model with plasticity.

        >>> plasticity = Plasticity(config=BioConfig(crystallize_every=1))
        >>> trainer = Trainer(model, args, train_dataset=data, callbacks=[plasticity])

    Checkpoints hold what the rules remember with the optimizer's state, so that
    ``train(resume_from_checkpoint=True)`` goes on to the bit.

    Args:
        config: transforms the Trainer's model, in place, when the Trainer is made. None: it, or
            modules in it, are transformed already.
        rules, seed, apply, compile: as in `GradScheduler`.
        writer: where to log each time the Trainer logs (see `biofx.integrations.logging.log`).

    Raises:
        PlasticityError: nothing in the model is transformed and no `config` is given, or as
            `GradScheduler`.
        ModelError: it is transformed already, with another configuration.
    """

    def __init__(
        self,
        config: BioConfig | None = None,
        *,
        rules: Iterable[Rule] | None = None,
        seed: int = 0,
        apply: Any = "update",
        compile: Any = "auto",
        writer: Any = None,
    ) -> None:
        self.writer = writer
        self._attachment = Attachment(config, rules=rules, seed=seed, apply=apply, compile=compile)

    @property
    def schedulers(self) -> dict[str, GradScheduler]:
        """{name of the transformed module in the model: its scheduler}."""
        return self._attachment.schedulers

    def attach(self, trainer: Any) -> None:
        """Make the scheduler before a checkpoint is restored.

        Needed under FSDP2 alone, which restores no more of an optimizer's state than it has when
        the checkpoint is read; a callback comes later.

        Args:
            trainer: the Trainer that has this callback.
        """
        original = trainer.create_scheduler

        @functools.wraps(original)
        def create_scheduler(*args: Any, **kwargs: Any) -> Any:
            made = original(*args, **kwargs)
            self._attachment.attach(trainer.model, [trainer.optimizer])
            return made

        trainer.create_scheduler = create_scheduler

    def on_init_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Transform the model."""
        if kwargs.get("model") is not None:
            self._attachment.transform(kwargs["model"])

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Optimizers exist, and hold what a checkpoint says."""
        self._attachment.attach(kwargs["model"], [kwargs["optimizer"]])

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Log, as often as the Trainer logs."""
        if self.writer is not None and state.is_world_process_zero:
            for scheduler in self.schedulers.values():
                log(scheduler, self.writer, state.global_step)
