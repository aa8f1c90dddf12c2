"""Searching on under a tighter limit where the answer takes longer than the table says: the arithmetic, and a run with planted timings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_study
import tiny_times
from tiny_study import Tiny

from evopress.api import Budget, Cost, Level, Profile, Site, Space
from evopress.events import Progress
from evopress.run import execute
from evopress.search.loop import Outcome, Totals
from evopress.store import LatencyRow
from evopress.tightening import joined, overtime, tighter

DENSE = Level("dense")
SPACE = Space((Site("a", "linear", (2, 2), 0, None),), ((DENSE,),), ((Cost(8, 4, 900),),), Cost(0, 0, 100))


def test_a_share_is_of_the_measured_dense_model_and_a_time_is_a_time() -> None:
    share, time = Budget("latency=0.8x,prefill", "nanoseconds", 800), Budget("latency=800ns", "nanoseconds", 800)
    size = Budget("size=1x", "bytes", 8)
    assert overtime((share, size), SPACE, 2e-6, 1.6e-6) == pytest.approx(1.0)
    assert overtime((time, size), SPACE, 2e-6, 1.6e-6) == pytest.approx(2.0)
    assert overtime((share, time), SPACE, 2e-6, 1.6e-6) == pytest.approx(2.0)
    assert overtime((size,), SPACE, 2e-6, 1.0) == 0
    assert tighter((share, size), 1.25) == (Budget("latency=0.8x,prefill", "nanoseconds", 633), size)


def test_what_both_searches_took_is_told() -> None:
    one = Outcome(Profile.of({"a": DENSE}), "tokens", Totals(2, 10, 100, 1.5, 4, 2.0, 0.5))
    other = Outcome(Profile.of({"a": Level("drop")}), "finished", Totals(1, 5, 50, 0.5, 1, 1.0, 0.25))
    both = joined(one, other)
    assert (both.best, both.reason) == (other.best, "finished")
    assert both.totals == Totals(3, 15, 150, 2.0, 5, 3.0, 0.75)


def planted_speeds(slow: float) -> Any:
    """Whole models that take `slow` times what the table says, but the dense one."""

    def speeds(bench: Any, profiles: Any, purpose: str = "") -> Any:
        found = {}
        for label, profile in profiles.items():
            seconds = bench.plan.space.cost(profile).nanoseconds / 1e9 * (1.0 if label == "dense" else slow)
            row = LatencyRow("planted", "cpu", "decode", 1, 10, 1, 7, 10 * seconds, 10 * seconds, 10 * seconds, 1 / seconds)
            found[label] = {"decode": row, "prefill": row}
        return found

    return speeds


@pytest.mark.parametrize(("slow", "searches"), [(0.9, 0), (1.1, 1)])
def test_a_run_searches_on_until_the_measured_time_is_within_the_budget(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slow: float, searches: int
) -> None:
    monkeypatch.setattr("evopress.run.speeds", planted_speeds(slow))
    tiny_times.plant(tiny_study.url(tmp_path), tiny, tmp_path)
    study = tiny_study.study(
        tiny, searcher="evolve(generations=2,offspring=2,rungs=1x32)", baselines=("uniform",), budgets=("latency=0.6x,context=64",)
    )
    heard: list[Progress] = []
    found = execute(study, tiny_study.url(tmp_path), tmp_path, None, heard.append, dtype="float32", command="test")
    again = [event.text for event in heard if "searching on under a tighter limit" in event.text]
    assert len(again) == searches
    space = found.plan.space
    assert slow * space.cost(found.best.profile).nanoseconds <= 0.6 * space.dense.nanoseconds
    assert found.plan.budgets[0].limit == int(0.6 * space.dense.nanoseconds), "the study's own budget is what is reported"


def test_a_limit_that_nothing_meets_is_told_and_the_answer_stays(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evopress.run.speeds", planted_speeds(50.0))
    tiny_times.plant(tiny_study.url(tmp_path), tiny, tmp_path)
    study = tiny_study.study(
        tiny, searcher="evolve(generations=1,offspring=2,rungs=1x32)", methods=("rtn(bits=2..4,group=32)",), baselines=("uniform",),
        budgets=("latency=0.6x,context=64",),
    )  # fmt: skip
    found = execute(study, tiny_study.url(tmp_path), tmp_path, None, lambda progress: None, dtype="float32", command="test")
    assert "times its budget as a whole model, and no tighter limit can be met" in found.remarks["evolve"]
