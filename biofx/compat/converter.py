"""`BioConverter`: converts models as `bio_transformations` does, over `biofx.transform`."""

import dataclasses
import functools
import warnings
from typing import Any, TypeVar, overload

from torch import nn

from biofx.compat.converted import Converted
from biofx.compat.module import BioModule
from biofx.config import BioConfig
from biofx.errors import ConfigError, ModelError
from biofx.plasticity import ManualPlasticity
from biofx.synapses import (
    COUNTS,
    BioLayer,
    become,
    original_class,
    record_of,
    synapses_at,
    wants_activity,
)
from biofx.synapses.classes import mixins_of
from biofx.synapses.record import RECORD
from biofx.transform import transform

C = TypeVar("C", bound=type[nn.Module])

OUTPUT_MARK = "last_module_token"

# Settings that a conversion has built into the graph.
STRUCTURE = (
    "weight_splitting_Gamma",
    "weight_splitting_mode",
    "weight_splitting_activation_function",
    "include",
    "exclude",
)


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
    def set_last_module_token_for_model(model: nn.Module) -> None:
        """Mark the output layer by the package's own rule: see `assumed_output`.

        Raises:
            ModelError: it is no module.
        """
        if not isinstance(model, nn.Module):
            raise ModelError(f"expected a torch.nn.Module to mark, got {type(model).__name__}")
        name = assumed_output(model)
        if name is not None:
            BioConverter.set_last_module_token_for_module(model.get_submodule(name))

    @staticmethod
    def mark_skip_weight_splitting(module: nn.Module) -> nn.Module:
        """As `set_last_module_token_for_module`, which older versions call so."""
        return BioConverter.set_last_module_token_for_module(module)

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
            f"Unsupported type for module_class_or_instance: {type(module_class_or_instance)}; "
            "give a torch.nn.Module or a class of them"
        )

    __call__ = convert

    def _convert_instance(self, model: nn.Module, *, inplace: bool) -> nn.Module:
        if isinstance(model, Converted):
            return self._convert_again(model)
        taken = [name for name in vars(Converted) if not name.startswith("_")]
        clash = next((name for name in taken if hasattr(model, name)), None)
        if clash is not None:
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
        bio = transform(model, self._with_outputs(model, config), inplace=inplace)
        _say_unsplit(bio)
        become(bio, Converted, *mixins_of(bio))
        self._give_plasticity(bio)
        return bio

    def _with_outputs(self, model: nn.Module, config: BioConfig) -> BioConfig:
        """The configuration, with the output layer named where the graph does not tell it."""
        if config.weight_splitting_Gamma <= 1 or config.outputs:
            return config
        if record_of(transform(model, config)).wiring.known:
            return config
        output = assumed_output(model)
        if output is None:
            return config
        warnings.warn(
            f"{type(model).__name__} could not be traced, so {output!r} is taken for its output "
            "layer, as the last that it registers; every other layer is split where Γ allows. Use "
            "biofx.transform with example_inputs to know, or set BioConfig(outputs=…)",
            UserWarning,
            stacklevel=5,
        )
        return config.replace(outputs=(output,))

    def _convert_again(self, bio: Converted) -> nn.Module:
        """Give a converted model other settings, in place; its graph stays as it is."""
        record = record_of(bio)
        fixed = [
            name for name in STRUCTURE if getattr(self.config, name) != getattr(record.config, name)
        ]
        if fixed:
            warnings.warn(
                f"{type(bio).__name__} is converted already, and {', '.join(fixed)} changes what "
                "it computes: that stays as it was; convert the original model for another",
                UserWarning,
                stacklevel=4,
            )
        config = self.config.replace(**{name: getattr(record.config, name) for name in STRUCTURE})
        synapses = {
            name: dataclasses.replace(entry, config=config.for_layer(entry.layers[0]))
            for name, entry in record.synapses.items()
        }
        for entry in synapses.values():
            layer = bio.get_submodule(entry.layers[0])
            if wants_activity(entry) and COUNTS not in layer._buffers:
                raise ConfigError(
                    f"{entry.layers[0]} does not count the activity of its units, for it was "
                    "converted without ACTIVITY; convert the original model"
                )
        bio.__dict__[RECORD] = dataclasses.replace(record, config=config, synapses=synapses)
        for layer in bio.modules():
            if isinstance(layer, BioLayer) and synapses_at(layer):
                own = tuple(synapses[entry.parameter] for entry in synapses_at(layer))
                layer.__dict__["_biofx_synapses"] = own
        self._give_plasticity(bio)
        return bio

    def _give_plasticity(self, bio: Any) -> None:
        plasticity = bio.__dict__["_plasticity"] = ManualPlasticity()
        plasticity.owner = bio
        for layer in bio.modules():
            if isinstance(layer, BioLayer) and synapses_at(layer):
                layer.__dict__.pop("bio_mod", None)
                layer.__dict__["_plasticity"] = plasticity
                self._bio_modulize(layer)
        if record_of(bio).config.apply_dales_principle:
            plasticity.initialise_dales_principle(bio)

    def _bio_modulize(self, module: nn.Module) -> None:
        """Give a converted layer its `bio_mod`. Override it to give one of your own class."""
        plasticity = module.__dict__["_plasticity"]
        module.__dict__["bio_mod"] = BioModule.of_layer(module, plasticity)

    def _convert_class(self, cls: type[nn.Module]) -> type[nn.Module]:
        if not isinstance(cls, type):
            raise TypeError(f"module_class must be a class; instead got: {type(cls)}")
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


def _say_unsplit(bio: nn.Module) -> None:
    """Warn where a Γ was set and no layer is split, as of a model with one layer."""
    record = record_of(bio)
    layers = record.layers
    if record.config.weight_splitting_Gamma < 2 or not layers:
        return
    if any(
        layer.action == "split" or getattr(bio.get_submodule(name), OUTPUT_MARK, False)
        for name, layer in layers.items()
    ):
        return
    name, layer = next(iter(layers.items()))
    warnings.warn(
        f"weight_splitting_Gamma={record.config.weight_splitting_Gamma} splits no layer of "
        f"{original_class(bio).__name__} ({name or 'the model'}: {layer.reason})",
        UserWarning,
        stacklevel=5,
    )


def assumed_output(model: nn.Module) -> str | None:
    """The name of the output layer by `bio_transformations`' rule, where nothing better is known.

    It is the last linear layer or 2-D convolution among the model's own children, if there are
    two or more. A converter never sees inputs: where the graph does not tell which layers are
    outputs, this is the assumption to make, to list and to warn of.
    """
    layers = [
        name for name, child in model.named_children() if isinstance(child, nn.Linear | nn.Conv2d)
    ]
    return layers[-1] if len(layers) > 1 else None
