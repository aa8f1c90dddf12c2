"""What is said of a measured time and its budget: beside, below, and where the interval does not tell."""

from __future__ import annotations

from typing import Any

import pytest

from evopress.api import Budget, Cost
from evopress.api.workload import Workload
from evopress.report.latency import amount, cells, header, latency_json, notes, workload_json
from evopress.store import LatencyRow

DECODE, PREFILL = Workload("decode", 1, 512), Workload("prefill", 4, 512)
BUDGETS = (Budget("latency=0.8x", "nanoseconds", 31_000_000), Budget("size=1GiB", "bytes", 2**30))
DENSE = Cost(20, 20, 38_750_000)


def timed(phase: str, median: float, spread: float = 0.01, tokens: int = 64) -> dict[str, LatencyRow]:
    low, high = median * (1 - spread), median * (1 + spread)
    return {phase: LatencyRow("k", "cpu", phase, 1, tokens, 1, 7, median, low, high, tokens / median)}


def told(median: float, spread: float = 0.01, estimated: float = 0.0312) -> dict[str, Any]:
    return latency_json(Cost(9, 9, round(estimated * 1e9)), timed("decode", 64 * median, spread), DECODE, BUDGETS, DENSE, {})


def document(latency: dict[str, Any], dense: float | None = 0.040) -> dict[str, Any]:
    rows = [{"label": "guided", "latency": latency}]
    if dense is not None:
        rows.append({"label": "dense", "latency": told(dense)})
    budgets = [{"text": budget.text, "field": budget.field, "limit": budget.limit} for budget in BUDGETS]
    return {"workload": workload_json(DECODE), "winner": "guided", "budgets": budgets, "rows": rows}


def test_decoding_is_told_a_token_and_a_prompt_whole() -> None:
    assert told(0.032)["measured_seconds"] == pytest.approx(0.032)
    whole = latency_json(Cost(1, 1, 500_000_000), timed("prefill", 0.6, tokens=512), PREFILL, BUDGETS, DENSE, {})
    assert whole["measured_seconds"] == 0.6
    assert header(workload_json(PREFILL))[0] == "table, ms 4 prompts"
    assert header(workload_json(Workload("decode", 4)))[1] == "measured, ms a step of 4 tokens"


def test_a_cell_each() -> None:
    assert cells(told(0.032)) == ("31.20", "32.00 [31.68, 32.32]", "-2.5%", "no")
    assert cells(told(0.030)) == ("31.20", "30.00 [29.70, 30.30]", "+4.0%", "yes")
    assert [cells(told(median, 0.1))[-1] for median in (0.030, 0.032)] == ["yes?", "no?"]
    assert cells(latency_json(Cost(1, 1, 31_200_000), {}, DECODE, BUDGETS, DENSE, {})) == ("31.20", "-", "-", "-")


@pytest.mark.parametrize(("text", "limit"), [("latency=0.8X,decode", 0.032), ("latency=31ms", 0.031)])
def test_a_share_is_of_the_measured_dense_model(text: str, limit: float) -> None:
    budgets = (Budget(text, "nanoseconds", 31_000_000),)
    found = latency_json(Cost(9, 9, 31_200_000), timed("decode", 64 * 0.0315, 0.001), DECODE, budgets, DENSE, timed("decode", 64 * 0.040))
    assert found["limit_seconds"] == pytest.approx(limit)
    assert found["meets_budget"] == (limit == 0.032)


def test_a_winner_above_its_budget_is_warned_of_with_the_ratio() -> None:
    first, warning = notes(document(told(0.032)))
    assert first.startswith("latency, decode,batch=1,context=512: guided: table says 31.20 ms, measured 32.00 ms (-2.5%)")
    assert warning.startswith(
        "WARNING: guided takes 1.032 times its latency budget when measured: 32.00 ms, and 31.00 ms a token (latency=0.8x)"
    )
    assert "0.800 times the dense model's" in warning
    assert "Ask for less (latency=30.2ms)" in warning
    assert "dense model" not in notes(document(told(0.032), dense=None))[1]


def test_a_warning_that_is_not_sure_asks_for_a_quiet_machine() -> None:
    warning = notes(document(told(0.032, 0.1)))[-1]
    assert warning.startswith("WARNING: guided takes 1.032 times")
    assert "On a quiet machine, time the kernels again" in warning
    assert "Ask for less" not in warning


def test_within_the_budget_nothing_is_warned_of() -> None:
    assert len(notes(document(told(0.030)))) == 1
    said = notes(document(told(0.0309, 0.02)))
    assert (
        said[1]
        == "note: the interval of the measured time of guided holds the budget of 31.00 ms a token (latency=0.8x): time it again to be sure"
    )
    assert notes({**document(told(0.03)), "workload": None}) == []


def test_amounts() -> None:
    assert (amount(31_144_000, "nanoseconds"), amount(98_432, "bytes")) == ("31.144 ms", "98,432 bytes")
