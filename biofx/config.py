"""`BioConfig`: every setting of a transformation in one frozen, validated object."""

import dataclasses
import functools
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

from biofx.errors import ConfigError
from biofx.fields import (
    COUNTS,
    FLAGS,
    MODES,
    RANGES,
    TupleLike,
    check_function,
    check_range,
    nearest,
    number_of,
    plain,
)

C = TypeVar("C", bound=type)


class Distribution(StrEnum):
    """How per-synapse plasticity factors f are drawn; every one has mean 1 before the clamp."""

    BASELINE = "baseline"
    UNIFORM = "uniform"
    NORMAL = "normal"
    LOGNORMAL = "lognormal"
    GAMMA = "gamma"
    BETA = "beta"
    LAYER_ADAPTIVE = "layer_adaptive"
    WEIGHT_ADAPTIVE = "weight_adaptive"
    TEMPORAL = "temporal"
    ACTIVITY = "activity"


MODEL_WIDE = ("overrides", "include", "exclude", "outputs")


def _names_checked(cls: C) -> C:
    """Let a class refuse a keyword that is not a field of it as `BioConfig.replace` does."""
    original: Callable[..., None] = cls.__init__  # type: ignore[misc]

    @functools.wraps(original)
    def init(self: Any, *args: Any, **fields: Any) -> None:
        original(self, *args, **_known(fields))

    cls.__init__ = init  # type: ignore[misc]
    return cls


@_names_checked
@dataclass(frozen=True, repr=False)
class BioConfig(TupleLike):
    """The settings of a transformation and of the rules that train it.

    Field names are those of the `bio_transformations` package; the symbols are the paper's
    (Hofmann, Becker, Tetzlaff, Mäder, Nature Communications 2025).

    Args:
        weight_splitting_activation_function: φ, applied before the bundles are summed: a callable
            on tensors, a module without parameters, or the name of a function in
            `torch.nn.functional`. Group mode only.
        fuzzy_learning_rate_factor_nu: ν, relative spread of the plasticity factors.
        dampening_factor: what `Crystallize` multiplies a stabilised synapse's factor by.
        crystal_thresh: gradients below this multiple of |w| count as settled.
        rejuvenation_parameter_dre: d; synapses are replaced with probability erfc(|w|d/(max|w|√2)).
        weight_splitting_Gamma: Γ, synapses per connection; 0 and 1 mean no splitting.
        apply_dales_principle: one sign for all outgoing weights of a unit.
        base_lr, stability_factor, lr_variability: volume-dependent rate,
            f = |N(μ, (variability·μ)²)| with μ = base·exp(−stability·|w|/(1+|w|)).
        fuzzy_lr_distribution: a `Distribution` or its value, such as "lognormal".
        fuzzy_lr_min, fuzzy_lr_max: clamp of the factors.
        fuzzy_lr_dynamic: redraw or evolve the factors while training.
        fuzzy_lr_decay: decay of TEMPORAL factors towards 1, per update.
        fuzzy_lr_update_freq: optimizer steps between updates of dynamic factors.
        fuzzy_lr_layer_index, fuzzy_lr_total_layers: override the topological rank that
            LAYER_ADAPTIVE uses; −1 takes it from the graph.
        weight_splitting_mode: "group" sums Γ neighbouring output units and repeats the sum
            (shapes stay, the function changes); "expand" puts Γ synapses where one stood
            (the function stays, there are Γ times as many synapses).
        dale_axis: whose sign is fixed: "pre" (all outgoing weights agree) or "post".
        dale_initialisation: "mirrored" starts units in pairs of one exciting and one inhibiting
            that share their incoming weights, wherever units can be followed; "signs" starts all
            weights as |w|·sign.
        rejuvenate_law: what new synapses are drawn from: "uniform" (the paper's), "lognormal"
            (keeps the layer's log-moments) or "initial" (the law the layer was initialised with).
        rejuvenate_choose: which synapses are replaced: "paper" (by the law of
            `rejuvenation_parameter_dre`), "random" or "weak" (a share `rejuvenate_max_share`).
        rejuvenate_max_share: largest share of a parameter that one call replaces, in expectation.
        rejuvenate_before_step: replace synapses after the backward pass and before the optimizer
            moves them (the paper's order), rather than after its step.
        restore_strength: k of the restoring force w ← w + k(w₀ − w) after each step; 0 is none.
        unit_turnover_utility: which units are replaced: "contribution" (lowest mean |h|·Σ|w_out|,
            `unit_turnover_rate` per mature unit and step) or "dormant" (mean |h| at most
            `unit_turnover_threshold` times the layer's mean).
        unit_turnover_rate, unit_turnover_threshold: see `unit_turnover_utility`.
        unit_turnover_maturity: steps for which a unit is left alone, after the start and when it
            is new.
        crystal_floor: smallest factor that crystallization can reach.
        crystallize_every, rejuvenate_every, volume_dependent_every, unit_turnover_every: optimizer
            steps between applications by `GradScheduler`; 0 turns the rule off.
        overrides: {"glob over layer names": {field: value}} for single layers; later globs win.
        include, exclude: globs over layer names that may / must not carry plasticity; one string is
            one glob.
        outputs: globs over the names of the output layers, which are then believed. Not needed
            where the model is transformed with example inputs, which show them.

    Raises:
        ConfigError: a field is out of range, of the wrong type, or unknown.
    """

    weight_splitting_activation_function: Callable[[Any], Any] | str = "identity"
    fuzzy_learning_rate_factor_nu: float = 0.16
    dampening_factor: float = 0.6
    crystal_thresh: float = 4.5e-05
    rejuvenation_parameter_dre: float = 8.0
    weight_splitting_Gamma: int = 0
    apply_dales_principle: bool = False
    base_lr: float = 0.1
    stability_factor: float = 2.0
    lr_variability: float = 0.2

    fuzzy_lr_distribution: Distribution | str = Distribution.UNIFORM
    fuzzy_lr_min: float = 0.5
    fuzzy_lr_max: float = 2.0
    fuzzy_lr_dynamic: bool = False
    fuzzy_lr_decay: float = 0.9995
    fuzzy_lr_update_freq: int = 100
    fuzzy_lr_layer_index: int = -1
    fuzzy_lr_total_layers: int = -1

    weight_splitting_mode: Literal["group", "expand"] = "group"
    dale_axis: Literal["pre", "post"] = "pre"
    dale_initialisation: Literal["mirrored", "signs"] = "mirrored"
    rejuvenate_law: Literal["uniform", "lognormal", "initial"] = "uniform"
    rejuvenate_choose: Literal["paper", "random", "weak"] = "paper"
    rejuvenate_max_share: float = 1.0
    rejuvenate_before_step: bool = False
    crystal_floor: float = 0.0
    crystallize_every: int = 0
    rejuvenate_every: int = 0
    volume_dependent_every: int = 0
    restore_strength: float = 0.0
    unit_turnover_every: int = 0
    unit_turnover_utility: Literal["contribution", "dormant"] = "contribution"
    unit_turnover_rate: float = 1e-4
    unit_turnover_threshold: float = 0.1
    unit_turnover_maturity: int = 100

    # Not hashed, as mappings cannot be; equal configurations have equal hashes all the same.
    overrides: Mapping[str, Mapping[str, Any]] = field(default_factory=dict, hash=False)
    include: Sequence[str] = ("*",)
    exclude: Sequence[str] = ()
    outputs: Sequence[str] = ()

    def __post_init__(self) -> None:
        try:
            distribution = Distribution(self.fuzzy_lr_distribution)
        except ValueError:
            names = ", ".join(Distribution)
            raise ConfigError(
                f"fuzzy_lr_distribution={self.fuzzy_lr_distribution!r} is not one of {names}"
                + nearest(str(self.fuzzy_lr_distribution), list(Distribution))
            ) from None
        object.__setattr__(self, "fuzzy_lr_distribution", distribution)
        for name, allowed in MODES.items():
            if getattr(self, name) not in allowed:
                raise ConfigError(f"{name}={getattr(self, name)!r} is not one of {allowed}")
        for name in (*RANGES, *COUNTS):
            object.__setattr__(self, name, number_of(getattr(self, name)))
        for name in RANGES:
            check_range(name, getattr(self, name))
        for name, lowest in COUNTS.items():
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < lowest:
                negative = isinstance(value, int) and value < lowest == 0
                raise ConfigError(
                    (f"{name} cannot be negative: " if negative else "")
                    + f"{name}={value!r} must be a whole number of at least {lowest}"
                )
        for name in FLAGS:
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"{name}={getattr(self, name)!r} must be True or False")
        check_function(self.weight_splitting_activation_function)
        for name in ("include", "exclude", "outputs"):
            globs = getattr(self, name)
            if isinstance(globs, Iterable):
                globs = (globs,) if isinstance(globs, str) else tuple(globs)
            if not (isinstance(globs, tuple) and all(isinstance(glob, str) for glob in globs)):
                raise ConfigError(f"{name}={globs!r} must hold globs over layer names (strings)")
            object.__setattr__(self, name, globs)
        if not isinstance(self.overrides, Mapping):
            raise ConfigError('overrides must map globs to fields: {"features.*": {"…": …}}')
        for glob, fields in self.overrides.items():
            if not isinstance(glob, str):
                raise ConfigError(f"overrides has the key {glob!r}, which is no glob (a string)")
            if not isinstance(fields, Mapping):
                raise ConfigError(f'overrides["{glob}"]={fields!r} must map field names to values')
            nested = [name for name in MODEL_WIDE if name in fields]
            if nested:
                raise ConfigError(f'overrides["{glob}"] cannot set {nested[0]}: it is model-wide')
            try:
                dataclasses.replace(self, overrides={}, **_known(fields))
            except ConfigError as error:
                raise ConfigError(f'overrides["{glob}"]: {error}') from None
        own = {glob: dict(fields) for glob, fields in self.overrides.items()}
        object.__setattr__(self, "overrides", own)

    def __repr__(self) -> str:
        """As it could be written: without the fields that have their defaults."""
        fields = ", ".join(f"{name}={value!r}" for name, value in self.to_dict().items())
        return f"{type(self).__name__}({fields})"

    @classmethod
    def paper(cls, **changes: Any) -> Self:
        """The settings of Hofmann et al. 2025: ν = .09, d = 14, Γ = 2, rejuvenation at every batch.

        Synapses are replaced after the backward pass and before the optimizer's step, as there.
        (The paper trained with plain SGD. Under Adam, and with changing tasks, its rejuvenation
        does harm: see the cards of the rules.)

        Args:
            changes: other values for some fields.
        """
        fields: dict[str, Any] = {
            "fuzzy_learning_rate_factor_nu": 0.09,
            "rejuvenation_parameter_dre": 14.0,
            "rejuvenate_every": 1,
            "rejuvenate_before_step": True,
            "weight_splitting_Gamma": 2,
        }
        return cls(**{**fields, **_known(changes)})

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields changed.

        Raises:
            ConfigError: an unknown field (the nearest name is suggested) or a bad value.
        """
        return dataclasses.replace(self, **changes)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Self:
        """A configuration from plain field names and values.

        Raises:
            ConfigError: an unknown field (the nearest name is suggested) or a bad value.
        """
        return cls(**_known(fields))

    @classmethod
    def from_toml(cls, path: str | Path) -> Self:
        """Read a TOML file whose top-level keys are field names; `[overrides."glob"]` are tables.

        Raises:
            ConfigError: the file cannot be read, is not TOML, or holds an unknown or bad field.
        """
        if not isinstance(path, str | Path):
            raise ConfigError(f"expected the path of a TOML file, got {type(path).__name__}")
        try:
            text = Path(path).read_text(encoding="utf-8")
            fields = tomllib.loads(text)
        except (OSError, UnicodeDecodeError) as error:
            why = getattr(error, "strerror", None) or error
            raise ConfigError(f"cannot read the configuration {path}: {why}") from error
        except tomllib.TOMLDecodeError as error:
            raise ConfigError(f"{path} is not valid TOML: {error}") from error
        except RecursionError:
            raise ConfigError(f"{path} is nested too deeply") from None
        try:
            return cls.from_dict(fields)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from error

    def for_layer(self, name: str) -> Self:
        """The effective configuration of one layer: its overrides applied, in their order."""
        changes: dict[str, Any] = {}
        for glob, fields in self.overrides.items():
            if fnmatchcase(name, glob):
                changes.update(fields)
        return dataclasses.replace(self, **changes) if changes else self

    def selects(self, name: str) -> bool:
        """Whether `include` and `exclude` leave this layer in."""
        chosen = any(fnmatchcase(name, glob) for glob in self.include)
        return chosen and not any(fnmatchcase(name, glob) for glob in self.exclude)

    def to_dict(self) -> dict[str, Any]:
        """Fields that differ from their defaults, as plain JSON-able values (φ by its name)."""
        changed: dict[str, Any] = {}
        for spec in dataclasses.fields(self):
            value = getattr(self, spec.name)
            factory = spec.default_factory
            default = spec.default if factory is dataclasses.MISSING else factory()
            if value != default:
                changed[spec.name] = plain(value)
        return changed


def _known(fields: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(fields, Mapping):
        raise ConfigError(f"expected field names and values, got {type(fields).__name__}")
    known = [spec.name for spec in dataclasses.fields(BioConfig)]
    for name in fields:
        if name not in known:
            raise ConfigError(f"BioConfig has no field {name!r}{nearest(str(name), known)}")
    return dict(fields)


BioConfig._fields = tuple(spec.name for spec in dataclasses.fields(BioConfig))
BioConfig._field_defaults = dict(zip(BioConfig._fields, BioConfig(), strict=True))
