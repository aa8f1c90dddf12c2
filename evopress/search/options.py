"""Checks of the options that searchers have in common: a count, a share, a number above 0.

What only one part of a search has is checked there: the stages of a tournament in `selection`, the looks of a race in `racing`. Called by
every searcher that measures, and by the parts that they share.
"""

from __future__ import annotations

from evopress.api import UsageError


def check_count(name: str, value: int, least: int = 1) -> int:
    """Validate an integer option. Raises UsageError."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UsageError(f"Option {name}={value!r} is not an integer of at least {least}.", f"Write e.g. {name}={max(least, 1)}.")
    return value


def check_share(name: str, value: float) -> float:
    """Validate an option from 0 up to, not including, 1. Raises UsageError."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
        raise UsageError(f"Option {name}={value!r} is not a share.", "Write a number of at least 0 and below 1.")
    return float(value)


def check_positive(name: str, value: float) -> float:
    """Validate an option above 0. Raises UsageError."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
        raise UsageError(f"Option {name}={value!r} is not a number above 0.", f"Write e.g. {name}=1.0.")
    return float(value)
