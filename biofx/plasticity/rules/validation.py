"""Checks of what rules are given."""

from typing import Any

from biofx.errors import PlasticityError
from biofx.fields import number_of


def require(condition: bool, rule: str, message: str) -> None:
    """Refuse what a rule cannot do.

    Raises:
        PlasticityError: the condition does not hold.
    """
    if not condition:
        raise PlasticityError(f"{rule}: {message}")


def within(interval: str, rule: str, **values: Any) -> None:
    """Refuse hyperparameters outside an interval, written as in mathematics: ``"(0, 1]"``.

    Raises:
        PlasticityError: one is not a number, or lies outside.
    """
    low, high = (float(end) for end in interval[1:-1].split(","))
    for name, value in values.items():
        plain = number_of(value)
        number = isinstance(plain, int | float) and not isinstance(plain, bool)
        if not (
            number
            and (low < value or (low == value and interval[0] == "["))
            and (value < high or (value == high and interval[-1] == "]"))
        ):
            raise PlasticityError(f"{rule}: {name}={value!r} must be a number in {interval}")


def whole(rule: str, lowest: int, **values: Any) -> None:
    """Refuse what is no whole number, or a smaller one.

    Raises:
        PlasticityError: one is.
    """
    for name, value in values.items():
        plain = number_of(value)
        number = isinstance(plain, int) and not isinstance(plain, bool)
        if not (number and plain >= lowest):
            raise PlasticityError(
                f"{rule}: {name}={value!r} must be a whole number of at least {lowest}"
            )
