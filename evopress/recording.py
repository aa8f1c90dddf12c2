"""One execution as a row of the store: begun, kept alive by heartbeats, and ended as finished, stopped, interrupted or failed.

Runs nothing itself. Called by the two composition roots, `evopress.run` and `evopress.contest`, around what they do.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any

from evopress.api import Stopped
from evopress.provenance import commit
from evopress.workbench import Workbench


class Interrupted(Stopped):
    """Stopped by Ctrl-C after a clean checkpoint."""

    exit_code = 130
    code = "interrupted"


@contextmanager
def recorded(
    bench: Workbench, name: str, definition: Mapping[str, Any], digest: str, environment: Mapping[str, Any], command: str, resume: str
) -> Iterator[int]:
    """Keep a run row around the work, and heartbeats while it lasts; yields the id of the study.

    name, definition, digest: of the study in the store. environment: kept beside the machine's. resume: the command that goes on after
    Ctrl-C. Raises Interrupted on Ctrl-C and Stopped on SIGTERM, and whatever the work raises.
    """
    from evopress.latency.clock import fingerprint

    store = bench.store
    _ = bench.model_id  # the model first: a study is kept only where it can be measured
    study_id = store.study(name, definition, digest).id
    bench.run_id = store.start_run(
        study_id,
        seed=bench.plan.study.seed,
        command=command,
        environment={**fingerprint(bench.device), **environment},
        code_version=commit(),
        owner=bench.owner,
    )
    try:
        with _sigterm_raises(), store.heartbeating(bench.owner):
            yield study_id
    except KeyboardInterrupt:
        store.finish_run(bench.run_id, "interrupted", stop_reason="Ctrl-C")
        raise Interrupted(f"Interrupted. Everything measured so far is stored in study {name!r}.", f"Resume: {resume}") from None
    except Stopped as stopped:
        store.finish_run(bench.run_id, "stopped", stop_reason=stopped.message)
        raise
    except Exception as error:
        store.finish_run(bench.run_id, "failed", error=f"{type(error).__name__}: {error}")
        raise
    store.finish_run(bench.run_id, "finished")


@contextmanager
def _sigterm_raises() -> Iterator[None]:
    def stop(_: int, __: FrameType | None) -> None:
        raise Stopped("Stopped by SIGTERM. Everything measured so far is stored.", "Run the same command again to resume.")

    # Signals belong to the main thread; a notebook server may call from another, where SIGTERM keeps its default.
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
