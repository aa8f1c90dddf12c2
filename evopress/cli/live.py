"""Live progress of a run: a status line that is redrawn on a terminal, plain lines elsewhere. Always on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from evopress.events import Listener, Progress

PLAIN_SECONDS = 10.0
"""Plain lines come at most this often within one phase."""


@contextmanager
def listening(name: str) -> Iterator[Listener]:
    """A listener for the length of a run: redrawn on a terminal, plain lines where stderr is a file or a pipe."""
    if not sys.stderr.isatty():
        yield plain(lambda text: print(f"[{name}] {text}", file=sys.stderr, flush=True), time.monotonic)
        return
    from rich.console import Console
    from rich.markup import escape

    with Console(stderr=True).status(f"{name}: starting") as status:
        yield lambda event: status.update(escape(f"{name} · {event!s}"))


def plain(write: Callable[[str], None], clock: Callable[[], float]) -> Listener:
    """A listener that writes the first event of each phase and text, the last of a phase, and one every ten seconds between."""
    last: dict[str, float | str] = {"phase": "", "text": "", "at": float("-inf")}

    def listen(event: Progress) -> None:
        now = clock()
        counted = bool(event.total) or event.phase == "search"
        fresh = event.phase != last["phase"] or (not counted and event.text != last["text"])
        if fresh or (event.total and event.done == event.total) or now - float(last["at"]) >= PLAIN_SECONDS:
            write(str(event))
            last.update(phase=event.phase, text=event.text, at=now)

    return listen
