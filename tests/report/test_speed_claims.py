"""Verdicts on speed studies, against planted documents whose answers are known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from evopress.api import UsageError
from evopress.api.speed_study import SpeedClaim
from evopress.report.frontier_png import front
from evopress.report.leaderboard import leaderboard_markdown
from evopress.report.speed_claims import judge_speed, speed_cells, speed_json
from evopress.report.speed_document import is_speed


def row(
    format: str, seconds: list[float], shape: tuple[int, int] = (4, 8), kernel: str = "native-int", floor: float = 1.0
) -> dict[str, Any]:
    middle = sorted(seconds)[len(seconds) // 2]
    return {
        "format": format, "shape": list(shape), "tokens": 1, "dtype": "bfloat16", "kernel": kernel, "seconds": seconds,
        "samples": len(seconds),
        "median_seconds": middle, "low_seconds": min(seconds), "high_seconds": max(seconds), "floor_seconds": floor,
    }  # fmt: skip


KERNELS = {
    "rows": [
        row("dense", [6.0] * 7, kernel="dense"), row("int2-g64", [2.0] * 7), row("int4-g64", [3.0, 4.0] * 3 + [4.0]),
        row("dense", [6.0] * 7, (8, 8), "dense"), row("int2-g64", [1.0] * 7, (8, 8)), row("int4-g64", [4.0] * 7, (8, 8)),
    ],
    "against_peers": [
        {"format": "int4-g64", "shape": [4, 8], "tokens": 1, "dtype": "bfloat16", "peer": "them", "samples": 9,
         "times_as_fast": {"median": 1.2, "low": 0.9, "high": 1.4}},
        {"format": "int4-g64", "shape": [8, 8], "tokens": 1, "dtype": "bfloat16", "peer": "them", "samples": 9,
         "times_as_fast": {"median": 1.1, "low": 1.0, "high": 1.4}},
    ],
    "check": [{"error": -0.2}, {"error": 0.05}, {"error": 0.01}],
}  # fmt: skip


def whole(label: str, kind: str, seconds: float, *values: float) -> dict[str, Any]:
    mean = sum(values) / len(values)
    return {"label": label, "kind": kind, "seconds": [seconds] * 7, "median_seconds": seconds, "kl": {"mean": mean, "values": list(values)}}


FRONTIER = {
    "heldout": {"weights": [1] * 8, "origins": list(range(8))},
    "rows": [
        whole("dense", "dense", 10.0, *[0.0] * 8), whole("fast", "latency", 7.0, *[0.10, 0.11] * 4),
        whole("uniform a", "uniform", 9.0, *[0.01] * 8), whole("uniform b", "uniform", 8.0, *[0.20, 0.22] * 4),
        whole("uniform c", "uniform", 5.0, *[0.90] * 8), whole("small", "size", 8.0, *[0.10, 0.12] * 4),
    ],
}  # fmt: skip


def judge(
    document: dict[str, Any], metric: str, comparator: str, goal: float, of: str = "", than: str = "", within: float | None = None
) -> Any:
    claim = SpeedClaim.model_validate({
        "says": "x", "metric": metric, "of": of, "than": than, "comparator": comparator, "goal": goal, "within": within
    })  # fmt: skip
    return judge_speed(document, [claim])[0]


def test_the_worst_shape_and_the_near_end_of_its_interval_decide() -> None:
    found = judge(KERNELS, "peers", ">=", 0.95, "int4-g64")
    assert (found.state, found.value, found.low, found.n) == ("fails", 1.2, 0.9, 9)
    assert "4x8 against them" in speed_cells(found)[-1]
    assert judge(KERNELS, "peers", ">=", 0.9, "int4-g64").state == "holds"


def test_shares_of_the_floor_and_ratios_of_formats() -> None:
    assert judge(KERNELS, "floor", ">=", 0.25, "int4-g64").state == "holds"
    assert judge(KERNELS, "floor", ">=", 0.26, "int4-g64").state == "fails"
    faster = judge(KERNELS, "times", ">", 1.4, "int2-g64", "int4-g64")
    assert (faster.state, faster.value, faster.low) == ("holds", 2.0, 1.5)
    assert judge(KERNELS, "times", ">=", 3.0, "int2-g64", "dense").state == "holds"
    assert judge(KERNELS, "times", ">=", 3.1, "int2-g64", "dense").state == "fails"


def test_the_table_is_judged_by_the_median_of_its_errors() -> None:
    found = judge(KERNELS, "table", "<=", 0.05)
    assert (found.state, found.value, found.n) == ("fails", 0.05, 3)  # of three errors the interval is all of them
    assert (found.low, found.high) == (0.01, 0.2)
    assert judge(KERNELS, "table", "<=", 0.2).state == "holds"


def test_a_winner_is_compared_with_the_best_that_keeps_the_same_time() -> None:
    assert judge(FRONTIER, "time", "<=", 0.7, "fast").state == "holds"
    assert judge(FRONTIER, "time", "<=", 0.69, "fast").state == "fails"
    found = judge(FRONTIER, "kl", "<", 0, "fast", "uniform", 0.8)
    assert (found.state, found.value) == ("holds", pytest.approx(-0.105))
    assert "uniform b" in found.note
    assert judge(FRONTIER, "kl", "<", 0, "fast", "uniform", 0.9).state == "fails"  # uniform a is as fast as that, and better
    assert judge(FRONTIER, "kl", "<", 0, "fast", "size", 0.8).n == 8


def test_a_winner_that_does_not_keep_the_time_itself_fails() -> None:
    found = judge(FRONTIER, "kl", "<", 0, "fast", "uniform", 0.6)
    assert (found.state, found.value) == ("fails", None)
    assert found.note == "it takes 0.700 of the dense model's time itself"
    assert speed_cells(found)[1:] == ("-", "-", "7", "< 0", "fails; it takes 0.700 of the dense model's time itself")
    assert "Infinity" not in json.dumps(speed_json(found))


def test_where_no_rival_keeps_the_time_the_claim_says_so() -> None:
    document = {**FRONTIER, "rows": [row for row in FRONTIER["rows"] if row["label"] != "uniform c"]}
    found = judge(document, "kl", "<", 0, "fast", "uniform", 0.75)
    assert (found.state, found.value, found.note) == ("holds", None, "none of 2 is as fast")
    assert judge(document, "kl", "<", 0, "fast", "random", 0.75).state == "not measured yet"


def test_a_rival_whose_interval_holds_the_limit_is_one() -> None:
    unsure = {**whole("uniform a", "uniform", 9.0, *[0.01] * 8), "seconds": [7.9, 7.9, 8.1, 8.1, 8.1, 8.1, 8.1]}
    document = {**FRONTIER, "rows": [row for row in FRONTIER["rows"] if row["label"] != "uniform a"] + [unsure]}
    found = judge(document, "kl", "<", 0, "fast", "uniform", 0.8)
    assert found.state == "fails"
    assert "uniform a" in found.note


@pytest.mark.parametrize("metric", ["peers", "floor", "times", "table", "time", "kl"])
def test_what_was_not_measured_is_no_success(metric: str) -> None:
    found = judge({}, metric, "<=", 1e9, "int3-g64", "dense", 0.5)
    assert found.state == "not measured yet"
    assert speed_cells(found)[1] == "-"


ABOUT = {"cpu": "a processor", "threads": 2, "dtype": "bfloat16", "torch": "2.13", "commit": "abc", "peers": {"them": "1.0"},
         "flags": ["avx2"], "python": "3.11"}  # fmt: skip


def test_a_kernel_study_as_a_section_of_the_leaderboard(tmp_path: Path) -> None:
    extra = {"floor_share": 0.5, "ratio_to_dense": {"median": 0.25}, "rounding": 0.0}
    document = {
        "kernels": {"name": "mine"}, "digest": "d" * 64, "environment": ABOUT, "check_median_error": 0.05,
        "rows": [found | extra for found in KERNELS["rows"]], "beside_peers": [row("int4-g64", [1.0], kernel="them") | {"rounding": 0.01}],
        "against_peers": KERNELS["against_peers"], "check": KERNELS["check"],
    }  # fmt: skip
    assert is_speed(document)
    assert not is_speed({"digest": "d"})
    (tmp_path / "mine.json").write_text(json.dumps(document))
    text = leaderboard_markdown(tmp_path)
    assert "# How fast kernels and profiles run" in text
    assert "## mine; a processor, 2 threads, bfloat16" in text
    cells = "| int4-g64 | 4x8 | native-int | 1 | 4000000 | 3000000-4000000 | 7 | 50% | 4.00 | them | 1.20 [0.90, 1.40] |"
    assert cells.replace(" ", "") in text.replace(" ", "")
    assert "these round the activations, by a relative error of them: 0.01" in text
    assert "the table's sum against 3 random whole models: median error 5.0%" in text
    del document["rows"]
    (tmp_path / "mine.json").write_text(json.dumps(document))
    with pytest.raises(UsageError, match=r"mine\.json is not a result of a speed study: key 'rows' is missing"):
        leaderboard_markdown(tmp_path)


def test_the_front_holds_what_nobody_beats_in_both() -> None:
    labels = [found["label"] for found in front(FRONTIER["rows"][1:])]
    assert labels == ["uniform a", "fast", "uniform c"]
