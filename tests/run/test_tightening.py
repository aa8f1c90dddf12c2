"""Searching on under a tighter limit where the answer takes longer than the table says: the arithmetic, and a run with planted timings."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from math import inf
from pathlib import Path
from typing import Any

import pytest
import tiny_study
import tiny_times
from tiny_study import Tiny

from evopress.api import Budget, Cost, Level, Profile, Site, Space
from evopress.events import Progress
from evopress.latency.runtime import TURNS
from evopress.run import execute
from evopress.search.loop import Outcome, Stops, Totals
from evopress.store import LatencyRow, Store
from evopress.tightening import MARGIN, Fit, altogether, further, joined, lower, overtime, scaled

DENSE = Level("dense")
SPACE = Space((Site("a", "linear", (2, 2), 0, None),), ((DENSE,),), ((Cost(8, 4, 900),),), Cost(0, 0, 100))


def test_a_share_is_of_the_measured_dense_model_and_a_time_is_a_time() -> None:
    share, time = Budget("latency=0.8x,prefill", "nanoseconds", 800), Budget("latency=800ns", "nanoseconds", 800)
    size = Budget("size=1x", "bytes", 8)
    assert overtime((share, size), SPACE, 2e-6, 1.6e-6) == pytest.approx(1.0)
    assert overtime((time, size), SPACE, 2e-6, 1.6e-6) == pytest.approx(2.0)
    assert overtime((share, time), SPACE, 2e-6, 1.6e-6) == pytest.approx(2.0)
    assert overtime((size,), SPACE, 2e-6, 1.0) == 0


def test_limits_on_time_are_scaled_and_no_other() -> None:
    share, size = Budget("latency=0.8x", "nanoseconds", 800), Budget("size=1x", "bytes", 8)
    assert scaled((share, size), 0.75) == (Budget("latency=0.8x", "nanoseconds", 600), size)
    assert lower(0.9, 1.2) == pytest.approx(0.9 / 1.2 * MARGIN)


def tried(taken: Callable[[float], float], tries: int = 6) -> tuple[list[float], Fit]:
    """The shares of the limits that are tried, and what they end in. taken: share -> its answer's time over the budget."""
    fit, shares = Fit(), []
    for _ in range(tries):
        shares.append(fit.share)
        fit = fit.after(taken(fit.share))
        if fit.done:
            break
    return shares, fit


def test_the_share_of_the_limits_is_where_answers_keep_their_budget() -> None:
    assert tried(lambda share: 0.7) == ([1.0], Fit(1.0, 1.0, inf, True))  # no looser limit than the study's own
    shares, fit = tried(lambda share: 1.08 * share)
    assert shares == pytest.approx([1.0, MARGIN / 1.08])
    assert (fit.done, fit.best) == (True, shares[1])


def test_answers_whose_times_jump_are_closed_in_on() -> None:
    def jumping(share: float) -> float:
        return 1.04 if share > 0.97 else 0.93

    shares, fit = tried(jumping)
    assert (len(shares), fit.done) == (6, False)
    assert 0.95 < fit.best <= 0.97, "the largest that was seen to keep its budget"
    assert jumping(fit.best) < 1
    assert tried(lambda share: 1.5, tries=3)[1].best < 0.3, "where none kept it the last guess stands"


def test_what_both_searches_took_is_told() -> None:
    one = Outcome(Profile.of({"a": DENSE}), "tokens", Totals(2, 10, 100, 1.5, 4, 2.0, 0.5))
    other = Outcome(Profile.of({"a": Level("drop")}), "finished", Totals(1, 5, 50, 0.5, 1, 1.0, 0.25))
    both = joined(one, other)
    assert (both.best, both.reason) == (other.best, "finished")
    assert both.totals == Totals(3, 15, 150, 2.0, 5, 3.0, 0.75)
    assert both.next_tokens is None
    more = joined(one, replace(other, next_tokens=25))
    assert further(Stops(tokens=more.next_tokens)).tokens == 25, "as many as let the further search go on"


def planted_seconds(slow: float) -> Any:
    """Whole models that take `slow` times what the table says, but the dense one."""

    def pass_seconds(bench: Any, profiles: Any, purpose: str) -> Any:
        cost = bench.plan.space.cost
        return {label: cost(one).nanoseconds / 1e9 * (1.0 if label == "dense" else slow) for label, one in profiles.items()}

    return pass_seconds


@pytest.mark.parametrize(("slow", "timed"), [(0.9, []), (1.1, ["knapsack's answer"])])
def test_a_run_searches_until_the_measured_time_is_within_the_budget(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slow: float, timed: list[str]
) -> None:
    monkeypatch.setattr("evopress.run.pass_seconds", planted_seconds(slow))
    tiny_times.plant(tiny_study.url(tmp_path), tiny, tmp_path)
    study = tiny_study.study(
        tiny, searcher="evolve(generations=2,offspring=2,rungs=1x32)", baselines=("uniform",), budgets=("latency=0.6x,context=64",)
    )
    heard: list[Progress] = []
    found = execute(study, tiny_study.url(tmp_path), tmp_path, None, heard.append, dtype="float32", command="test")
    missed = [re.match(r"the (.+) takes 1\.\d+ times its budget", event.text) for event in heard]
    assert [found.group(1) for found in missed if found] == timed
    space = found.plan.space
    assert slow * space.cost(found.best.profile).nanoseconds <= 0.6 * space.dense.nanoseconds
    assert found.plan.budgets[0].limit == int(0.6 * space.dense.nanoseconds), "the study's own budget is what is reported"


def test_an_answer_that_is_slower_than_the_simple_one_is_searched_on_for_a_quarter(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = planted_seconds(1.0)

    def pass_seconds(bench: Any, profiles: Any, purpose: str) -> Any:
        return (planted_seconds(1.1) if purpose == "answer 0" else kept)(bench, profiles, purpose)

    monkeypatch.setattr("evopress.run.pass_seconds", pass_seconds)
    tiny_times.plant(tiny_study.url(tmp_path), tiny, tmp_path)
    study = tiny_study.study(
        tiny, searcher="evolve(generations=8,offspring=2,rungs=1x32)", baselines=("uniform",), budgets=("latency=0.6x,context=64",),
        stop_generations=4,
    )  # fmt: skip
    heard: list[Progress] = []
    found = execute(study, tiny_study.url(tmp_path), tmp_path, None, heard.append, dtype="float32", command="test")
    assert next(event.text for event in heard if "tighter limit" in event.text).startswith("the answer takes 1.")
    assert found.outcome.totals.generation == 4 + 1


@pytest.mark.parametrize(("slow", "gives_way"), [(1.6, True), (1.0, False)])
def test_an_answer_that_ends_behind_a_simple_one_that_keeps_the_budget_gives_way(
    slow: float, gives_way: bool, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pass_seconds(bench: Any, profiles: Any, purpose: str) -> Any:
        return planted_seconds(slow if purpose == "answer 0" else 0.9)(bench, profiles, purpose)

    monkeypatch.setattr("evopress.run.pass_seconds", pass_seconds)
    monkeypatch.setitem(TURNS, "decode", 1)
    tiny_times.plant(tiny_study.url(tmp_path), tiny, tmp_path)
    study = tiny_study.study(
        tiny, searcher="evolve(generations=1,offspring=1,rungs=1x32)", baselines=("knapsack",), budgets=("latency=0.6x,context=64",),
        methods=("rtn(bits=2..4,group=32)",),
    )  # fmt: skip
    found = execute(study, tiny_study.url(tmp_path), tmp_path, dtype="float32", command="test")
    knapsack = next(row.profile for row in found.rows if row.label == "knapsack")
    assert ("nothing better than a simple answer that keeps the budget" in found.remarks.get("evolve", "")) == gives_way
    if gives_way:
        assert found.best.profile == knapsack


def test_what_is_spent_at_most() -> None:
    assert further(Stops(10, 100, 8.0, None)) == Stops(3, 25, 2.0, None)
    assert altogether(Stops(10, 100, 8.0, 4)) == Stops(18, 175, 14.0, 7)
    assert further(Stops()) == altogether(Stops()) == Stops()


@pytest.mark.parametrize("each", [False, True], ids=["one limit", "only all limits together"])
def test_a_limit_that_nothing_meets_is_told_and_the_answer_stays(
    each: bool, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("evopress.run.pass_seconds", planted_seconds(50.0))
    if each:  # as where every limit alone can be met
        monkeypatch.setattr("evopress.run.check_feasible", lambda space, budgets: None)
    tiny_times.plant(tiny_study.url(tmp_path), tiny, tmp_path)
    study = tiny_study.study(
        tiny, searcher="evolve(generations=1,offspring=2,rungs=1x32)", methods=("rtn(bits=2..4,group=32)",), baselines=("uniform",),
        budgets=("latency=0.6x,context=64",),
    )  # fmt: skip
    found = execute(study, tiny_study.url(tmp_path), tmp_path, None, lambda progress: None, dtype="float32", command="test")
    assert "times its budget as a whole model, and no tighter limit can be met" in found.remarks["evolve"]


def test_a_study_that_ran_without_timing_goes_on_with_it(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its limits are others then, and so are its questions."""
    monkeypatch.setattr("evopress.run.pass_seconds", planted_seconds(1.1))
    monkeypatch.setattr("evopress.speed.REPEATS", 1)
    tiny_times.plant(tiny_study.url(tmp_path), tiny, tmp_path)
    study = tiny_study.study(
        tiny, searcher="evolve(generations=2,offspring=2,rungs=1x32)", baselines=("uniform", "random"), budgets=("latency=0.6x,context=64",)
    )
    for speed in (False, True, False):
        found = execute(study, tiny_study.url(tmp_path), tmp_path, dtype="float32", command="test", speed=speed)
        space, share = found.plan.space, (0.6 / 1.1 if speed else 0.6)
        for row in found.rows[1:]:
            assert row.cost.nanoseconds <= share * space.dense.nanoseconds, "all that is compared has the limits of the search"
    with Store.open(tiny_study.url(tmp_path)) as store:
        tracks = {step.searcher for step in store.trajectory(store.find_study(study.name).id)}
    assert {bool(re.search(r"under 0\.\d{6} of the limits$", track)) for track in tracks if track.startswith("evolve")} == {True, False}


def test_what_was_timed_for_a_budget_is_kept_and_not_timed_again(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TURNS, "decode", 3)
    monkeypatch.setattr("evopress.speed.REPEATS", 1)
    tiny_times.plant(tiny_study.url(tmp_path), tiny, tmp_path)
    study = tiny_study.study(
        tiny, searcher="evolve(generations=1,offspring=2,rungs=1x32)", baselines=("uniform",), budgets=("latency=0.9x,context=64",)
    )

    def run() -> list[LatencyRow]:
        execute(study, tiny_study.url(tmp_path), tmp_path, dtype="float32", command="test")
        with Store.open(tiny_study.url(tmp_path)) as store:
            return [row for row in store.latencies() if "purpose" in row.environment]

    rows = run()
    first = [row for row in rows if row.environment["purpose"] == "simple answer 0"]
    assert len(first) == 2, "the simple answer, and the dense model beside it"
    assert {(row.phase, row.tokens, row.samples) for row in rows} == {("decode", 1, 3)}
    assert any(row.environment["purpose"] == "answer 0" for row in rows)
    assert run() == rows
