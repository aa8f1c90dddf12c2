"""Claims on planted documents: every number worked out by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from planted_contest import claim, contest, document, run

from evopress.api.contest import Contest
from evopress.report.claims import Verdict, all_hold, claim_cells, claim_json, judge
from evopress.report.contest_document import check_belongs, final_profile, read_document
from evopress.report.statistics import paired

ROOT = Path(__file__).resolve().parents[2]
SLOW = [(500, (1.2, 1.0)), (1000, (0.6, 0.4))]  # ends at 0.5
FAST = [(100, (0.9, 0.5)), (200, (0.55, 0.45)), (400, (0.3, 0.2))]  # 0.7, 0.5, 0.25: there at 200
LATE = [(100, (0.9, 0.5)), (250, (0.7, 0.5)), (400, (0.3, 0.2))]  # there at 400
NEVER = [(100, (0.9, 0.5)), (400, (0.6, 0.5))]


def verdict(made: dict[str, Any], *runs: dict[str, Any], seeds: tuple[int, ...] = (0,), **changed: Any) -> Verdict:
    defined = contest([made], seeds=seeds)
    (found,) = judge(document(defined, runs, **changed), defined)
    return found


def test_tokens_are_counted_to_the_first_mark_that_is_as_good() -> None:
    found = verdict(claim("tokens", ">=", 5), run("slow", 0, SLOW), run("fast", 0, FAST))
    assert (found.value, found.low, found.high, found.n, found.state) == (5.0, 5.0, 5.0, 1, "holds")
    assert found.with_bank == (1000 + 100) / (200 + 100)
    assert claim_cells(found) == ("tokens >= 5", "5.0x", "[5.0x, 5.0x]", "1 seeds", ">= 5", "3.7x", "holds")


def test_seconds_are_counted_alike_and_an_unknown_bank_leaves_its_column_empty() -> None:
    bank = {"recipe": "r", "calibration_tokens": 100, "bytes": 1, "seconds": None}
    runs = (run("slow", 0, SLOW), run("fast", 0, FAST, per_token=0.02))
    found = verdict(claim("seconds", ">=", 3), *runs, bank=bank)
    assert (found.value, found.state, found.with_bank) == (2.5, "fails", None)
    assert verdict(claim("seconds", ">=", 2.5), *runs).with_bank == (10 + 1) / (4 + 1)


def test_seconds_of_two_machines_are_not_set_side_by_side() -> None:
    slow, fast = run("slow", 0, SLOW), run("fast", 0, FAST)
    slow["environment"], fast["environment"] = ({"cpu": "Xeon", "threads": threads} for threads in (1, 2))
    found = verdict(claim("seconds", ">=", 2), slow, fast)
    assert (found.state, found.missing) == ("not on one machine", ("Xeon, 1", "Xeon, 2"))
    assert claim_cells(found)[-1] == "not on one machine: Xeon, 1, Xeon, 2"
    assert not all_hold([found])
    assert verdict(claim("tokens", ">=", 5), slow, fast).state == "holds"


def test_the_value_is_the_median_over_seeds_and_the_worst_seed_decides() -> None:
    runs = [run("slow", seed, SLOW) for seed in range(3)] + [run("fast", 0, FAST), run("fast", 1, LATE), run("fast", 2, FAST)]
    found = verdict(claim("tokens", ">=", 3), *runs, seeds=(0, 1, 2))
    assert (found.value, found.low, found.high, found.n, found.state) == (5.0, 2.5, 5.0, 3, "fails")
    assert verdict(claim("tokens", ">=", 2.5), *runs, seeds=(0, 1, 2)).state == "holds"


def test_what_the_baseline_reached_and_spent_are_means_over_its_seeds() -> None:
    """0.4 after 2,000: one seed of the entrant is there at 400 only, although it passes the baseline of its own seed at 200."""
    better = [(1000, (0.6, 0.4)), (3000, (0.4, 0.2))]
    runs = [run("slow", 0, SLOW), run("slow", 1, better), run("fast", 0, FAST), run("fast", 1, LATE)]
    found = verdict(claim("tokens", ">=", 5), *runs, seeds=(0, 1))
    assert (found.value, found.low, found.high, found.state) == (5.0, 5.0, 5.0, "holds")
    assert found.with_bank == (2000 + 100) / (400 + 100)


def test_an_entrant_that_never_gets_there_counts_nothing() -> None:
    runs = [run("slow", seed, SLOW) for seed in (0, 1)] + [run("fast", 0, FAST), run("fast", 1, NEVER)]
    found = verdict(claim("tokens", ">=", 1), *runs, seeds=(0, 1))
    assert (found.value, found.low, found.high, found.state) == (2.5, 0.0, 5.0, "fails")
    assert found.note == "not reached with 1 of 2 seeds"
    assert claim_cells(found)[-1] == "fails, not reached with 1 of 2 seeds"


def test_an_entrant_that_asks_nothing_stands_for_every_seed_and_spends_nothing() -> None:
    runs = [run("slow", seed, SLOW) for seed in (0, 1)] + [run("still", 1, [(0, (0.5, 0.5))], "finished")]
    found = verdict(claim("tokens", ">=", 10, "still"), *runs, seeds=(0, 1))
    assert (found.value, found.state, found.n) == (math.inf, "holds", 2)
    assert found.with_bank == 11.0
    assert json.loads(json.dumps(claim_json(found)))["value"] == "inf"


@pytest.mark.parametrize(
    ("comparator", "goal", "state"),
    [(">=", 5, "holds"), (">", 5, "fails"), (">", 4.9, "holds"), (">=", 5.1, "fails"),
     ("<=", 5, "holds"), ("<", 5, "fails"), ("<", 5.1, "holds"), ("<=", 4.9, "fails")],
)  # fmt: skip
def test_every_comparator(comparator: str, goal: float, state: str) -> None:
    assert verdict(claim("tokens", comparator, goal), run("slow", 0, SLOW), run("fast", 0, FAST)).state == state


def test_the_end_of_the_interval_nearest_to_failing_decides_for_less_too() -> None:
    runs = [run("slow", seed, SLOW) for seed in (0, 1)] + [run("fast", 0, FAST), run("fast", 1, LATE)]
    assert verdict(claim("tokens", "<=", 4), *runs, seeds=(0, 1)).state == "fails"
    assert verdict(claim("tokens", "<=", 5), *runs, seeds=(0, 1)).state == "holds"


WEIGHTS = (1, 2, 1, 1, 2, 1, 1, 1)
ORIGINS = (0, 0, 1, 2, 3, 4, 5, 6)
OURS = ((0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8), (0.3, 0.2, 0.1, 0.4, 0.5, 0.4, 0.7, 0.6))
THEIRS = tuple(value + 0.1 + 0.01 * at for at, value in enumerate(OURS[0]))


def test_a_fitness_is_a_paired_difference_of_means_over_seeds() -> None:
    runs = [run("fast", seed, [(10, OURS[seed])]) for seed in (0, 1)] + [run("slow", seed, [(10, THEIRS)]) for seed in (0, 1)]
    found = verdict(claim("fitness", "<", 0, p=0.05), *runs, seeds=(0, 1), weights=WEIGHTS, origins=ORIGINS)
    mean = [(a + b) / 2 for a, b in zip(*OURS, strict=True)]
    expected = paired(mean, THEIRS, WEIGHTS, 0, ORIGINS)
    by_hand = sum(w * (a - b) for w, a, b in zip(WEIGHTS, mean, THEIRS, strict=True)) / sum(WEIGHTS)
    assert found.value == pytest.approx(by_hand)
    assert (found.low, found.high, found.p, found.n) == (expected.low, expected.high, expected.p, 7)
    assert found.n == len(set(ORIGINS))
    assert found.state == "holds"
    assert found.with_bank is None
    for changed, state in (({"p": 0.001}, "fails"), ({"p": 0.05}, "holds"), ({}, "holds")):
        made = claim("fitness", "<", 0, **changed)
        assert verdict(made, *runs, seeds=(0, 1), weights=WEIGHTS, origins=ORIGINS).state == state
    # Its upper end decides: a goal between value and end fails.
    goal = (expected.difference + expected.high) / 2
    assert verdict(claim("fitness", "<", goal), *runs, seeds=(0, 1), weights=WEIGHTS, origins=ORIGINS).state == "fails"
    assert verdict(claim("fitness", ">", goal), *runs, seeds=(0, 1), weights=WEIGHTS, origins=ORIGINS).state == "fails"


def test_missing_runs_are_named_and_changed_entrants_are_missing() -> None:
    found = verdict(claim("tokens", ">=", 1), run("slow", 0, SLOW), run("fast", 0, FAST), run("slow", 1, SLOW), seeds=(0, 1))
    assert (found.state, found.value, found.missing) == ("not measured yet", None, ("fast seed 1",))
    assert claim_cells(found)[-1] == "not measured yet: fast seed 1"
    stale = {**run("fast", 0, FAST), "searcher": "greedy"}
    assert verdict(claim("tokens", ">=", 1), run("slow", 0, SLOW), stale).missing == ("fast seed 0",)
    longer = {**run("fast", 0, FAST), "stop_tokens": 2000}
    assert verdict(claim("tokens", ">=", 1), run("slow", 0, SLOW), longer).missing == ("fast seed 0",)


def test_a_quick_contest_is_no_evidence() -> None:
    found = verdict(claim("tokens", ">=", 1), run("slow", 0, SLOW), run("fast", 0, FAST), quick=True)
    assert (found.state, found.value) == ("quick, no evidence", 5.0)
    assert not all_hold([found])
    assert all_hold([verdict(claim("tokens", ">=", 1), run("slow", 0, SLOW), run("fast", 0, FAST))])


# What is committed ----------------------------------------------------------------------------------------------------------------------


def committed() -> list[tuple[Path, Path]]:
    """Every contest with claims, and its committed result."""
    files = sorted((ROOT / "studies").glob("*.toml"))
    found = [(file, Contest.read(file)) for file in files if "\n[entrants]" in file.read_text(encoding="utf-8")]
    assert found, "no study file is a contest any more"
    return [(file, ROOT / "results" / f"{made.name}.json") for file, made in found if made.claims]


def test_every_committed_claim_is_measured_and_holds() -> None:
    for file, result in committed():
        made, measured = Contest.read(file), read_document(result)
        check_belongs(measured, made, result)
        assert not measured["quick"]
        broken = [claim_cells(found) for found in judge(measured, made) if found.state != "holds"]
        assert not broken, f"{file.name}: {broken}"


def test_every_committed_run_ends_at_the_profile_that_was_judged() -> None:
    """Final profiles are written as numbers, which mean nothing in another document."""
    for _, result in committed():
        measured = read_document(result)
        for found in measured["runs"]:
            ended = found["marks"][-1]["profile"]
            assert final_profile(measured, found).digest.startswith(ended), (result.name, found["label"], found["seed"])
