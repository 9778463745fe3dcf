"""`BioConverter`: the API of the `bio_transformations` package, over biofx."""

import functools
from typing import Any, TypeVar, overload

from torch import Tensor, nn

from biofx.config import BioConfig
from biofx.errors import ConfigError, ModelError
from biofx.plasticity import ManualPlasticity
from biofx.synapses import Derived, become, record_of
from biofx.synapses.classes import mixins_of
from biofx.transform import transform

C = TypeVar("C", bound=type[nn.Module])

OUTPUT_MARK = "last_module_token"


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
        self._plasticity.fuzzy_learning_rates(self)

    def update_fuzzy_learning_rates(self, x: Tensor | None = None) -> None:
        """Let the factors of dynamic distributions evolve by one step.

        Args:
            x: not needed; layers count the activity of their units themselves.
        """
        self._plasticity.update_fuzzy_learning_rates(self)

    def rejuvenate_weights(self) -> None:
        """Replace weak synapses by new ones (`BioConfig.rejuvenate_law`).

        Raises:
            PlasticityError: a weight is not finite.
        """
        self._plasticity.rejuvenate_weights(self)

    def crystallize(self) -> None:
        """Dampen the factors of synapses that the gradients show to be settled, for good.

        Raises:
            PlasticityError: no weight has a gradient.
        """
        self._plasticity.crystallize(self)

    def volume_dependent_lr(self) -> None:
        """Scale every weight's gradient by a rate drawn from its size.

        Raises:
            PlasticityError: no weight has a gradient.
        """
        self._plasticity.volume_dependent_lr(self)

    def enforce_dales_principle(self) -> None:
        """Project the weights back to one sign per unit.

        Raises:
            PlasticityError: the model was converted without `apply_dales_principle`.
        """
        self._plasticity.enforce_dales_principle(self)

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


class BioConverter:
    """Converts models, or classes of models, as `bio_transformations.BioConverter` does.

        >>> bio_model = BioConverter(fuzzy_learning_rate_factor_nu=0.16)(model)

    An instance is not changed: the converted model is a new module that shares its parameters.
    Instances of a converted class are converted as they are made.

    Args:
        config: settings to start from.
        **kwargs: fields of `BioConfig` that replace those of `config`.

    Raises:
        ConfigError: an unknown field or a value out of range.
    """

    def __init__(self, config: BioConfig | None = None, **kwargs: Any) -> None:
        config = BioConfig() if config is None else config
        if not isinstance(config, BioConfig):
            hint = "; BioConverter.from_dict takes one" if isinstance(config, dict) else ""
            raise ConfigError(f"expected a BioConfig, got {type(config).__name__}{hint}")
        self.config = config.replace(**kwargs)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any]) -> "BioConverter":
        """A converter from plain field names and values."""
        return cls(BioConfig.from_dict(config_dict))

    def get_config(self) -> BioConfig:
        """The configuration in use."""
        return self.config

    def update_config(self, **kwargs: Any) -> None:
        """Change fields for conversions to come."""
        self.config = self.config.replace(**kwargs)

    @staticmethod
    def set_last_module_token_for_module(module: nn.Module) -> nn.Module:
        """Mark a layer that must not be split, wherever it stands.

        Raises:
            ModelError: it is no module.
        """
        if not isinstance(module, nn.Module):
            raise ModelError(f"expected a torch.nn.Module to mark, got {type(module).__name__}")
        setattr(module, OUTPUT_MARK, True)
        return module

    @overload
    def convert(self, module_class_or_instance: C) -> C: ...

    @overload
    def convert(self, module_class_or_instance: nn.Module) -> nn.Module: ...

    def convert(self, module_class_or_instance: Any) -> Any:
        """Convert a module, or a module class (then usable as a decorator).

        Raises:
            TypeError: neither a module nor a module class.
            ModelError, ConfigError: as `biofx.transform`.
        """
        if isinstance(module_class_or_instance, nn.Module):
            return self._convert_instance(module_class_or_instance, inplace=False)
        if isinstance(module_class_or_instance, type) and issubclass(
            module_class_or_instance, nn.Module
        ):
            return self._convert_class(module_class_or_instance)
        raise TypeError(
            "expected a torch.nn.Module or a class of them, got "
            f"{type(module_class_or_instance).__name__}"
        )

    __call__ = convert

    def _convert_instance(self, model: nn.Module, *, inplace: bool) -> nn.Module:
        taken = [name for name in vars(Converted) if not name.startswith("_")]
        clash = next((name for name in taken if hasattr(model, name)), None)
        if clash is not None and not isinstance(model, Converted):
            raise ModelError(
                f"{type(model).__name__} has an attribute {clash!r} already; use biofx.transform "
                "and biofx.GradScheduler, which add no methods"
            )
        marked = {
            name: {"weight_splitting_Gamma": 0}
            for name, module in model.named_modules()
            if getattr(module, OUTPUT_MARK, False)
        }
        config = self.config.replace(overrides={**self.config.overrides, **marked})
        bio = transform(model, config, inplace=inplace)
        become(bio, Converted, *mixins_of(bio))
        bio.__dict__["_plasticity"] = ManualPlasticity()
        recompile = getattr(bio, "recompile", None)
        if recompile is not None:  # its generated forward belongs to its class, which is new
            recompile()
        if config.apply_dales_principle:
            bio.__dict__["_plasticity"].initialise_dales_principle(bio)
        return bio

    def _convert_class(self, cls: type[nn.Module]) -> type[nn.Module]:
        converter = self

        @functools.wraps(cls.__init__)
        def init(module: nn.Module, *args: Any, **kwargs: Any) -> None:
            cls.__init__(module, *args, **kwargs)
            if type(module) is made:  # not while a subclass is still being initialised
                converter._convert_instance(module, inplace=True)

        namespace = {
            "__init__": init,
            "__module__": cls.__module__,
            "__qualname__": cls.__qualname__,
            "__doc__": cls.__doc__,
        }
        made: type[nn.Module] = type(cls)(cls.__name__, (cls,), namespace)  # type: ignore[misc]
        return made
