"""kill -9 at ten random moments, each followed by the same command, ends in the trials and the winner of an uninterrupted run."""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tiny_study
from fork_server import Forks
from tiny_study import Contents, Tiny, Whole

KILLS = (("text", 1), ("bank", 2), ("search", 4), ("heldout", 2), ("speed", 1))
"""How many of the ten kills fall in which phase, in the order of a run."""


def moments(rng: random.Random) -> list[tuple[str, int]]:
    """(phase, number of events of that phase after which to kill), early phases first: a phase that is done is not announced again."""
    most = {"text": 2, "bank": 12, "search": 25, "heldout": 6, "speed": 1}
    return [(phase, rng.randint(1, most[phase])) for phase, count in KILLS for _ in range(count)]


GUIDED = "guided(slope_tokens=64,looks=4x64|1x160,local_looks=4x64|1x160,start_tokens=64,probe_tokens=32,rounds=5)"


def test_ten_kills_leave_what_an_uninterrupted_run_leaves(tiny: Tiny, whole: Whole, forks: Forks, storage_url: str, tmp_path: Path) -> None:
    rng = random.Random(storage_url.partition(":")[0])
    request = {"study": tiny_study.values(tiny), "storage": storage_url, "home": str(tmp_path / "home"), "speed": True}
    taken = killed(forks, request, moments(rng), rng)
    compare(storage_url, whole.contents, taken, 10)


def test_kills_of_a_guided_search_cost_at_most_one_evaluation_each(tiny: Tiny, forks: Forks, storage_url: str, tmp_path: Path) -> None:
    study = {"searcher": GUIDED, "baselines": ("uniform",)}
    run = tiny_study.run(tiny, tmp_path / "whole", **study)
    assert run.outcome.totals.generation == 5
    whole = tiny_study.contents(tiny_study.url(tmp_path / "whole"))
    rng = random.Random(storage_url.partition(":")[0])
    request = {"study": tiny_study.values(tiny, **study), "storage": storage_url, "home": str(tmp_path / "home")}
    taken = killed(forks, request, [("search", number) for number in (1, 2, 4, 7)], rng)
    compare(storage_url, whole, taken, 4)


def killed(forks: Forks, request: dict[str, Any], at: Sequence[tuple[str, int]], rng: random.Random) -> Counter[str]:
    """Run a study, killing it at each moment, then to its end; how often each key was taken."""
    taken: Counter[str] = Counter()
    for phase, number in at:
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
    del taken[""]
    return taken


def compare(storage: str, whole: Contents, taken: Counter[str], kills: int) -> None:
    """The store holds what an uninterrupted run leaves, and no kill cost more than the evaluation it fell into."""
    found = tiny_study.contents(storage)
    assert found.trials == whole.trials
    assert found.steps == whole.steps
    assert found.results == whole.results
    assert found.claims == 0
    assert taken.keys() == found.trials.keys()
    assert sum(taken.values()) - len(taken) <= kills
