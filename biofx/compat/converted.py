"""`Converted`: the methods that a converted model has in `bio_transformations`."""

import copy
import functools
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from biofx.compat.module import BioModule
from biofx.errors import ConfigError
from biofx.plasticity import ManualPlasticity
from biofx.synapses import COUNTS, BioLayer, Derived, record_of, synapses_at, wants_activity


class Converted(Derived):
    """A transformed model with the methods that a converted model has in `bio_transformations`.

    They act at the moment of the call, on gradients or on weights. `GradScheduler` does the same
    by itself, at the right moment, and under every optimizer.
    """

    _plasticity: ManualPlasticity

    def fuzzy_learning_rates(self) -> None:
        """Scale every weight's gradient by its plasticity factor.

        Call it between ``loss.backward()`` and ``optimizer.step()``.

        Raises:
            PlasticityError: no weight has a gradient.
        """
        self._follow_activity()
        self._call("fuzzy_learning_rates")

    def update_fuzzy_learning_rates(self, x: Tensor | None = None) -> None:
        """Let the factors of dynamic distributions evolve by one step.

        Args:
            x: not needed; layers count the activity of their units themselves.
        """
        self._call("update_fuzzy_learning_rates")

    def rejuvenate_weights(self) -> None:
        """Replace weak synapses by new ones (`BioConfig.rejuvenate_law`).

        Raises:
            PlasticityError: a weight is not finite.
        """
        self._call("rejuvenate_weights")

    def crystallize(self) -> None:
        """Dampen the factors of synapses that the gradients show to be settled, for good.

        Raises:
            PlasticityError: no weight has a gradient.
        """
        self._call("crystallize")

    def volume_dependent_lr(self) -> None:
        """Scale every weight's gradient by a rate drawn from its size.

        Raises:
            PlasticityError: no weight has a gradient.
        """
        self._call("volume_dependent_lr")

    def enforce_dales_principle(self) -> None:
        """Project the weights back to one sign per unit.

        Raises:
            PlasticityError: the model was converted without `apply_dales_principle`.
        """
        self._call("enforce_dales_principle")

    def rejuvenate_weights_old(self) -> None:
        """As `rejuvenate_weights`: the older law is not kept."""
        self._all("rejuvenate_weights_old")

    def __getattr__(self, name: str) -> Any:
        if name in BioModule.exposed_functions and name not in vars(Converted):
            return functools.partial(self._all, name)  # a method of the user's own
        return super().__getattr__(name)

    def _all(self, method: str, *args: Any) -> None:
        """Call a method of every layer's `bio_mod` that has it."""
        for _, layer in _with_bio_mod(self):
            function = getattr(layer.bio_mod, method, None)
            if function is not None:
                function(*args)

    def _call(self, method: str, *args: Any) -> None:
        """All layers at once, or one by one where the user has put a `bio_mod` of their own."""
        if all(type(layer.bio_mod) is BioModule for _, layer in _with_bio_mod(self)):
            getattr(self._plasticity, method)(self, *args)
        else:
            self._all(method)

    def _follow_activity(self) -> None:
        """Update ACTIVITY factors where forward passes were counted since the last update.

        In `bio_transformations` the forward pass itself updates them, so code written for it may
        never call `update_fuzzy_learning_rates`.
        """
        for _, layer in _with_bio_mod(self):
            entries = synapses_at(layer) if isinstance(layer, BioLayer) else ()
            follows = entries and wants_activity(entries[0]) and entries[0].config.fuzzy_lr_dynamic
            counts = layer._buffers.get(COUNTS)
            if follows and isinstance(counts, Tensor) and bool(counts.any()):
                layer.bio_mod.update_fuzzy_learning_rates()

    def __deepcopy__(self, memo: dict[int, Any]) -> "Converted":
        deeper = getattr(super(), "__deepcopy__", None)
        if deeper is not None:  # a graph module's own
            fresh: Converted = deeper(memo)
        else:
            make, arguments, state = self.__reduce_ex__(4)[:3]
            fresh = memo[id(self)] = make(*arguments)
            fresh.__setstate__(copy.deepcopy(state, memo))
        fresh._plasticity.owner = fresh
        return fresh

    def __setstate__(self, state: Any) -> None:
        super().__setstate__(state)
        self._plasticity.owner = self

    def add_weight_splitting_step(self) -> tuple[str, ...]:
        """The layers whose graph has a weight-splitting step; conversion has put it there.

        Returns:
            Names of the split layers.

        Raises:
            ConfigError: the model was converted with Γ < 2.
        """
        record = record_of(self)
        names = tuple(n for n, layer in record.layers.items() if layer.action == "split")
        if not names and record.config.weight_splitting_Gamma < 2:
            raise ConfigError(
                "this model was converted without weight splitting; convert it with "
                "weight_splitting_Gamma of at least 2"
            )
        return names


def _with_bio_mod(model: nn.Module) -> Iterator[tuple[str, Any]]:
    for name, module in model.named_modules():
        if "bio_mod" in vars(module) or "bio_mod" in module._modules:
            yield name, module
