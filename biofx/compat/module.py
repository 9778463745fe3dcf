"""`BioModule`: the mechanisms on one layer, as `bio_transformations` has them."""

import warnings
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from biofx.compat.layer import Unknown, transformed
from biofx.config import BioConfig, Distribution
from biofx.errors import ConfigError, ModelError, PlasticityError
from biofx.plasticity import ManualPlasticity
from biofx.plasticity.scheduler.manual import UnsignedError
from biofx.synapses import synapses_of

DEFAULT_BIO_CONFIG = BioConfig()


class ParentError(ModelError, AssertionError):
    """What a `BioModule` is made for is no layer."""


class BioModule(nn.Module):
    """One layer's plasticity, called by hand: ``layer.bio_mod`` of a converted model.

    It acts at the moment of the call, on the gradients or the weights of the layer's parameters. It
    holds no parameters of its own, so that nothing is added to a state dict.

        >>> layer = nn.Linear(4, 3)
        >>> plasticity = BioModule(lambda: layer)
        >>> layer(torch.ones(2, 4)).sum().backward()
        >>> plasticity.fuzzy_learning_rates()

    Args:
        parent: gives the layer, each time that it is needed.
        config: settings; splitting is the converter's.

    Raises:
        ModelError: `parent` is not callable, or gives no layer with synapses.
        ConfigError: `config` is no `BioConfig`.
    """

    # Methods that a converted model has too. A subclass may add to them.
    exposed_functions: ClassVar[tuple[str, ...]] = (
        "rejuvenate_weights",
        "crystallize",
        "fuzzy_learning_rates",
        "volume_dependent_lr",
        "update_fuzzy_learning_rates",
        "rejuvenate_weights_old",
    )

    _plasticity: ManualPlasticity

    def __init__(
        self, parent: Callable[[], nn.Module], config: BioConfig = DEFAULT_BIO_CONFIG
    ) -> None:
        super().__init__()
        if not callable(parent):
            raise ParentError(
                f"parent must be a Callable returning an nn.Module instance, not {parent!r}"
            )
        layer = parent()
        if not isinstance(layer, nn.Module):
            raise ParentError(
                f"parent output must be an instance of nn.Module, not of {type(layer).__name__}"
            )
        # In `__dict__`: registered modules would come into the state dict of the layer.
        self.__dict__.update({"_parent": parent, "_prefix": ""})
        self._begin(config)

    def _begin(self, config: BioConfig) -> None:
        """Give the layer factors, and signs, as a configuration says."""
        if not isinstance(config, BioConfig):
            raise ConfigError(f"expected a BioConfig, got {type(config).__name__}")
        own: dict[str, Any] = {
            "_bio": transformed(self.get_parent(), config.replace(weight_splitting_Gamma=0)),
            "_given": config,
            "_plasticity": ManualPlasticity(),
        }
        self.__dict__.pop("_signed", None)
        self.__dict__.update(own)
        active = config.fuzzy_lr_distribution == Distribution.ACTIVITY
        if active and isinstance(own["_bio"], Unknown):
            raise PlasticityError(
                f"the activity of a {type(self.get_parent()).__name__} cannot be counted: its "
                "output units are not known; teach its type with biofx.register"
            )
        if config.apply_dales_principle:
            self._expect_units()
            self._plasticity.initialise_dales_principle(self._model(), self._names())

    @classmethod
    def of_layer(cls, layer: nn.Module, plasticity: ManualPlasticity) -> "BioModule":
        """The view of a layer in a converted model, which shares the model's plasticity."""
        view = cls.__new__(cls)
        nn.Module.__init__(view)
        view.__dict__.update({"_layer": layer, "_plasticity": plasticity})
        return view

    @property
    def config(self) -> BioConfig:
        """The settings in use for this layer."""
        if "_given" in self.__dict__:
            given: BioConfig = self.__dict__["_given"]
            return given
        entry = self.__dict__["_layer"].synapses[0]
        config: BioConfig = entry.config
        adaptive = config.fuzzy_lr_distribution == Distribution.LAYER_ADAPTIVE
        if adaptive and config.fuzzy_lr_layer_index < 0:
            return config.replace(
                fuzzy_lr_layer_index=entry.rank, fuzzy_lr_total_layers=entry.ranks
            )
        return config

    @config.setter
    def config(self, config: BioConfig) -> None:
        """Begin anew with other settings: as if the module had been made with them.

        Raises:
            ConfigError: it is no `BioConfig`, or the layer is one of a converted model.
        """
        if "_given" not in self.__dict__:
            raise ConfigError(
                "the settings of a converted model's layer are its converter's: convert the model "
                "again with others (BioConfig(overrides={…}) sets those of single layers)"
            )
        self._begin(config)

    def get_parent(self) -> nn.Module:
        """The layer."""
        if "_layer" in self.__dict__:
            layer: nn.Module = self.__dict__["_layer"]
            return layer
        found: nn.Module = self.__dict__["_parent"]()
        return found

    @property
    def fuzzy_learning_rate_parameters(self) -> nn.Parameter:
        """The factors of the layer's weight, of its shape.

        The tensor follows the factors, and what is written into it becomes the factors.
        """
        return self._plasticity.rates(self._model(), self._names()[0])

    @property
    def activation_count(self) -> Tensor:
        """How often each output unit was active in training, of shape (units,).

        Raises:
            AttributeError: the distribution is not ACTIVITY.
        """
        if self.config.fuzzy_lr_distribution != Distribution.ACTIVITY:
            raise AttributeError("activation_count")
        return self._plasticity.activation_count(self._model(), self._names()[0])

    @property
    def weight_adaptive_initialized(self) -> bool:
        """Whether WEIGHT_ADAPTIVE factors are drawn; set it to False, and the next update does.

        Raises:
            AttributeError: the distribution is not WEIGHT_ADAPTIVE.
        """
        if self.config.fuzzy_lr_distribution != Distribution.WEIGHT_ADAPTIVE:
            raise AttributeError("weight_adaptive_initialized")
        return self._plasticity.weight_adaptive_drawn(self._model(), self._names()[0])

    @weight_adaptive_initialized.setter
    def weight_adaptive_initialized(self, drawn: bool) -> None:
        if self.weight_adaptive_initialized and not drawn:
            self._plasticity.draw_weight_adaptive_again(self._model(), self._names()[0])

    @property
    def sign(self) -> Tensor:
        """±1 per unit, broadcastable to the weight, by Dale's principle.

        Raises:
            AttributeError: the layer has none: `apply_dales_principle` is off, and
                `dalian_network_initialization` was not called.
        """
        if "_signed" in self.__dict__:
            signed: BioModule = self.__dict__["_signed"]
            return signed.sign
        return self._plasticity.signs(self._model(), self._names()[0])

    def __getattr__(self, name: str) -> Any:
        if name == "sign":  # the property has raised an AttributeError
            raise UnsignedError(
                "sign attribute not found: the layer was made without apply_dales_principle"
            )
        return super().__getattr__(name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "fuzzy_learning_rate_parameters":  # nn.Module would register a parameter
            self._plasticity.set_rates(self._model(), self._names()[0], value)
            return
        super().__setattr__(name, value)

    def fuzzy_learning_rates(self) -> None:
        """Scale the weight's gradient by its factors.

        Raises:
            PlasticityError: it has no gradient, or does not require one.
        """
        self._expect(gradients=True)
        self._plasticity.fuzzy_learning_rates(self._model(), self._names())

    def update_fuzzy_learning_rates(self, x: Tensor | None = None) -> None:
        """Let the factors of dynamic distributions evolve by one step.

        Args:
            x: the layer's input, for ACTIVITY; a layer of a converted model counts by itself.
        """
        if x is not None and "_bio" in self.__dict__:
            with torch.no_grad():
                self._model()(x)
        self._plasticity.update_fuzzy_learning_rates(self._model(), self._names())

    def crystallize(self) -> None:
        """Dampen the factors of synapses that the gradient shows to be settled, for good.

        Raises:
            PlasticityError: the weight has no gradient, or does not require one.
        """
        self._expect(gradients=True)
        self._plasticity.crystallize(self._model(), self._names())

    def volume_dependent_lr(self) -> None:
        """Scale the weight's gradient by rates drawn from its size.

        Raises:
            PlasticityError: it has no gradient, or does not require one.
        """
        self._expect(gradients=True)
        self._plasticity.volume_dependent_lr(self._model(), self._names())

    def rejuvenate_weights(self) -> None:
        """Replace weak synapses by new ones.

        Raises:
            PlasticityError: a weight is not finite, or does not require gradients.
        """
        self._expect(gradients=False)
        self._plasticity.rejuvenate_weights(self._model(), self._names())

    def rejuvenate_weights_old(self) -> None:
        """As `rejuvenate_weights`: the older law is not kept."""
        warnings.warn(
            "rejuvenate_weights_old() is rejuvenate_weights(), the paper's law",
            DeprecationWarning,
            stacklevel=2,
        )
        self.rejuvenate_weights()

    def enforce_dales_principle(self) -> None:
        """Set weights whose sign is not their unit's to 0.

        Raises:
            AttributeError: the layer was converted without `apply_dales_principle`.
        """
        self._plasticity.enforce_dales_principle(self._model(), self._names())

    @staticmethod
    def dalian_network_initialization(module: Any) -> None:
        """w ← |w|·sign, one sign per unit.

        Args:
            module: a `BioModule`. Without `apply_dales_principle` it has signs from now on, which
                nothing enforces.

        Raises:
            AttributeError: it is none, or its layer is of a type that biofx does not know.
        """
        if not isinstance(module, BioModule):
            raise UnsignedError(
                f"Can not use dalians network initialization on {type(module)}: give a BioModule"
            )
        module._expect_units()
        if module.config.apply_dales_principle:
            module._plasticity.initialise_dales_principle(module._model(), module._names())
        else:
            config = module.config.replace(apply_dales_principle=True)
            module.__dict__["_signed"] = BioModule(module.get_parent, config)

    def l1_reg(self) -> Tensor:
        """Σ|w| over the layer's weights and biases, of shape (); it may be part of a loss."""
        parts = [parameter.abs().sum() for parameter in self.get_parent().parameters()]
        return torch.stack(parts).sum()

    def extra_repr(self) -> str:
        """The layer that it acts on."""
        return type(self.get_parent()).__name__

    def _expect_units(self) -> None:
        if isinstance(self.__dict__.get("_bio"), Unknown):
            raise UnsignedError(
                f"Can not use dalians network initialization on {type(self.get_parent())}: which "
                "axes of its weight are units is not known; teach it with biofx.register"
            )

    def _expect(self, *, gradients: bool) -> None:
        layer = self.get_parent()
        model = self._model()
        weights = [model.get_parameter(name) for name in self._names()]
        if not any(weight.requires_grad for weight in weights):
            raise PlasticityError(
                f"Weights do not require gradients: this {type(layer).__name__} is frozen"
            )
        if gradients and all(weight.grad is None for weight in weights):
            raise PlasticityError(
                "No gradients found for the weights: call this after loss.backward() and before "
                "zero_grad()"
            )

    def _model(self) -> nn.Module:
        """The transformed model that the plasticity is of."""
        if "_bio" not in self.__dict__:
            if self._plasticity.owner is None:
                raise ModelError(
                    "this layer was copied out of its converted model; convert the copy"
                )
            return self._plasticity.owner
        bio: nn.Module = self.__dict__["_bio"]
        layer = self.get_parent()
        for name in synapses_of(bio):  # the layer's parameter may have been replaced
            holder, _, leaf = name.rpartition(".")
            bio.get_submodule(holder)._parameters[leaf] = layer.get_parameter(name)
        return bio

    def _names(self) -> tuple[str, ...]:
        """The parameters whose synapses are meant, in that model."""
        if "_bio" in self.__dict__:
            return tuple(synapses_of(self.__dict__["_bio"]))
        return tuple(entry.parameter for entry in self.__dict__["_layer"].synapses)
