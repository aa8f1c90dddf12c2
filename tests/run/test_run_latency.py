"""A study with a latency budget from beginning to end: estimated beside measured, a warning where they part, the dry run, the store."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_study
import tiny_times
from tiny_study import Answer, Tiny

from evopress.api.study import Study
from evopress.events import silent
from evopress.latency.runtime import TURNS
from evopress.report.result import result_json
from evopress.run import execute
from evopress.store import Store

Command = Callable[..., Answer]
BUDGET = "latency=0.5x,context=64"
SHORT = {"searcher": "evolve(generations=2,offspring=2,rungs=1x32)", "baselines": ("uniform", "knapsack"), "budgets": (BUDGET,)}


@pytest.fixture(autouse=True)
def _one_timing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evopress.speed.REPEATS", 1)


def run(tiny: Tiny, home: Path, speed: bool = True, **changed: Any) -> Any:
    study: Study = tiny_study.study(tiny, **{**SHORT, **changed})
    return execute(study, tiny_study.url(home), home, None, silent, dtype="float32", speed=speed, command="test")


def test_the_comparison_sets_the_table_beside_the_measurement(tiny: Tiny, tmp_path: Path) -> None:
    tiny_times.plant(tiny_study.url(tmp_path), tiny, tmp_path)
    budgets = ("latency=150us,context=64",)
    found = run(tiny, tmp_path, budgets=budgets)
    document = result_json(found)
    assert document["workload"] == {"text": "decode,batch=1,context=64", "phase": "decode", "batch": 1, "context": 64}
    limit = 150e-6
    for row in found.rows:
        one = next(item for item in document["rows"] if item["label"] == row.label)["latency"]
        assert one["estimated_seconds"] == found.plan.space.cost(row.profile).nanoseconds / 1e9 > 0
        assert row.speed["prefill"].tokens == 64, "the context of the workload"
        assert (row.speed["decode"].tokens, row.speed["decode"].samples) == (1, TURNS["decode"]), "what the budget is of, in single passes"
        assert one["measured_seconds"] == pytest.approx(row.speed["decode"].median_seconds / row.speed["decode"].tokens)
        assert one["error"] == pytest.approx(one["estimated_seconds"] / one["measured_seconds"] - 1)
        assert one["limit_seconds"] == limit
        assert one["meets_budget"] == (one["measured_seconds"] <= limit)
        assert row.label == "dense" or one["estimated_seconds"] <= limit
    # Made-up times of microseconds are far below what transformers takes, so the measured winner is above its budget.
    text = str(found)
    assert "table, ms a token" in text.splitlines()[1]
    assert "in budget" in text.splitlines()[1]
    warning = next(line for line in text.splitlines() if line.startswith("WARNING: evolve takes "))
    assert "times its latency budget when measured" in warning
    assert "times the dense model's, measured in the same turns" in warning
    assert "--require-gain judges accuracy alone" in warning
    assert "(latency=150us,context=64)" in warning
    assert "<th>table, ms a token</th>" in found._repr_html_()
    with Store.open(tiny_study.url(tmp_path)) as store:
        rows = {row.label: row for row in store.leaderboard("kl", study="tiny")}
        for row in found.rows:
            assert rows[row.label].estimated_seconds == pytest.approx(row.cost.nanoseconds / 1e9)
    # Everything again from the store: trials without time, and the same table.
    again = result_json(run(tiny, tmp_path, budgets=budgets))
    assert [row["latency"] for row in again["rows"]] == [row["latency"] for row in document["rows"]]


def test_without_timing_it_says_that_nothing_was_timed(tiny: Tiny, tmp_path: Path) -> None:
    tiny_times.plant(tiny_study.url(tmp_path), tiny, tmp_path, scale=1e6)
    text = str(run(tiny, tmp_path, speed=False))
    assert "nothing was timed, so whether it takes that long is not known" in text
    assert "WARNING" not in text


def test_nsga2_shows_a_front_of_three_objectives(tiny: Tiny, tmp_path: Path) -> None:
    tiny_times.plant(tiny_study.url(tmp_path), tiny, tmp_path)
    found = run(tiny, tmp_path, speed=False, searcher="nsga2(generations=3,population=8,tokens=160,looks=2x64|1x160)")
    front = [row for row in found.rows if "front" in row.label]
    assert front
    assert all(0 < row.cost.nanoseconds <= found.plan.budgets[0].limit for row in front)
    points = [(row.cost.bytes, row.cost.nanoseconds) for row in front]
    assert points == sorted(points)


def test_a_dry_run_shows_the_workload_and_what_is_feasible(tiny: Tiny, home: Path, evopress_command: Command) -> None:
    home.mkdir(parents=True, exist_ok=True)
    tiny_times.plant(tiny_study.url(home), tiny, home)
    arguments = [*tiny_study.arguments(tiny, **SHORT), "--dry-run"]
    text = evopress_command("search", "start", *arguments).out
    document = json.loads(evopress_command("search", "start", *arguments, "--json").out)
    least, most = document["feasible_seconds"]
    dense = document["dense_seconds"]
    assert 0 < least < document["budgets"][0]["limit"] / 1e9 < dense <= most
    assert document["workload"]["text"] == "decode,batch=1,context=64"
    assert "workload    decode,batch=1,context=64, timed on " in text
    assert (
        f"the dense model takes {1e3 * dense:,.3f} ms a token; profiles of this study take {1e3 * least:,.3f} to {1e3 * most:,.3f} ms"
        in text
    )
    assert f"budget      {BUDGET}: at most {document['budgets'][0]['limit'] / 1e6:,.3f} ms (50.0% of dense)" in text


def test_a_dry_run_without_times_names_the_command_that_takes_them(tiny: Tiny, home: Path, evopress_command: Command) -> None:
    answer = evopress_command("search", "start", *tiny_study.arguments(tiny, **SHORT), "--dry-run")
    assert answer.code == 5
    assert "evopress kernels bench --workload decode,batch=1,context=64" in answer.err


def test_trials_of_a_study_without_a_time_are_given_one_by_a_study_that_asks_for_it(tiny: Tiny, tmp_path: Path) -> None:
    tiny_times.plant(tiny_study.url(tmp_path), tiny, tmp_path)
    first = run(tiny, tmp_path, speed=False, budgets=("size=0.9x",), baselines=("uniform",))
    with Store.open(tiny_study.url(tmp_path)) as store:
        assert all(row.estimated_seconds is None for row in store.leaderboard("kl"))
    second = run(tiny, tmp_path, speed=False, name="timed", budgets=("latency=0.9x,context=64",), baselines=("uniform",))
    shared = {row.profile.digest for row in first.rows} & {row.profile.digest for row in second.rows}
    with Store.open(tiny_study.url(tmp_path)) as store:
        known = {row.profile: row.estimated_seconds for row in store.leaderboard("kl")}
    assert shared
    assert all(known[digest] for digest in shared)
