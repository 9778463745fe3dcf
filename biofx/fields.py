"""The fields of a configuration: their ranges, and what a value must be."""

import difflib
import numbers
import warnings
from collections.abc import Callable, Iterator, Mapping
from enum import StrEnum
from typing import Any, ClassVar

from biofx.errors import ConfigError

MODES = {
    "weight_splitting_mode": ("group", "expand"),
    "dale_axis": ("pre", "post"),
    "dale_initialisation": ("mirrored", "signs"),
    "rejuvenate_law": ("uniform", "lognormal", "initial"),
    "rejuvenate_choose": ("paper", "random", "weak"),
    "unit_turnover_utility": ("contribution", "dormant"),
}

# (lowest, lowest allowed?, highest, highest allowed?)
RANGES: dict[str, tuple[float, bool, float, bool]] = {
    "fuzzy_learning_rate_factor_nu": (0.0, True, float("inf"), False),
    "dampening_factor": (0.0, False, 1.0, True),
    "crystal_thresh": (0.0, True, float("inf"), False),
    "crystal_floor": (0.0, True, 1.0, True),
    "rejuvenation_parameter_dre": (0.0, False, float("inf"), False),
    "rejuvenate_max_share": (0.0, False, 1.0, True),
    "base_lr": (0.0, False, 1.0, True),
    "stability_factor": (0.0, True, float("inf"), False),
    "lr_variability": (0.0, True, float("inf"), False),
    "fuzzy_lr_min": (0.0, True, 1.0, True),
    "fuzzy_lr_max": (1.0, True, float("inf"), False),
    "fuzzy_lr_decay": (0.0, False, 1.0, True),
    "restore_strength": (0.0, True, 1.0, True),
    "unit_turnover_rate": (0.0, False, 1.0, True),
    "unit_turnover_threshold": (0.0, True, 1.0, False),
}

COUNTS = {
    "weight_splitting_Gamma": 0,
    "crystallize_every": 0,
    "rejuvenate_every": 0,
    "volume_dependent_every": 0,
    "unit_turnover_every": 0,
    "unit_turnover_maturity": 0,
    "fuzzy_lr_update_freq": 1,
    "fuzzy_lr_layer_index": -1,
    "fuzzy_lr_total_layers": -1,
}

FLAGS = ("apply_dales_principle", "fuzzy_lr_dynamic", "rejuvenate_before_step")


def number_of(value: Any) -> Any:
    """A number of any library (numpy, say) as Python's own; anything else as it is."""
    if type(value) in (bool, int, float) or not isinstance(value, numbers.Real):
        return value
    return int(value) if isinstance(value, numbers.Integral) else float(value)


def check_range(name: str, value: Any) -> None:
    """Refuse what is no number in the field's range.

    Raises:
        ConfigError: it is none.
    """
    low, low_ok, high, high_ok = RANGES[name]
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if (
        number
        and (low < value or (low_ok and low == value))
        and (value < high or (high_ok and value == high))
    ):
        return
    left, right = "[" if low_ok else "(", "]" if high_ok else ")"
    if high < float("inf"):
        words = f"between {low:g} and {high:g}"
    elif low:
        words = f"at least {low:g}" if low_ok else f"above {low:g}"
    else:
        words = "positive or 0" if low_ok else "positive"
    raise ConfigError(
        f"{name} must be {words}: {name}={value!r} is no number in {left}{low:g}, {high:g}{right}"
    )


def check_function(phi: Any) -> None:
    """Refuse what is no function of one tensor; a callable is taken at its word.

    Raises:
        ConfigError: it is neither callable nor the name of a function that keeps a tensor's shape.
    """
    field = f"weight_splitting_activation_function={phi!r}"
    if callable(phi) or phi == "identity":
        return
    if not isinstance(phi, str):
        raise ConfigError(
            f"{field} must be a callable on tensors or the name of a function in "
            "torch.nn.functional"
        )
    if not _keeps_shape(phi):
        raise ConfigError(
            f"{field} is not a function of torch.nn.functional or torch that takes one tensor and "
            "gives one of its shape, such as 'relu', 'tanh' or 'gelu'"
        )


def _keeps_shape(name: str) -> bool:
    """Whether a function of torch's maps a tensor to one of its shape and type."""
    # Only who names a function pays for torch: `biofx --help` does not.
    import torch
    from torch.overrides import get_overridable_functions

    found = [getattr(owner, name, None) for owner in (torch.nn.functional, torch)]
    known = get_overridable_functions()
    computing = [*known[torch.nn.functional], *known[torch]]
    # Not everything in torch's namespace computes: `load`, `set_num_threads`, `manual_seed`.
    known_ones = [one for one in found if any(one is other for other in computing)]
    if name.startswith("_") or not known_ones:
        return False
    function: Any = known_ones[0]
    given = torch.empty(2, 4, device="meta")
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            result = function(given)
    except Exception:
        return False
    return (
        isinstance(result, torch.Tensor)
        and result.shape == given.shape
        and result.dtype == given.dtype
    )


def plain(value: Any) -> Any:
    """A value as JSON and TOML have them; a function by its name."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return [plain(item) for item in value]
    if isinstance(value, StrEnum):
        return value.value
    value = number_of(value)
    if isinstance(value, str | int | float | bool):
        return value
    return getattr(value, "__name__", None) or repr(value)


def nearest(name: str, known: list[str]) -> str:
    """A suggestion for a name that is not known: what is most like it, or holds it as a word."""
    close = difflib.get_close_matches(name, known, n=1)
    if not close:
        words = {word for one in known for word in one.lower().split("_")}
        word = difflib.get_close_matches(name.lower(), words, n=1, cutoff=0.8)
        holding = [one for one in known if word and word[0] in one.lower().split("_")]
        close = holding if len(holding) == 1 else []
    return f"; did you mean {str(close[0])!r}?" if close else ""


class TupleLike:
    """What a named tuple has, for a frozen dataclass: `bio_transformations`' configuration is one.

    Fields stand in their order, the first eighteen as there.
    """

    _fields: ClassVar[tuple[str, ...]]
    _field_defaults: ClassVar[Mapping[str, Any]]
    replace: Callable[..., Any]

    def __iter__(self) -> Iterator[Any]:
        return (getattr(self, name) for name in self._fields)

    def __len__(self) -> int:
        return len(self._fields)

    def __getitem__(self, place: Any) -> Any:
        return tuple(self)[place]

    def _asdict(self) -> dict[str, Any]:
        return dict(zip(self._fields, self, strict=True))

    def _replace(self, **changes: Any) -> Any:
        return self.replace(**changes)

    @classmethod
    def _make(cls, values: Any) -> Any:
        return cls(*values)
