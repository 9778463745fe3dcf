"""From options to a `BioConfig`."""

import argparse
import tomllib
from typing import Any

from biofx.cli.errors import UsageError
from biofx.config import BioConfig
from biofx.errors import ConfigError

FIELDS = {
    "gamma": "weight_splitting_Gamma",
    "split": "weight_splitting_mode",
    "nu": "fuzzy_learning_rate_factor_nu",
    "distribution": "fuzzy_lr_distribution",
    "dale": "apply_dales_principle",
    "crystallize_every": "crystallize_every",
    "rejuvenate_every": "rejuvenate_every",
    "rejuvenate_law": "rejuvenate_law",
    "rejuvenate_choose": "rejuvenate_choose",
    "volume_every": "volume_dependent_every",
    "restore": "restore_strength",
    "unit_turnover_every": "unit_turnover_every",
    "unit_turnover_utility": "unit_turnover_utility",
    "include": "include",
    "exclude": "exclude",
    "output_layers": "outputs",
}


def config_of(arguments: argparse.Namespace) -> BioConfig:
    """The configuration that the options ask for.

    Raises:
        ConfigError: the file cannot be read or holds a bad field.
        UsageError: an option's value is bad.
    """
    base = BioConfig.from_toml(arguments.config) if arguments.config else BioConfig()
    if arguments.paper:
        base = BioConfig.paper(**base.to_dict())
    changes: dict[str, Any] = {
        field: getattr(arguments, option)
        for option, field in FIELDS.items()
        if getattr(arguments, option) is not None
    }
    for assignment in arguments.set:
        name, equals, text = assignment.partition("=")
        if not equals or not name.strip():
            raise UsageError(f"--set {assignment}: expected FIELD=VALUE")
        changes[name.strip()] = _value(text.strip())
    try:
        return base.replace(**changes)
    except ConfigError as error:
        raise UsageError(str(error)) from error


def _value(text: str) -> Any:
    """A value written as in TOML; anything else is a string."""
    try:
        parsed = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    except RecursionError:
        raise UsageError("--set: the value is nested too deeply") from None
    return parsed["value"] if set(parsed) == {"value"} else text
