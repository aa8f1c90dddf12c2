"""`evopress kernels`: the list, and a tiny bench whose times land in the store."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from planted_store import invoke

from evopress.api import UsageError
from evopress.cli.kernels import app, read_shape
from evopress.latency import bench as engine
from evopress.store import Store

pytestmark = pytest.mark.usefixtures("own_home")


def test_list_tells_packed_from_stand_in() -> None:
    lines = invoke(app, "list").stdout.splitlines()
    assert lines[0].split() == ["name", "kind", "devices", "formats"]
    by_name = {line.split()[0]: line for line in lines[2:] if line}
    assert "stand-in: dequantised" in by_name["dequantised"]
    assert by_name["torch-int4"].split()[1:] == ["packed", "cpu", "int[2-4]-g(32|64|128|256)"]
    entries = {entry["name"]: entry for entry in json.loads(invoke(app, "list", "--json").stdout)}
    assert entries["dequantised"]["packed"] is False
    assert "cpu" in entries["dense"]["devices"]


@pytest.mark.parametrize(("text", "shape"), [("16x64", (16, 64)), (" 1536X576 ", (1536, 576)), ("8×9", (8, 9))])
def test_shapes(text: str, shape: tuple[int, int]) -> None:
    assert read_shape(text) == shape


@pytest.mark.parametrize("text", ["16", "0x4", "4x-1", "axb", "4x4x4"])
def test_bad_shapes(text: str) -> None:
    with pytest.raises(UsageError, match="Write rows out x columns in"):
        read_shape(text)


@pytest.fixture
def quick_floor(monkeypatch: pytest.MonkeyPatch) -> engine.Floor:
    """The floor takes seconds to measure; here it is 10 GB/s and 100 GFLOP/s."""
    floor = engine.Floor(1e10, {"float32": 1e11, "bfloat16": 1e11})
    monkeypatch.setattr(engine, "measure_floor", lambda *_, **__: floor)
    return floor


def run_bench(url: str, *more: str) -> Any:
    return invoke(
        app,
        "bench",
        "--shape",
        "32x64",
        "--tokens",
        "1",
        "--tokens",
        "4",
        "--format",
        "int4-g64",
        "--format",
        "bitmask",
        "--dtype",
        "float32",
        "--rounds",
        "7",
        "--storage",
        url,
        *more,
    )


def test_bench_prints_and_stores(tmp_path: Path, quick_floor: engine.Floor) -> None:
    url = f"sqlite:///{tmp_path / 'k.db'}"
    result = run_bench(url, "--json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert [(row["format"], row["tokens"]) for row in document["rows"]] == [
        (format, tokens) for tokens in (1, 4) for format in ("dense", "int4-g64", "bitmask")
    ]
    for row in document["rows"]:
        assert row["low_seconds"] <= row["median_seconds"] <= row["high_seconds"]
        assert row["samples"] == 7
        moved = row["weight_bytes"] + row["tokens"] * 96 * 4
        assert row["gigabytes_per_second"] == pytest.approx(moved / row["median_seconds"] / 1e9)
        assert row["floor_share"] == pytest.approx(row["floor_seconds"] / row["median_seconds"])
    assert document["rows"][0]["ratio_to_dense"]["median"] == 1
    assert document["rows"][2]["kernel"] == "no packed kernel: dequantised"
    with Store.open(url, create=False) as store:
        stored = store.latencies(phase="kernel")
    assert [(row.kernel, row.format, row.shape, row.tokens, row.median_seconds) for row in stored] == [
        (row["kernel"], row["format"], (32, 64), row["tokens"], row["median_seconds"]) for row in document["rows"]
    ]
    assert stored[0].environment["dtype"] == "float32"
    assert stored[0].environment["torch"] == document["environment"]["torch"]
    assert stored[0].profile_id is None
    assert stored[0].tokens_per_second == pytest.approx(1 / stored[0].median_seconds)


def test_bench_table(tmp_path: Path, quick_floor: engine.Floor) -> None:
    lines = run_bench(f"sqlite:///{tmp_path / 'k.db'}").stdout.splitlines()
    assert lines[1] == "floor: 10.0 GB/s read, 100 GFLOP/s in float32, 100 GFLOP/s in bfloat16"
    assert "x dense" in lines[3]
    assert lines[5].split()[:5] == ["32x64", "float32", "1", "dense", "dense"]
    assert "bitmask   no packed kernel: dequantised" in lines[7]


def test_seconds_stop_before_the_next_shape(tmp_path: Path, quick_floor: engine.Floor) -> None:
    result = run_bench(f"sqlite:///{tmp_path / 'k.db'}", "--shape", "16x64", "--seconds", "0", "--json")
    assert {tuple(row["shape"]) for row in json.loads(result.stdout)["rows"]} == {(32, 64)}
    assert "not measured: 16x64" in result.stderr


def test_unknown_type_and_format(tmp_path: Path, quick_floor: engine.Floor) -> None:
    result = invoke(app, "bench", "--dtype", "float16")
    assert result.exception.exit_code == 2
    result = invoke(app, "bench", "--shape", "8x8", "--format", "int9-g8", "--storage", f"sqlite:///{tmp_path / 'k.db'}")
    assert result.exception.exit_code == 2
    assert "No kernel runs the format 'int9-g8' of --format. Known, as regular expressions: absent, bitmask, dense," in str(
        result.exception
    )
    result = invoke(app, "bench", "--shape", "99999x999999")
    assert "Shape 99999x999999 has 99,998,900,001 weights. At most 1,073,741,824 are timed." in str(result.exception)
    assert not (tmp_path / "k.db").exists(), "something was measured first"
