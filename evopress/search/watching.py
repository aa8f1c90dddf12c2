"""Shows every question of a generator, with its answer, to somebody who learns from it. Called by `guided` and `champion`."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import TypeVar

from evopress.api import Ask, Trial

T = TypeVar("T")


def watched(steps: Generator[Ask, Sequence[Trial], T], see: Callable[[Ask, Sequence[Trial]], None]) -> Generator[Ask, Sequence[Trial], T]:
    """As `steps`, which is handed each answer after `see`."""
    try:
        ask = next(steps)
        while True:
            trials = yield ask
            see(ask, trials)
            ask = steps.send(trials)
    except StopIteration as done:
        found: T = done.value
        return found
