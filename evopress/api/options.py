"""Checks of method options, with errors that name the allowed range. Called from `__post_init__` of methods; no torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from evopress.api.errors import UsageError, unknown
from evopress.api.level import Level, show
from evopress.api.plugins import Method
from evopress.api.site import Site


def as_tuple(value: object) -> tuple[Any, ...]:
    """One value or a sequence of values, as a tuple without repetitions, in the order given."""
    many = value if isinstance(value, tuple | list) else (value,)
    return tuple(dict.fromkeys(many))


def check_int(method: str, option: str, value: object, low: int, high: int | None = None, also: Sequence[int] = ()) -> int:
    """`value` if it is a whole number in [low, high] or one of `also`. Raises UsageError."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    if whole and (value in also or (low <= value and (high is None or value <= high))):  # type: ignore[operator]
        return int(value)  # type: ignore[call-overload, no-any-return]
    span = f"a whole number from {low} to {high}" if high is not None else f"a whole number of at least {low}"
    extra = "".join(f", or {item}" for item in also)
    raise _refused(method, option, value, f"{span}{extra}")


def check_share(method: str, option: str, value: object, low: float = 0.0, high: float = 1.0) -> float:
    """`value` if it is a number strictly between `low` and `high`. Raises UsageError."""
    if isinstance(value, int | float) and not isinstance(value, bool) and low < value < high:
        return float(value)
    raise _refused(method, option, value, f"a number above {low:g} and below {high:g}")


def check_flag(method: str, option: str, value: object) -> bool:
    """`value` if it is true or false. Raises UsageError."""
    if isinstance(value, bool):
        return value
    raise _refused(method, option, value, "true or false")


def _refused(method: str, option: str, value: object, allowed: str) -> UsageError:
    shown = show(value) if isinstance(value, bool) else value
    return UsageError(f"Option {option}={shown} of method {method!r} is not allowed.", f"Give {allowed}.")


def check_offered(method: Method, site: Site, levels: Sequence[Level]) -> None:
    """Raise UsageError for a level that the method, as configured, does not offer at the site."""
    offered = set(method.levels(site))
    for level in levels:
        if level not in offered:
            raise unknown("level", str(level), map(str, offered), f"method {method.name!r} at {site.name!r}")
