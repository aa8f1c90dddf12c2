"""`evopress kernels`: the list, and a tiny bench whose times land in the store."""

from __future__ import annotations

import json
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import tiny_study
import torch
from evopress_native.toolchain import compiler
from planted_store import invoke

from evopress.api import NotFound, NumericalError, UsageError
from evopress.cli.kernels import app, read_shape
from evopress.hooks.registry import Registry
from evopress.latency import bench as engine
from evopress.latency.runtime import TURNS, choose, label
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


def test_list_says_what_our_own_kernels_need(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evopress_native.native.compiler", lambda: None)
    by_name = {line.split()[0]: line for line in invoke(app, "list").stdout.splitlines() if line}
    for name in ("native-int", "native-bitmask"):
        assert "none; install a C compiler (apt install gcc) or set CC; only for x86-64 with AVX2 under Linux" in by_name[name]
    entries = {entry["name"]: entry for entry in json.loads(invoke(app, "list", "--json").stdout)}
    assert entries["native-int"]["devices"] == []


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
    monkeypatch.setattr("evopress.timing.measure_floor", lambda *_, **__: floor)
    return floor


def chosen(format: str) -> str:
    """The kernel that is timed here: our own where there is a C compiler."""
    return label(choose(format, (32, 64), "cpu", torch.float32, Registry.load().kernels()))


DENSE = sorted({"dense", chosen("dense")})
"""Every kernel of dense weights is timed, torch's own first."""


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
        "--most-seconds",
        "0",
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
        (format, tokens) for tokens in (1, 4) for format in (*("dense" for _ in DENSE), "int4-g64", "bitmask@0.5")
    ]
    for row in document["rows"]:
        assert row["low_seconds"] <= row["median_seconds"] <= row["high_seconds"]
        assert row["samples"] == 7
        moved = row["weight_bytes"] + row["tokens"] * 96 * 4
        assert row["gigabytes_per_second"] == pytest.approx(moved / row["median_seconds"] / 1e9)
        assert row["floor_share"] == pytest.approx(row["floor_seconds"] / row["median_seconds"])
    assert document["rows"][0]["ratio_to_dense"]["median"] == 1
    assert [row["kernel"] for row in document["rows"]] == 2 * [*DENSE, chosen("int4-g64"), chosen("bitmask")]
    duels = [(duel["format"], duel["kernel"], duel["peer"]) for duel in document["against_peers"]]
    assert duels == [("dense", "native-dense", "dense")] * 2 * (len(DENSE) - 1)
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
    assert re.search(rf" bitmask@0.5 +{chosen('bitmask')} ", lines[6 + len(DENSE)])
    assert any("the fastest first" in line for line in lines) == (len(DENSE) > 1)


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


# Peers ----------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(compiler() is None, reason="no C compiler: none of ours runs")
def test_peers_are_timed_beside_ours_and_a_duel_is_printed(tmp_path: Path, quick_floor: engine.Floor) -> None:
    lines = run_bench(f"sqlite:///{tmp_path / 'k.db'}", "--peers", "--result", str(tmp_path / "rows.json")).stdout.splitlines()
    document = json.loads((tmp_path / "rows.json").read_text())
    kernels = [row["kernel"] for row in document["rows"] if (row["format"], row["tokens"]) == ("int4-g64", 1)]
    assert kernels[:2] == ["native-int", "torch-int4"]
    assert {(duel["tokens"], duel["kernel"]) for duel in document["against_peers"] if duel["format"] == "int4-g64"} == {
        (tokens, "native-int") for tokens in (1, 4)
    }
    first = {(duel["format"], duel["tokens"]): duel for duel in reversed(document["against_peers"])}
    others = sum(row["format"] == "int4-g64" and not row["kernel"].startswith("native-") for row in document["rows"])
    assert sum(duel["format"] == "int4-g64" for duel in document["against_peers"]) == others >= 2
    for duel in first.values():
        here = [row for row in document["rows"] if (row["format"], row["tokens"]) == (duel["format"], duel["tokens"])]
        assert not any(row["format"].startswith("gguf") for row in document["rows"]), "64 columns hold no block of 256"
        others = [row for row in here if not row["kernel"].startswith("native-")]
        assert duel["peer"] == min(others, key=lambda row: row["median_seconds"])["kernel"]
        assert duel["times_as_fast"]["low"] <= duel["times_as_fast"]["median"] <= duel["times_as_fast"]["high"]
        assert duel["samples"] == 7
    header = next(number for number, line in enumerate(lines) if "times as fast" in line)
    assert lines[header - 2].startswith("ours against every other kernel of the same bits, the fastest first")
    printed = [line.split()[2:5] for line in lines[header + 2 : header + 2 + len(document["against_peers"])]]
    assert printed == [[str(duel["tokens"]), duel["format"], duel["kernel"]] for duel in document["against_peers"]]


@pytest.mark.skipif(compiler() is None or find_spec("xllamacpp") is None, reason="no C compiler or no llama.cpp (extra: peers)")
def test_llama_cpps_own_blocks_of_the_same_bits_are_peers(tmp_path: Path, quick_floor: engine.Floor) -> None:
    command = [
        "bench",
        "--shape",
        "32x256",
        "--format",
        "int2-g64",
        "--tokens",
        "1",
        "--dtype",
        "float32",
        "--rounds",
        "1",
        "--most-seconds",
        "0",
    ]
    document = json.loads(invoke(app, *command, "--peers", "--json", "--storage", f"sqlite:///{tmp_path / 'k.db'}").stdout)
    by_format = {row["format"]: row["kernel"] for row in document["rows"]}
    assert by_format["gguf-q2_k"] == "ggml"
    times = {(row["kernel"], row["format"]): row["median_seconds"] for row in document["rows"] if row["format"] != "dense"}
    duel = next(duel for duel in document["against_peers"] if duel["format"] == "int2-g64")
    kernel, format = min((key for key in times if key[0] != "native-int"), key=lambda key: times[key])
    assert duel["peer"] == (kernel if format == "int2-g64" else f"{kernel} {format}")


@pytest.mark.parametrize("option", ["--large", "--peers"])
def test_large_shapes_come_beside_the_demos_and_are_read_from_memory(
    option: str, tmp_path: Path, quick_floor: engine.Floor, monkeypatch: pytest.MonkeyPatch
) -> None:
    from evopress import pricing, timing

    monkeypatch.setattr(timing, "DEMO_SHAPES", ((8, 64),))
    monkeypatch.setattr(timing, "LARGE_SHAPES", ((16, 64),))
    monkeypatch.setattr(timing, "LARGE_BYTES", pricing.WORKING_SET_BYTES + 1)
    quick, url = ("--rounds", "1", "--most-seconds", "0"), f"sqlite:///{tmp_path / 'k.db'}"
    # Rounds differ in number, as they do where one format is known sooner than another.
    counts = iter([1, 2, 3, 4])
    plain = timing.bench_kernels
    monkeypatch.setattr(timing, "bench_kernels", lambda *about: plain(*about[:6], next(counts), *about[7:]))
    said = invoke(app, "bench", option, "--format", "int4-g64", "--format", "int8-g64", *quick, "--storage", url, "--json")
    assert said.exit_code == 0, said.output
    samples = [(row["format"], tuple(row["shape"]), row["samples"]) for row in json.loads(said.stdout)["rows"]]
    assert set(samples) == {
        *((format, (8, 64), 1) for format in ("dense", "int4-g64", "int8-g64")), ("dense", (16, 64), 2), ("int4-g64", (16, 64), 2),
        ("dense", (16, 64), 3), ("int8-g64", (16, 64), 3),
    }  # fmt: skip
    assert {duel["samples"] for duel in json.loads(said.stdout)["against_peers"]} == ({1, 2, 3} if compiler() else set())
    with Store.open(url, create=False) as store:
        found = {row.shape: row.environment["working_set_bytes"] for row in store.latencies(phase="kernel")}
        assert found == {(8, 64): pricing.WORKING_SET_BYTES, (16, 64): pricing.WORKING_SET_BYTES + 1}
        assert {row.tokens for row in store.latencies(phase="kernel")} == {1}
        assert {cell.shape for cell in pricing.read_table(store, "cpu", "bfloat16").cells} == {(8, 64)}
        assert not pricing.read_table(store, "cpu", "float32").cells


def test_formats_are_timed_apart_with_the_blocks_that_they_are_compared_with() -> None:
    from evopress.timing import families

    formats = ["dense", "int2-g64", "bitmask", "int4-g64", "int7-g64", "gguf-q2_k", "gguf-q4_k", "gguf-q6_k"]
    assert families(formats) == [["int2-g64", "gguf-q2_k"], ["bitmask"], ["int4-g64", "gguf-q4_k"], ["int7-g64"], ["gguf-q6_k"]]
    assert families(["dense"]) == [["dense"]]


def test_a_bench_waits_for_another_timing_and_says_so_once(
    tmp_path: Path, quick_floor: engine.Floor, monkeypatch: pytest.MonkeyPatch
) -> None:
    from contextlib import contextmanager

    @contextmanager
    def holding(store: Store, work: str, owner: Any, *, sleep: Any) -> Any:
        assert work == f"timing on {owner.host}"
        sleep(0.0)
        sleep(0.0)
        yield

    monkeypatch.setattr(Store, "holding", holding)
    result = run_bench(f"sqlite:///{tmp_path / 'k.db'}")
    assert result.exit_code == 0, result.output
    assert result.stderr.count("another process is timing on this machine") == 1


# A model's table ------------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four blocks of width 64 and 96."""
    return tiny_study.make(tmp_path_factory.mktemp("tiny")).model


def fill(model: Path, url: str, *more: str) -> Any:
    """Its table for decoding, with a format that fits one of its four shapes only, and a bitmask without its share."""
    formats = ("--format", "int4-g96", "--format", "bitmask")
    quick = ("--dtype", "float32", "--rounds", "2", "--most-seconds", "0")
    return invoke(app, "bench", "--workload", "batch=2,context=16", "-m", str(model), *formats, *quick, "--storage", url, *more)


def test_a_models_table_is_filled_checked_and_carried_to_another_store(tmp_path: Path, model: Path, quick_floor: engine.Floor) -> None:
    from evopress.pricing import read_table

    url, other, file = f"sqlite:///{tmp_path / 'k.db'}", f"sqlite:///{tmp_path / 'other.db'}", tmp_path / "table.json"
    result = fill(model, url, "--check", "2", "--json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["workload"] == "decode,batch=2,context=16"
    timed = {(row["format"], *row["shape"]) for row in document["rows"]}
    shapes = {(32, 64), (64, 64), (96, 64), (64, 96)}
    count = len(document["rows"]) + 4 + 3
    assert timed == {(format, *shape) for format in ("dense", "bitmask@0.5") for shape in shapes} | {("int4-g96", 64, 96)}
    assert {row["tokens"] for row in document["rows"]} == {2}
    assert list(document["parts"]) == ["attention", "mlp", "block", "model"]
    assert list(document["within"]) == ["dense", "int4-g96", "bitmask@0.5"]
    assert all(one["samples"] == TURNS["decode"] for one in (*document["parts"].values(), *document["within"].values()))
    errors = [one["estimated_seconds"] / one["median_seconds"] - 1 for one in document["check"]]
    assert [one["error"] for one in document["check"]] == pytest.approx(errors)
    assert document["check_median_error"] == pytest.approx(sum(map(abs, errors)) / 2)

    assert invoke(app, "export", str(file), "--storage", url).stdout == f"{count} timings written to {file}\n"
    assert invoke(app, "import", str(file), "--storage", other).stdout == f"{count} timings added, 0 known already\n"
    assert invoke(app, "import", str(file), "--storage", other).stdout == f"0 timings added, {count} known already\n"
    with Store.open(url) as store, Store.open(other) as copy:
        assert read_table(copy, "cpu", "float32") == read_table(store, "cpu", "float32")
        assert len(read_table(copy, "cpu", "float32").cells) == 9


@pytest.mark.parametrize(
    ("whole", "format", "shape"),
    [(True, "int4-g32", ""), (False, "int4-g32", "32x96"), (False, "int4-g80", "32x80")],
    ids=["a model's table", "single matrices", "a format that does not fit the check's shape"],
)
def test_a_kernel_that_computes_something_else_is_in_no_table(
    whole: bool, format: str, shape: str, tmp_path: Path, model: Path, quick_floor: engine.Floor, monkeypatch: pytest.MonkeyPatch
) -> None:
    from evopress_kernels.dequantised import DequantisedKernel
    from evopress_kernels.torch_int4 import TorchInt4Kernel

    class Wrong(DequantisedKernel):
        name, packed = "wrong", True

        def supports(self, format: str, *about: Any) -> bool:
            return format.startswith("int") and super().supports(format, *about)

        def run(self, x: Any, packed: Any) -> Any:
            return 2 * super().run(x, packed)

    class Broken(TorchInt4Kernel):
        name = "broken"

        formats = ("int4-g.*",)

        def supports(self, format: str, *about: Any) -> bool:
            return format.startswith("int")

        def pack(self, variant: Any, dtype: Any) -> Any:
            raise ArithmeticError("no")

    plain = Registry.kernels
    monkeypatch.setattr(Registry, "kernels", lambda registry: [Wrong(), Broken(), *plain(registry)])
    url, quick = f"sqlite:///{tmp_path / 'k.db'}", ("--dtype", "float32", "--rounds", "1", "--most-seconds", "0", "--tokens", "1")
    single = ("bench", "--shape", shape, "--format", format, "--peers", *quick, "--storage", url)
    result = fill(model, url, "--format", format, "--peers") if whole else invoke(app, *single)
    assert result.exit_code == 0, result.output
    assert re.search(f"left out, since it does not compute its weights: kernel 'wrong' at {format}", result.stderr)
    assert "left out, since it does not compute its weights: broken: ArithmeticError: no" in result.stderr
    with Store.open(url, create=False) as store:
        assert not {"wrong", "broken"} & {row.kernel for row in store.latencies(phase="kernel")}


@pytest.mark.skipif(compiler() is None, reason="no C compiler: none of ours runs")
def test_a_models_table_holds_every_kernel_that_is_no_peer(tmp_path: Path, model: Path, quick_floor: engine.Floor) -> None:
    url = f"sqlite:///{tmp_path / 'k.db'}"
    assert fill(model, url, "--format", "int4-g32").exit_code == 0
    with Store.open(url, create=False) as store:
        found = {row.kernel for row in store.latencies(phase="kernel") if row.format == "int4-g32"}
    assert {"native-int", "torch-int4"} <= found
    known = {kernel.name: kernel for kernel in Registry.load().kernels()}
    assert not any(known[name].peer or known[name].rounding for name in found)


def test_parts_and_check_are_printed(tmp_path: Path, model: Path, quick_floor: engine.Floor) -> None:
    printed = fill(model, f"sqlite:///{tmp_path / 'k.db'}", "--check", "1", "--format", "bitmask@0.5").stdout
    assert re.search(rf"^model: [\d.]+ µs \([\d.]+-[\d.]+, n {TURNS['decode']}\)$", printed, re.MULTILINE)
    assert re.search(r"^a random profile: [\d.]+ ms by the table, [\d.]+ ms run \([+-][\d.]+%\)$", printed, re.MULTILINE)
    assert re.search(r"^median error of the table's sum over 1 profiles: [\d.]+%$", printed, re.MULTILINE)


ROW = {"kernel": "k", "device": "cpu", "phase": "kernel", "batch": 1, "tokens": 1, "threads": 1, "samples": 3, "median_seconds": 2.0,
       "low_seconds": 1.0, "high_seconds": 3.0, "tokens_per_second": 0.5, "format": "dense", "shape": [2, 3]}  # fmt: skip


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "holds no timings: Expecting property name"),
        ("[]", "holds no timings"),
        ("{}", "holds no timings: key 'latencies' is missing"),
        (json.dumps({"latencies": [{}]}), "holds no timings: key 'shape' is missing"),
        (json.dumps({"latencies": [{"shape": [1, 1]}]}), "missing 11 required positional arguments"),
        (json.dumps({"latencies": [{**ROW, "speed": 3}]}), "unexpected keyword argument 'speed'"),
        (json.dumps({"latencies": [{**ROW, "shape": [2]}]}), "a shape is two numbers, not [2]"),
        (json.dumps({"latencies": [ROW, {**ROW, "median_seconds": "fast"}]}), "median_seconds is 'fast', no number"),
        (json.dumps({"latencies": [{**ROW, "tokens": None}]}), "tokens is None, no number"),
        (json.dumps({"latencies": [{**ROW, "environment": 3}]}), "an environment is a table, not 3"),
        (json.dumps({"latencies": [{**ROW, "phase": "part"}]}), "holds no timings: key 'workload' is missing"),
        (
            json.dumps({"latencies": [{**ROW, "phase": "part", "environment": {"workload": "decode"}}]}),
            "holds no timings: key 'model' is missing",
        ),
        (json.dumps({"latencies": [{**ROW, "phase": "part", "environment": {"workload": "walk", "model": "m"}}]}), "walk"),
        ("\xff\xfe", "holds no timings"),
    ],
)
def test_a_broken_file_is_named_and_adds_nothing(tmp_path: Path, text: str, reason: str) -> None:
    file, url = tmp_path / "table.json", f"sqlite:///{tmp_path / 'k.db'}"
    file.write_bytes(text.encode("latin-1"))
    result = invoke(app, "import", str(file), "--storage", url)
    assert isinstance(result.exception, UsageError), result.exception
    assert str(result.exception).startswith(f"{file} ")
    assert reason in str(result.exception)
    assert str(result.exception).endswith("Write one with: evopress kernels export FILE.")
    assert not (tmp_path / "k.db").exists()


def test_a_file_that_is_not_there_or_not_possible(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'k.db'}"
    gone = invoke(app, "import", str(tmp_path / "gone.json"), "--storage", url)
    assert isinstance(gone.exception, NotFound)
    assert str(gone.exception) == f"File {tmp_path / 'gone.json'} does not exist. Write one with: evopress kernels export FILE."
    folder = invoke(app, "import", str(tmp_path), "--storage", url)
    assert isinstance(folder.exception, UsageError)
    assert "Is a directory" in str(folder.exception)
    (tmp_path / "table.json").write_text(json.dumps({"latencies": [ROW, {**ROW, "low_seconds": 2.5}]}))
    spread = invoke(app, "import", str(tmp_path / "table.json"), "--storage", url)
    assert isinstance(spread.exception, NumericalError)
