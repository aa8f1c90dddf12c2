"""Speed studies from the command line on the tiny model: measured, judged, drawn, and refused where their files or results are wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_study
import tiny_times
from evopress_native.toolchain import compiler
from tiny_study import Answer, Tiny

from evopress.latency.bench import Floor
from evopress.latency.runtime import TURNS

Command = Callable[..., Answer]
CONTEXT = "context=64"


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evopress.speed.REPEATS", 1)
    monkeypatch.setitem(TURNS, "decode", 4)
    monkeypatch.setattr("evopress.timing.STUDY_ROUNDS", 1)
    monkeypatch.setattr("evopress.timing.STUDY_SECONDS", 0.0)
    monkeypatch.setattr("evopress.timing.LARGE_BYTES", 2**20)
    monkeypatch.setattr("evopress.timing.measure_floor", lambda *_, **__: Floor(1e10, {"float32": 1e11, "bfloat16": 1e11}))


def claim(metric: str, of: str, comparator: str, goal: float, **more: Any) -> dict[str, Any]:
    return {"says": f"{metric} of {of}", "metric": metric, "of": of, "comparator": comparator, "goal": goal, **more}


def frontier(tiny: Tiny, folder: Path, **changed: Any) -> Path:
    keys = tiny_study.values(tiny, name="front", searcher="evolve(generations=1,offspring=2,rungs=1x32)", fresh=True)
    keys = {key: value for key, value in keys.items() if key not in ("budgets", "baselines")}
    winners = {"fast": f"latency=0.9x,{CONTEXT}", "small": ["size=0.8x"]}
    claims = [
        claim("time", "fast", "<=", 1000.0), claim("kl", "fast", "<", 1000.0, than="uniform", within=1000.0),
        claim("kl", "fast", "<", 1000.0, than="size", within=1000.0),
    ]  # fmt: skip
    return tiny_study.toml(folder / "studies" / "front.toml", {**keys, "winners": winners, "claims": claims, **changed})


def test_a_frontier_is_searched_timed_judged_and_drawn(tiny: Tiny, home: Path, tmp_path: Path, evopress_command: Command) -> None:
    tiny_times.plant(tiny_study.url(home), tiny, home, workload=f"decode,{CONTEXT}")
    file, result = frontier(tiny, tmp_path), tmp_path / "front.json"
    done = evopress_command("study", "run", str(file), "--dtype", "float32", "--result", str(result))
    assert done.code == 0, done.err
    document = json.loads(result.read_text())
    kinds = {row["label"]: row["kind"] for row in document["rows"]}
    assert (kinds["dense"], kinds["fast"], kinds["small"]) == ("dense", "latency", "size")
    assert [label for label, kind in kinds.items() if kind == "uniform"] == [
        f"uniform {name}(bits={bits},group=32)" for name in ("gptq", "rtn") for bits in (2, 3, 4)
    ]
    rows = {row["label"]: row for row in document["rows"]}
    assert rows["dense"]["kl"]["mean"] == pytest.approx(0, abs=1e-6)
    assert rows["fast"]["search_evaluations"] > 0 == rows["dense"]["search_evaluations"]
    assert all(len(row["seconds"]) == 8 and len(row["kl"]["values"]) == len(document["heldout"]["weights"]) for row in rows.values())
    assert sum(one["sites"] for one in rows["dense"]["kernels"]) == 28
    whole = [row for row in rows.values() if "drop" not in row["levels"]]  # of others it is not told which sublayers are gone
    assert len(whole) >= 7
    for row in whole:
        assert row["estimated_seconds"] == pytest.approx(by_hand(row, document["table"]), rel=1e-4), "whole nanoseconds a cell"

    judged = evopress_command("study", "claims", str(file), "--result", str(result), "--json")
    assert (judged.code, [one["state"] for one in json.loads(judged.out)["claims"]]) == (0, ["holds"] * 3)
    drawn = evopress_command("study", "compare", str(file), "--result", str(result), "--out", str(tmp_path / "pictures"))
    assert drawn.code == 0, drawn.err
    assert (tmp_path / "pictures" / "front.png").read_bytes().startswith(b"\x89PNG")
    assert "uniform gptq(bits=2,group=32)" in drawn.out

    wrong = frontier(tiny, tmp_path, claims=[claim("time", "fast", "<=", 1e-9)])
    failed = evopress_command("study", "claims", str(wrong), "--result", str(result))
    assert failed.code == 6
    assert "1 of 1 claims of front are not shown to hold" in failed.err
    other = frontier(tiny, tmp_path, winners={"fast": f"latency=0.8x,{CONTEXT}"}, claims=[])
    assert "is the result of another study" in evopress_command("study", "compare", str(other), "--result", str(result)).err


def by_hand(row: dict[str, Any], table: dict[str, Any]) -> float:
    """Cells and parts that the document names, summed over what its row names."""
    cells = {(cell["format"], tuple(cell["shape"])): cell["median"] for cell in table["cells"]}
    linear = sum(one["sites"] * table["factors"][one["format"]] * cells[one["format"], tuple(one["shape"])] for one in row["kernels"])
    return float(
        linear + table["parts"]["model"]["median"] + 4 * sum(table["parts"][kind]["median"] for kind in ("block", "attention", "mlp"))
    )


def test_a_kernel_study_is_measured_and_judged(tiny: Tiny, home: Path, tmp_path: Path, evopress_command: Command) -> None:
    kernels = {
        "shapes": ["32x64"], "formats": ["int4-g64", "bitmask@0.5"], "dtype": "float32", "workload": f"decode,{CONTEXT}",
        "model": str(tiny.model),
        "table_formats": ["int4-g32"], "profiles": 2,
    }  # fmt: skip
    claims = [claim("times", "int4-g64", ">", 0.0, than="dense"), claim("table", "", "<=", 1e9), claim("floor", "bitmask@0.5", ">=", 0.0)]
    file = tiny_study.toml(tmp_path / "studies" / "mine.toml", {"name": "mine", "kernels": kernels, "claims": claims})
    (tmp_path / "results").mkdir()
    done = evopress_command("study", "run", str(file))
    assert done.code == 0, done.err
    document = json.loads((tmp_path / "results" / "mine.json").read_text())
    assert {(row["format"], row["device"]) for row in document["rows"]} == {(name, "cpu") for name in ("dense", "int4-g64", "bitmask@0.5")}
    assert {duel["format"] for duel in document["against_peers"]} <= {"int4-g64", "bitmask@0.5"}
    assert len(document["check"]) == 2
    assert {row["format"] for row in document["table"]} == {"dense", "int4-g32"}
    judged = evopress_command("study", "claims", str(file))
    assert judged.code == (0 if compiler() else 6), judged.err
    shown = evopress_command("study", "compare", str(file), "--out", str(tmp_path / "none"))
    assert "int4-g64" in shown.out
    assert not (tmp_path / "none").exists(), "nothing is drawn of kernels"
    assert evopress_command("study", "run", str(file), "--dtype", "bfloat16").code == 2


def test_a_kernel_study_of_a_model_that_is_not_there_is_refused_before_it_times(tmp_path: Path, evopress_command: Command) -> None:
    kernels = {"shapes": ["8x8"], "formats": ["int4-g8"], "model": "./nowhere"}
    file = tiny_study.toml(tmp_path / "studies" / "mine.toml", {"name": "mine", "kernels": kernels})
    answer = evopress_command("study", "run", str(file), "--result", str(tmp_path / "mine.json"))
    assert answer.code == 5
    assert "no folder './nowhere'" in answer.err
    assert "timing" not in answer.err


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"kernels": 3}, "Key 'kernels' in"), ({"kernels": {}}, "is no table with entries"), ({"winners": []}, "Key 'winners' in"),
        ({"winners": {"fast": 3}}, "The budgets of winner 'fast'"), ({"winners": {"dense": "latency=0.8x"}}, "is called dense or uniform"),
        ({"winners": {"fast": "latency=0.8x"}, "claims": 3}, "Claims in"),
        ({"winners": {"fast": "latency=0.8x"}, "budgets": ["size=1x"]}, "has budgets beside [winners]"),
        ({"winners": {"fast": "latency=0.8x"}, "claims": [claim("time", "fats", "<", 1.0)]}, "fats"),
        ({"winners": {"fast": "latency=0.8x"}, "claims": [claim("kl", "fast", "<", 0.0, than="small", within=0.8)]}, "small"),
        ({"winners": {"fast": "latency=0.8x"}, "claims": [claim("kl", "fast", "<", 0.0, than="size")]}, "without a time"),
        ({"kernels": {"shapes": ["8x8"], "formats": ["int4-g8"]}, "claims": [claim("floor", "int3-g8", ">", 0.0)]}, "int3-g8"),
        ({"kernels": {"shapes": ["8x8"], "formats": ["int4-g8"]}, "claims": [claim("time", "int4-g8", "<", 1.0)]}, "metric"),
        ({"kernels": {"shapes": ["8x8"], "formats": ["int4-g8"]}, "claims": [claim("peers", "", ">", 1.0)]}, "has no 'of'"),
        ({"kernels": {"shapes": ["8x8"], "formats": ["int4-g8"]}, "claims": [claim("times", "int4-g8", ">", 1.0)]}, "has no 'than'"),
        ({"winners": {"fast": "latency=0.8x"}, "claims": [claim("floor", "fast", ">", 1.0)]}, "metric"),
        ({"kernels": {"shapes": ["8x8"], "formats": ["int44-g8"]}}, "int44-g8"),
        ({"kernels": {"shapes": ["8x8"], "formats": ["int4-g8"], "workload": "decoding"}}, "decoding"),
    ],
)  # fmt: skip
def test_a_file_that_is_wrong_is_refused(keys: dict[str, Any], said: str, tiny: Tiny, tmp_path: Path, evopress_command: Command) -> None:
    common = {} if "kernels" in keys else {"methods": ["rtn(bits=4,group=32)"], "model": str(tiny.model)}
    file = tiny_study.toml(tmp_path / "wrong.toml", {"name": "wrong", **common, **keys})
    answer = evopress_command("study", "run", str(file), "--result", str(tmp_path / "out.json"))
    assert answer.code == 2, answer.err
    assert said in answer.err


def test_a_result_that_is_none_is_told(tiny: Tiny, tmp_path: Path, evopress_command: Command) -> None:
    file, result = frontier(tiny, tmp_path), tmp_path / "front.json"
    assert evopress_command("study", "claims", str(file), "--result", str(result)).code == 5
    result.write_text("{")
    answer = evopress_command("study", "claims", str(file), "--result", str(result))
    assert (answer.code, "cannot be read as JSON" in answer.err) == (2, True)
    assert evopress_command("study", "claims", str(frontier(tiny, tmp_path, claims=[])), "--result", str(result)).code == 5
