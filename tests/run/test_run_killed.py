"""kill -9 at ten random moments, each followed by the same command, ends in the trials and the winner of an uninterrupted run.

A guided search is killed too: in a space of levels, and in one of drops, where it goes another way.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import tiny_study
from fork_server import Forks, Report
from tiny_study import Contents, Tiny, Whole

KILLS = (("text", 1), ("bank", 2), ("search", 4), ("heldout", 2), ("speed", 1))
"""How many of the ten kills fall in which phase, in the order of a run."""
Moment = Callable[[Report], bool]
"""Whether a report is the one after which to kill."""


def moments(rng: random.Random) -> list[Moment]:
    """Early phases first: a phase that is done is not announced again."""
    most = {"text": 2, "bank": 12, "search": 25, "heldout": 6, "speed": 1}
    return [event(phase, rng.randint(1, most[phase])) for phase, kills in KILLS for _ in range(kills)]


def event(phase: str, number: int) -> Moment:
    """The so-many-th event of a phase."""
    seen = count(1)
    return lambda report: report.get("event", {}).get("phase") == phase and next(seen) == number


PREDICTOR = "predictor(rounds=4,batch=6,startup=6,virtual=32,tokens=64,looks=2x64|1x160)"
GUIDED = "guided(slope_tokens=64,looks=4x64|1x160,local_looks=4x64|1x160,start_tokens=64,probe_tokens=32,rounds=5)"


def test_ten_kills_leave_what_an_uninterrupted_run_leaves(tiny: Tiny, whole: Whole, forks: Forks, storage_url: str, tmp_path: Path) -> None:
    rng = random.Random(storage_url.partition(":")[0])
    request = {"study": tiny_study.values(tiny), "storage": storage_url, "home": str(tmp_path / "home"), "speed": True}
    taken = Counter[str]()
    for moment in moments(rng):
        taken += kill(forks, request, moment, rng.uniform(0, 0.01))
    taken += finish(forks, request)
    compare(storage_url, whole.contents, taken, 10)


def test_kills_of_a_guided_search_cost_at_most_one_evaluation_each(tiny: Tiny, forks: Forks, storage_url: str, tmp_path: Path) -> None:
    study = {"searcher": GUIDED, "baselines": ("uniform",)}
    run = tiny_study.run(tiny, tmp_path / "whole", **study)
    assert run.outcome.totals.generation == 5
    whole = tiny_study.contents(tiny_study.url(tmp_path / "whole"))
    rng = random.Random(storage_url.partition(":")[0])
    request = {"study": tiny_study.values(tiny, **study), "storage": storage_url, "home": str(tmp_path / "home")}
    taken = Counter[str]()
    for number in (1, 2, 4, 7):
        taken += kill(forks, request, event("search", number), rng.uniform(0, 0.01))
    taken += finish(forks, request)
    compare(storage_url, whole, taken, 4)


@pytest.mark.parametrize("searcher", [GUIDED, PREDICTOR])
def test_a_search_that_started_from_an_earlier_one_goes_on_from_the_same(tiny: Tiny, forks: Forks, tmp_path: Path, searcher: str) -> None:
    """What it measured before the kill is not taken for what an earlier search left."""
    later = {"name": "later", "searcher": searcher, "budgets": ("bits=3.4",), "baselines": ("uniform",)}
    first = {"searcher": searcher, "baselines": ("uniform",)}
    for home in ("whole", "home"):
        tiny_study.run(tiny, tmp_path / home, **first)
    known = tiny_study.run(tiny, tmp_path / "whole", **later).known
    assert list(known) == ["known_slopes" if searcher == GUIDED else "known_trials"]
    home = tmp_path / "home"
    request = {"study": tiny_study.values(tiny, **later), "storage": tiny_study.url(home), "home": str(home)}
    for number in (1, 3):
        kill(forks, request, event("search", number))
    finish(forks, request)
    found, whole = (tiny_study.contents(tiny_study.url(tmp_path / name)) for name in ("home", "whole"))
    assert found.trials == whole.trials
    assert found.steps == whole.steps
    assert found.results == whole.results


def test_a_guided_search_of_drops_goes_on_from_its_descent_and_from_a_screened_round(tiny: Tiny, forks: Forks, tmp_path: Path) -> None:
    """Both kills fall between an evaluation and its storing: it is taken once more, and nothing else is."""
    study = {"searcher": GUIDED, "methods": ("drop(kinds=attention|mlp)",), "budgets": ("params=0.4x",), "baselines": ("uniform",)}
    tiny_study.run(tiny, tmp_path / "whole", **study)
    whole = tiny_study.contents(tiny_study.url(tmp_path / "whole"))
    questions = asked(whole)
    screened = next(number for number, (generation, _) in enumerate(questions) if generation)
    descent, rounds = questions[: screened - 2], questions[screened:]  # between them the starts are ranked and all drops probed
    # Four depths alone; the dense profile; a step for each of the three depths that go.
    assert [len(keys) for _, keys in descent] == [1 + 4, 1, 4, 3, 2]
    assert rounds[-1][0] == 5
    home = tmp_path / "home"
    request = {"study": tiny_study.values(tiny, **study), "storage": tiny_study.url(home), "home": str(home)}
    taken = Counter[str]()
    for _, keys in (descent[2], rounds[2]):
        halt = keys[len(keys) // 2]
        assert halt not in taken
        taken += kill(forks, {**request, "halt": halt}, lambda report, halt=halt: report.get("taken") == halt)
    taken += finish(forks, request)
    compare(request["storage"], whole, taken, 2)
    assert sum(taken.values()) - len(taken) == 2


def kill(forks: Forks, request: dict[str, Any], moment: Moment, pause_seconds: float = 0.0) -> Counter[str]:
    """Start a run and kill it so long after a moment; how often each key was taken."""
    pid = forks.start(**request)
    reports: list[Report] = []
    while not reports or not moment(reports[-1]):
        reports.append(forks.report(pid))
        assert "exit" not in reports[-1], f"the run ended before its moment came: {reports[-1]}"
    time.sleep(pause_seconds)
    os.kill(pid, signal.SIGKILL)
    ended = forks.finish(pid)
    assert ended[-1] == {"exit": -signal.SIGKILL}
    return keys_of([*reports, *ended])


def finish(forks: Forks, request: dict[str, Any]) -> Counter[str]:
    """Run to the end; how often each key was taken."""
    ended = forks.finish(forks.start(**request))
    assert ended[-1] == {"exit": 0}
    return keys_of(ended)


def keys_of(reports: list[Report]) -> Counter[str]:
    """How often each key was taken."""
    return Counter(report["taken"] for report in reports if "taken" in report)


def asked(contents: Contents) -> list[tuple[int, list[str]]]:
    """The questions of the one search of a store, in their order: (generation, key of each profile)."""
    found: dict[int, tuple[int, list[str]]] = {}
    for (_, ordinal, _), (generation, _, key) in sorted(contents.steps.items()):
        found.setdefault(ordinal, (generation, []))[1].append(key)
    return list(found.values())


def compare(storage: str, whole: Contents, taken: Counter[str], kills: int) -> None:
    """The store holds what an uninterrupted run leaves, and no kill cost more than the evaluation it fell into."""
    found = tiny_study.contents(storage)
    assert found.trials == whole.trials
    assert found.steps == whole.steps
    assert found.results == whole.results
    assert found.claims == 0
    assert taken.keys() == found.trials.keys()
    assert sum(taken.values()) - len(taken) <= kills
