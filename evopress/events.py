"""What a run tells while it works: one small noun, sent to whoever listens (a live display, a log, a notebook)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Progress:
    """phase: plan, model, text, bank, search, heldout or speed. done of total: units of that phase (total 0: unknown).

    watch: fitness of the incumbent on a few fixed documents, which steer nothing; gain: how far it lies below uniform's on the same ones
    (both None outside a search, and watched only every few generations). It is neither the best fitness seen nor that of the last rung.
    evaluations, tokens, seconds: spent by the search so far. eta_seconds: what is left, by the tightest stop. cached: evaluations that were
    read from the store.
    """

    phase: str
    text: str
    done: int = 0
    total: int = 0
    watch: float | None = None
    gain: float | None = None
    evaluations: int = 0
    tokens: int = 0
    seconds: float = 0.0
    eta_seconds: float | None = None
    cached: int = 0


Listener = Callable[[Progress], None]


def silent(_: Progress) -> None:
    """A listener that does nothing."""
