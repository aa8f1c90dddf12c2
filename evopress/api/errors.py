"""Every error evopress raises on purpose, with the exit code the command line gives it.

A message names the subject, the rule, what came, what is allowed and the next step. Called by everyone; imports nothing.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class EvopressError(Exception):
    """Base of all deliberate errors. `exit_code` is what the command line returns; `hint` is the next step."""

    exit_code = 1
    code = "error"

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message if not hint else f"{message} {hint}")
        self.message = message
        self.hint = hint


class UsageError(EvopressError):
    """The request itself is wrong: an unknown name, a malformed option, a damaged input file."""

    exit_code = 2
    code = "usage"


class InfeasibleBudget(EvopressError):
    """No profile of the space meets every budget, or the space reaches too little of the model."""

    exit_code = 3
    code = "infeasible"


class MissingDependency(EvopressError):
    """An optional package or plugin is not installed; the message names the extra that brings it."""

    exit_code = 4
    code = "missing-dependency"


class NotFound(EvopressError):
    """A study, profile, file or folder that was named does not exist."""

    exit_code = 5
    code = "not-found"


class QualityGateFailed(EvopressError):
    """The result is worse than asked for: the winner does not beat uniform, or a claim does not hold."""

    exit_code = 6
    code = "quality-gate"


class StorageError(EvopressError):
    """The bank or the store cannot be read or written: damaged, newer than this program, read-only, or full."""

    exit_code = 1
    code = "storage"


class NumericalError(EvopressError):
    """A fitness became NaN or infinite, or the all-dense profile does not score zero divergence."""

    exit_code = 1
    code = "numerical"


class Stopped(EvopressError):
    """The run stopped before its end and can be resumed by the same command."""

    exit_code = 75
    code = "stopped"


def unknown(kind: str, name: str, known: Iterable[str], where: str = "") -> UsageError:
    """Build the error for a name that is not among `known`, with the closest match and the full list."""
    choices = sorted(known)
    close = difflib.get_close_matches(name, choices, n=1)
    place = f" in {where}" if where else ""
    guess = f"Did you mean {close[0]!r}? " if close else ""
    listing = ", ".join(choices) if choices else "nothing"
    return UsageError(f"Unknown {kind} {name!r}{place}.", f"{guess}Known: {listing}.")
