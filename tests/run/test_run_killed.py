"""kill -9 at ten random moments, each followed by the same command, ends in the trials and the winner of an uninterrupted run."""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from pathlib import Path

import tiny_study
from fork_server import Forks
from tiny_study import Tiny, Whole

KILLS = (("text", 1), ("bank", 2), ("search", 4), ("heldout", 2), ("speed", 1))
"""How many of the ten kills fall in which phase, in the order of a run."""


def moments(rng: random.Random) -> list[tuple[str, int]]:
    """(phase, number of events of that phase after which to kill), early phases first: a phase that is done is not announced again."""
    most = {"text": 2, "bank": 12, "search": 25, "heldout": 6, "speed": 1}
    return [(phase, rng.randint(1, most[phase])) for phase, count in KILLS for _ in range(count)]


def test_ten_kills_leave_what_an_uninterrupted_run_leaves(tiny: Tiny, whole: Whole, forks: Forks, storage_url: str, tmp_path: Path) -> None:
    rng = random.Random(storage_url.partition(":")[0])
    request = {"study": tiny_study.values(tiny), "storage": storage_url, "home": str(tmp_path / "home"), "speed": True}
    taken: Counter[str] = Counter()
    for phase, number in moments(rng):
        pid = forks.start(**request)
        left = number
        while left:
            report = forks.report(pid)
            assert "exit" not in report, f"the run ended before event {number} of phase {phase}: {report}"
            taken[report.get("taken", "")] += 1
            left -= report.get("event", {}).get("phase") == phase
        time.sleep(rng.uniform(0, 0.01))
        os.kill(pid, signal.SIGKILL)
        ended = forks.finish(pid)
        assert ended[-1] == {"exit": -signal.SIGKILL}
        taken.update(report.get("taken", "") for report in ended)
    ended = forks.finish(forks.start(**request))
    assert ended[-1] == {"exit": 0}
    taken.update(report.get("taken", "") for report in ended)

    found = tiny_study.contents(storage_url)
    assert found.trials == whole.contents.trials
    assert found.steps == whole.contents.steps
    assert found.results == whole.contents.results
    assert found.claims == 0
    del taken[""]
    assert taken.keys() == found.trials.keys()
    # A kill can cost at most the one evaluation it fell into.
    assert sum(taken.values()) - len(taken) <= 10
