"""What a run tells while it works: one small noun, sent to whoever listens (a live display, a log, a notebook: `listen=print`)."""

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

    def __str__(self) -> str:
        """One event as one line."""
        text = f"{self.phase}: {self.text}"
        if self.phase != "search":
            return text + (f" ({self.done}/{self.total})" if self.total else "")
        text += f" generation {self.done}" + (f"/{self.total}" if self.total else "")
        if self.watch is not None:
            text += f" · incumbent {self.watch:.4f}"
        if self.gain is not None:
            text += f" · gain over uniform {self.gain:+.4f}"
        rate = self.evaluations / self.seconds if self.seconds else 0.0
        text += f" · {self.evaluations:,} evaluations ({rate:.1f}/s"
        text += f", {self.cached:,} from the store)" if self.cached else ")"
        text += f" · {self.tokens:,} tokens"
        return text + (f" · ETA {duration(self.eta_seconds)}" if self.eta_seconds is not None else "")


def duration(seconds: float) -> str:
    """`1h05m`, `3m20s` or `12s`."""
    whole = round(seconds)
    hours, minutes = whole // 3600, whole % 3600 // 60
    if hours:
        return f"{hours}h{minutes:02}m"
    return f"{minutes}m{whole % 60:02}s" if minutes else f"{whole}s"


Listener = Callable[[Progress], None]


def silent(_: Progress) -> None:
    """A listener that does nothing."""
