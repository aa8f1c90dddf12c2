"""How fast candidates are measured: what is counted, on a tiny model; the speeds themselves are nobody's to assert.

There need be no GPU: that it is waited for, profiled and asked for its memory is seen with torch's functions planted.
"""

from __future__ import annotations

import json
import random
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny_study
from tiny_study import Tiny
from typer.testing import CliRunner

from evopress import throughput
from evopress.api import NotFound, StorageError
from evopress.api.study import Study
from evopress.cli import app
from evopress.hooks.registry import Registry
from evopress.plan import make_plan
from evopress.report.bench_document import KEYS, is_bench
from evopress.report.leaderboard import leaderboard_markdown
from evopress.store import Store
from evopress.texts import Texts
from evopress.throughput import matmul_share, measure_throughput, multiplied_params, neighbours, peak_bytes
from evopress.workbench import Workbench


def bench(tiny: Tiny, home: Path) -> Workbench:
    registry = Registry.load()
    plan = make_plan(tiny_study.study(tiny), registry, home)
    return Workbench(plan, Texts(plan, lambda _: None), registry, Store.open(tiny_study.url(home)), home, lambda _: None, dtype="float32")


def test_it_counts_tokens_reuse_and_rounds_and_keeps_nothing(tiny: Tiny, tmp_path: Path) -> None:
    made = bench(tiny, tmp_path)
    found = measure_throughput(made, candidates=24, tokens=64, rounds=3)
    assert found.candidates == 24
    assert found.tokens == 24 * made.texts.first("search", 64).tokens
    assert found.bare.n == found.engine.n == found.ratio.n == 3
    for ratio, bare, engine in zip(found.ratio.samples, found.bare.samples, found.engine.samples, strict=True):
        assert ratio == pytest.approx(bare / engine)
    assert 0 < found.reused < 1, "neighbours in order share prefixes"
    assert 0 < found.matmul < 1
    assert found.floor_seconds > 0
    assert found.peak_bytes > 10**7


def test_an_embedding_is_looked_up_and_a_head_multiplied(tiny: Tiny, tmp_path: Path) -> None:
    made = bench(tiny, tmp_path)
    model: Any = made.model
    assert multiplied_params(made) == sum(weight.numel() for weight in model.parameters()) - model.get_input_embeddings().weight.numel()
    model.set_output_embeddings(model.get_input_embeddings())  # a tied head still multiplies
    assert multiplied_params(made) == sum(weight.numel() for weight in model.parameters())


def test_neighbours_are_distinct_and_within_the_budget(tiny: Tiny, tmp_path: Path) -> None:
    plan = bench(tiny, tmp_path).plan
    profiles = neighbours(plan.space, plan.budgets, 9, random.Random(0))
    assert len({profile.digest for profile in profiles}) == 9
    assert all(budget.allows(plan.space.cost(profile)) for profile in profiles for budget in plan.budgets)


@pytest.fixture
def arguments(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The command line of a small bench."""
    monkeypatch.setenv("EVOPRESS_HOME", str(tmp_path))
    study = tmp_path / "tiny.toml"
    keys = {key: list(value) if isinstance(value, tuple) else value for key, value in tiny_study.values(tiny).items()}
    study.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in keys.items()))
    return ["search", "bench", str(study), "--tokens", "64", "--candidates", "3", "--rounds", "2", "--dtype", "float32"]


def test_the_command_prints_speeds_beside_their_floor_and_writes_them(arguments: list[str], tmp_path: Path) -> None:
    results = tmp_path / "results"
    results.mkdir()
    answer = CliRunner().invoke(app, [*arguments, "--result", str(results / "bench.json")])
    assert answer.exit_code == 0, answer.output
    lines = ("floor: a bare pass", "bare forward pass with logits", "candidates measured", "of a bare pass, with")
    for line in lines:
        assert line in answer.stdout
    assert [path.name for path in results.iterdir()] == ["bench.json"]
    document = json.loads((results / "bench.json").read_text())
    assert is_bench(document)
    assert document.keys() == KEYS
    assert document["study"]["digest"] == Study.read(Path(arguments[2])).digest
    assert document["environment"]["device"] == "cpu"
    assert document["environment"]["arithmetic"].startswith("float32/cpu")
    assert len(document["bare"]["samples"]) == len(document["engine"]["samples"]) == 2
    page = leaderboard_markdown(results)
    for line in (*lines, "# How fast candidates are measured", "[bench.json](bench.json)"):
        assert line in page
    printed = json.loads(CliRunner().invoke(app, [*arguments, "--json"]).stdout)
    assert printed.keys() == document.keys()
    assert (printed["candidates"], printed["tokens"]) == (3, document["tokens"])
    assert (printed["environment"], printed["study"]) == (document["environment"], document["study"])


def test_what_cannot_be_measured_or_written_is_refused(arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "The search set of the study holds" in str(CliRunner().invoke(app, [*arguments, "--tokens", "100000"]).exception)
    nowhere = CliRunner().invoke(app, [*arguments, "--result", str(tmp_path / "absent" / "bench.json")])
    assert isinstance(nowhere.exception, NotFound)
    assert "is a folder" in str(CliRunner().invoke(app, [*arguments, "--result", str(tmp_path)]).exception)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("evopress.report.files.write_whole", full)
    unwritten = CliRunner().invoke(app, [*arguments, "--result", str(tmp_path / "bench.json")])
    assert isinstance(unwritten.exception, StorageError)
    assert "No space left on device" in str(unwritten.exception)
    assert not (tmp_path / "bench.json").exists()


def test_results_readme_names_every_key_of_a_bench() -> None:
    text = (Path(__file__).resolve().parents[2] / "results" / "README.md").read_text(encoding="utf-8")
    section = text.split("## What the file of a bench holds")[1].split("\n## ")[0]
    for key in KEYS | {"arithmetic", "samples", "median", "low", "high", "coverage"}:
        assert f"`{key}`" in section, f"results/README.md does not explain {key} of a bench"


# A GPU ----------------------------------------------------------------------------------------------------------------------------------


def test_a_gpu_is_waited_for_before_and_after_what_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    monkeypatch.setattr("torch.cuda.synchronize", lambda device: events.append(f"wait {device}"))

    def clock() -> float:
        events.append("clock")
        return float(len(events))

    for device, whole in (("cuda:1", ["wait cuda:1", "clock", "work", "wait cuda:1", "clock"]), ("cpu", ["clock", "work", "clock"])):
        events.clear()
        made: Any = SimpleNamespace(device=device, clock=clock)
        assert throughput._timed(lambda: events.append("work"), made) == len(whole) - whole.index("clock") - 1
        assert events == whole


def test_memory_is_that_of_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.max_memory_allocated", lambda device: {"cuda:1": 12345}[device])
    assert peak_bytes("cuda:1") == 12345
    assert peak_bytes("cpu") > 10**7


def row(key: str, cpu: float, gpu: float, place: str = "CPU") -> SimpleNamespace:
    return SimpleNamespace(key=key, self_cpu_time_total=cpu, self_device_time_total=gpu, device_type=SimpleNamespace(name=place))


def test_on_a_gpu_the_share_is_of_the_time_of_kernels_each_counted_once() -> None:
    rows = [
        row("aten::mm", 1.0, 60.0),
        row("aten::_flash_attention_forward", 1.0, 10.0),
        row("aten::add", 2.0, 30.0),
        row("cudaLaunchKernel", 6.0, 0.0),
        row("some_gemm_kernel", 0.0, 60.0, "CUDA"),
        row("vectorized_elementwise_kernel", 0.0, 40.0, "CUDA"),
    ]
    assert matmul_share(rows, gpu=True) == pytest.approx(0.7)
    assert matmul_share(rows, gpu=False) == pytest.approx(0.2)
    assert matmul_share([], gpu=True) == 0.0


def test_the_profiler_watches_the_gpu_and_the_gpu_is_waited_for_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[Any] = []

    @contextmanager
    def profile(activities: list[Any]) -> Any:
        events.append([activity.name for activity in activities])
        yield SimpleNamespace(key_averages=lambda: [row("aten::mm", 1.0, 3.0), row("aten::add", 1.0, 1.0)])
        events.append("end")

    monkeypatch.setattr("torch.profiler.profile", profile)
    monkeypatch.setattr("torch.cuda.synchronize", lambda device: events.append("wait"))
    assert throughput._matmul_share(lambda: events.append("work"), "cuda") == 0.75
    assert events == [["CPU", "CUDA"], "work", "wait", "end"]
    events.clear()
    assert throughput._matmul_share(lambda: events.append("work"), "cpu") == 0.5
    assert events == [["CPU"], "work", "end"]
