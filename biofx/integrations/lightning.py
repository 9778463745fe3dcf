"""Plasticity as a callback of Lightning's Trainer."""

import functools
import sys
from collections.abc import Iterable
from typing import Any

from torch import nn

from biofx.config import BioConfig
from biofx.integrations.attachment import Attachment
from biofx.plasticity import GradScheduler, Rule

# The library has two names, and whoever uses the old one alone has not imported the new one.
if "pytorch_lightning" in sys.modules and "lightning" not in sys.modules:
    from pytorch_lightning.callbacks import Callback
else:
    try:
        from lightning.pytorch.callbacks import Callback
    except ImportError as error:
        raise ImportError(
            "biofx.integrations.lightning needs Lightning: pip install 'biofx[lightning]'"
        ) from error


class Plasticity(Callback):
    """Trains the transformed modules of a `LightningModule` with plasticity.

        >>> trainer = Trainer(callbacks=[Plasticity(config=BioConfig(crystallize_every=1))])

    It makes a `GradScheduler` for each as soon as there are optimizers, before a checkpoint is
    restored, and again when optimizers are remade (a second ``fit``, a tuner, manual exchange);
    what the rules remember goes on. Checkpoints hold their state with the optimizers'.

    Args:
        config: transforms the whole `LightningModule`, in place, before its optimizers are made
            (after ``configure_model``, if it has one). None: it, or modules in it, are transformed
            already.
        rules, seed, apply, compile: as in `GradScheduler`.
        log: log `GradScheduler.scalars` every ``Trainer(log_every_n_steps=…)`` steps.

    Raises:
        PlasticityError: nothing in the module is transformed and no `config` is given, or as
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
        log: bool = True,
    ) -> None:
        super().__init__()
        self.logs = log
        self._attachment = Attachment(config, rules=rules, seed=seed, apply=apply, compile=compile)
        self._trainer: Any = None

    @property
    def schedulers(self) -> dict[str, GradScheduler]:
        """{name of the transformed module in the `LightningModule`: its scheduler}."""
        return self._attachment.schedulers

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_trainer": None}

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Transform the module, now or after its ``configure_model``."""
        self._trainer = trainer if stage == "fit" else None
        later = type(pl_module).configure_model
        if getattr(later, "__module__", "").startswith(("lightning.", "pytorch_lightning.")):
            self._attachment.transform(pl_module)
        else:
            self._after_configure_model(pl_module)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """The trainer is done; schedulers stay, to be looked at."""
        self._trainer = None

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Optimizers exist, and what a checkpoint holds of them is not restored yet."""
        self._attach(trainer)

    def on_train_batch_start(self, trainer: Any, *args: Any, **kwargs: Any) -> None:
        """Optimizers may have been exchanged."""
        self._attach(trainer)

    def on_train_batch_end(self, trainer: Any, *args: Any, **kwargs: Any) -> None:
        """Log, as often as the trainer logs."""
        if self.logs and self._attachment.steps % max(trainer.log_every_n_steps, 1) == 0:
            scalars = self._attachment.scalars()
            if scalars:
                self.log_dict(scalars)

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the optimizers' states hold it.

        A tuner writes a checkpoint before the fit has begun, and goes back to it.
        """
        if self._trainer is not None and self._trainer.optimizers:
            self._attach(self._trainer)
        return {}

    def _attach(self, trainer: Any) -> None:
        model, wrapper = trainer.lightning_module, trainer.strategy.model
        wrapped = isinstance(wrapper, nn.parallel.DistributedDataParallel)
        self._attachment.attach(model, trainer.optimizers, wrapper=wrapper if wrapped else None)

    def _after_configure_model(self, pl_module: Any) -> None:
        original = pl_module.configure_model

        @functools.wraps(original)
        def configure_model() -> None:
            original()
            del pl_module.configure_model
            self._attachment.transform(pl_module)

        pl_module.configure_model = configure_model
