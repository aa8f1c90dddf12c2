"""The ways in: `evopress.search`, `--dry-run`, `--json`, a study file, a hub id, and the measured speed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_study
import torch
from tiny_study import Answer, Tiny, Whole

import evopress
from evopress.api import Stopped
from evopress.cli import live
from evopress.events import Progress
from evopress.found import Run
from evopress.hooks.registry import Registry
from evopress.latency.runtime import choose
from evopress.models.load import pick_dtype
from evopress.recording import Interrupted
from evopress.store import Store
from evopress.workbench import remembered_dtype

Command = Callable[..., Answer]
SHORT = {"searcher": "evolve(generations=1,offspring=2,rungs=1x32)", "baselines": ("uniform",)}


def keys(tiny: Tiny, **changed: Any) -> dict[str, Any]:
    """Keywords of `evopress.search` beside model, budget and methods."""
    found = tiny_study.values(tiny, **SHORT, **changed)
    return {key: value for key, value in found.items() if key not in ("model", "budgets", "methods")}


def test_the_python_front_door(tiny: Tiny, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[Progress] = []
    monkeypatch.setattr("evopress.speed.REPEATS", 1)
    run = evopress.search(
        tiny.model, budget="bits=3.8", methods=["rtn(bits=2..4,group=32)", "drop"], dtype="float32", listen=events.append, **keys(tiny)
    )
    assert isinstance(run, Run)
    assert run.storage == tiny_study.url(home)
    text, page = str(run), run._repr_html_()
    for row in run.rows:
        assert f"\n{row.label} " in text
        assert f"<td>{row.label}</td>" in page
    assert "model at bits=3.8 (98,432 bytes) · 25 held-out documents" in text
    assert page.count("<tr>") == 4
    assert {event.phase for event in events} == {"plan", "text", "model", "bank", "search", "heldout", "speed"}

    speeds = {row.label: row.speed for row in run.rows}
    assert {label: set(found) for label, found in speeds.items()} == {
        label: {"prefill", "decode"} for label in ("dense", "uniform", "evolve")
    }
    for found in speeds.values():
        # The model has 128 positions, so the passes are shorter than those of a larger model.
        assert (found["prefill"].tokens, found["decode"].tokens) == (96, 32)
    fitting = choose("dense", (64, 64), "cpu", torch.float32, Registry.load().kernels())  # our own where there is a C compiler
    assert f"kernels, dense: {fitting.name} ×28" in text
    with Store.open(run.storage) as store:
        board = {row.label: row for row in store.leaderboard(study="tiny")}
    assert board["evolve"].decode == speeds["evolve"]["decode"].tokens_per_second

    monkeypatch.setattr("evopress.workbench.load", lambda *_: pytest.fail("the model was loaded"))
    again = evopress.search(tiny.model, budget=["bits=3.8"], methods=["rtn(bits=2..4,group=32)", "drop"], dtype="float32", **keys(tiny))
    plain = [replace(row, speed={}) for row in run.rows]
    assert [replace(row, speed={}) for row in again.rows] == plain
    for row in again.rows:
        assert {phase: found.samples for phase, found in row.speed.items()} == dict.fromkeys(("prefill", "decode"), 1)
        assert {phase: found.median_seconds for phase, found in row.speed.items()} == {
            phase: found.median_seconds for phase, found in speeds[row.label].items()
        }


def test_the_python_front_door_keeps_to_the_storage_of_the_environment(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    urls: list[str] = []

    def execute(_: object, url: str, *__: object) -> None:
        urls.append(url)
        raise Stopped("planted")

    monkeypatch.setattr("evopress.run.execute", execute)
    monkeypatch.setenv("EVOPRESS_HOME", str(tmp_path))
    given: list[dict[str, Any]] = [{}, {"home": tmp_path / "b"}, {"storage": "sqlite:///own.db"}]
    for environment in (None, "postgresql://x/y"):
        if environment:
            monkeypatch.setenv("EVOPRESS_STORAGE", environment)
        else:
            monkeypatch.delenv("EVOPRESS_STORAGE", raising=False)
        for options in given:
            with pytest.raises(Stopped):
                evopress.search(tiny.model, **options)
    homes = [tiny_study.url(tmp_path), tiny_study.url(tmp_path / "b"), "sqlite:///own.db"]
    assert urls == [*homes, "postgresql://x/y", "postgresql://x/y", "sqlite:///own.db"]


@pytest.mark.usefixtures("home", "no_model")
def test_a_dry_run_needs_no_weights(tiny: Tiny, whole: Whole, tmp_path: Path, home: Path, evopress_command: Command) -> None:
    bare = tmp_path / "model"
    shutil.copytree(tiny.model, bare)
    (bare / "model.safetensors").unlink()
    answer = evopress_command("search", "start", *tiny_study.arguments(tiny, model=str(bare)), "--dry-run", "--json")
    assert answer.code == 0, answer.err
    about = json.loads(answer.out)
    assert about["sites"] == {"block": 4, "attention": 4, "mlp": 4, "linear": 28}
    assert about["parameters"] == sum(parameter.numel() for parameter in whole.run.best._bench.model.parameters())
    (budget,) = about["budgets"]
    assert budget["limit"] == whole.run.plan.budgets[0].limit
    files = [path.stat().st_size for path in (whole.home / "bank").rglob("*.safetensors")]
    assert about["variants"] == len(files) == 28 * 6
    assert about["bank_bytes"] < sum(files) < about["bank_bytes"] + 1200 * len(files)
    text = evopress_command("search", "start", *tiny_study.arguments(tiny, model=str(bare)), "--dry-run").out
    # 122,880 weights in matrices of the blocks, 576 in norms, 19,456 in embedding and head.
    for part in ("4 block, 4 attention, 28 linear, 4 mlp", "feasible  bits=", "coverage    99.5% ", " 86.0% of all"):
        assert part in text
    assert f"{about['bank_bytes']:,} bytes" in text
    assert not home.exists()
    # What is wrong with options, text or several budgets together is told as well.
    for wrong, code in (
        ({"searcher": "evolve(rungs=2x64)"}, 2),
        ({"search_tokens": 10**6}, 2),
        ({"baselines": ("random(candidates=0)",)}, 2),
    ):
        answer = evopress_command("search", "start", *tiny_study.arguments(tiny, model=str(bare), **wrong), "--dry-run")
        assert answer.code == code, wrong
    # Without --dry-run the missing weights are missed.
    assert evopress_command("search", "start", *tiny_study.arguments(tiny, model=str(bare))).code == 5


def test_a_hub_id_is_fetched_and_a_dry_run_fetches_no_weights(
    tiny: Tiny, home: Path, evopress_command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, list[str]]] = []

    def snapshot(source: str, allow_patterns: list[str], **_: object) -> str:
        asked.append((source, allow_patterns))
        return str(tiny.model)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    arguments = tiny_study.arguments(tiny, model="org/tiny-llama", **SHORT)
    assert evopress_command("search", "start", *arguments, "--dry-run").code == 0
    infeasible = tiny_study.arguments(
        tiny, model="org/tiny-llama", **{**SHORT, "methods": ("rtn(bits=3,group=32)",), "budgets": ("bits=0.5",)}
    )
    assert evopress_command("search", "start", *infeasible).code == 3
    assert len(asked) == 2
    assert not any("*.safetensors" in patterns for _, patterns in asked)
    answer = evopress_command("search", "start", *arguments)
    assert answer.code == 0, answer.err
    assert asked[-1][0] == "org/tiny-llama"
    assert "*.safetensors" in asked[-1][1]
    assert answer.out.startswith("org/tiny-llama at bits=3.8 (98,432 bytes) · ")


def test_json_is_one_document_and_result_the_same(tiny: Tiny, whole: Whole, home: Path, tmp_path: Path, evopress_command: Command) -> None:
    shutil.copytree(whole.home, home)
    file = tmp_path / "result.json"
    answer = evopress_command("search", "start", *tiny_study.arguments(tiny), "--json", "--result", str(file))
    assert answer.code == 0
    document = json.loads(answer.out)
    assert document == json.loads(file.read_text())
    assert document["winner"] == "evolve"
    assert document["study"]["digest"] == whole.run.study.digest
    assert {row["label"]: row["kl"]["mean"] for row in document["rows"]} == {row.label: row.kl.mean for row in whole.run.rows}
    assert f"store: {tiny_study.url(home)}" in answer.err
    answer = evopress_command("search", "start", *tiny_study.arguments(tiny), "--result", str(tmp_path / "no" / "result.json"))
    assert answer.code == 5
    assert "Create it first." in answer.err
    answer = evopress_command("search", "start", *tiny_study.arguments(tiny), "--result", str(tmp_path))
    assert answer.code == 2
    assert "is a folder" in answer.err


def test_a_study_file_and_options_over_it(tiny: Tiny, home: Path, evopress_command: Command) -> None:
    home.mkdir()
    values = tiny_study.values(tiny, **SHORT)
    del values["name"]
    file = tiny_study.toml(home / "mine.toml", {**values, "stop_generations": 1})
    options = ["--budget", "bits=4.2", "--max-tokens", "200", "--dtype", "float32", "--no-speed"]
    answer = evopress_command("search", "start", str(file), *options)
    assert answer.code == 0, answer.err
    with Store.open(tiny_study.url(home)) as store:
        study = store.find_study("mine")
        assert study.definition["budgets"] == ["bits=4.2"]
        assert study.definition["searcher"] == SHORT["searcher"]
        assert store.runs(study.id)[0].environment["stops"] == {"stop_tokens": 200}


@pytest.mark.parametrize(("searcher", "baselines"), [("knapsack", ("uniform",)), ("random(candidates=4,rungs=1x64)", ("random", "greedy"))])
def test_any_searcher_may_lead(tiny: Tiny, whole: Whole, home: Path, searcher: str, baselines: tuple[str, ...]) -> None:
    shutil.copytree(whole.home / "bank", home / "bank")
    run = tiny_study.run(tiny, home, searcher=searcher, baselines=baselines)
    name = searcher.partition("(")[0]
    assert [row.label for row in run.rows] == ["dense", *(label for label in baselines if label != name), name]
    assert run.best.profile == run.rows[-1].profile


def test_a_rival_without_options_gets_the_stages_of_the_searcher(tiny: Tiny, whole: Whole) -> None:
    """Equal evaluations on equal tokens: `random` runs the rungs and the candidates a round of `evolve`."""
    evolve = {(o, p): (g, s) for (track, o, p), (g, s, _) in whole.contents.steps.items() if track == "evolve"}
    rival = {(o, p): (g, s) for (track, o, p), (g, s, _) in whole.contents.steps.items() if track.startswith("random@")}
    spent = {row.label: row.search_tokens for row in whole.run.rows}
    assert 0 < spent["evolve"] - spent["random"] <= 2 * 160 + 4 * 64
    assert {stage for _, stage in rival.values()} == {stage for _, stage in evolve.values()} == {0, 1}
    assert max(position for _, position in rival) == 3


def test_only_drops(tiny: Tiny, home: Path) -> None:
    run = tiny_study.run(tiny, home, methods=("drop",), budgets=("params=0.75x",), **SHORT)
    assert run.rows[-1].cost.params <= run.plan.budgets[0].limit
    assert {level.method for _, level in run.best.profile} == {"dense", "drop", "absent"}
    assert not list(home.rglob("*.safetensors"))


def test_perplexity_as_the_fitness(tiny: Tiny, whole: Whole, home: Path) -> None:
    shutil.copytree(whole.home / "bank", home / "bank")
    run = tiny_study.run(tiny, home, fitness="perplexity", **SHORT)
    assert run.gain is not None
    uniform, winner = run.rows[1], run.rows[-1]
    assert run.gain.difference == pytest.approx(winner.nll.mean - uniform.nll.mean)


def test_a_rival_that_ends_by_what_it_spends_shows_no_number_of_generations(tiny: Tiny, home: Path) -> None:
    events: list[Progress] = []
    searcher = "guided(slope_tokens=32,looks=2x32|1x96,local_looks=2x32|1x96,start_tokens=32,probe_tokens=32,rounds=1)"
    own = keys(tiny) | {"searcher": searcher, "baselines": ("evolve(offspring=2,rungs=1x32)",), "listen": events.append}
    evopress.search(tiny.model, budget="bits=3.8", methods=["rtn(bits=2..4,group=32)"], dtype="float32", speed=False, **own)
    rival = [event for event in events if event.phase == "search" and event.text == "evolve"]
    assert rival
    assert {event.total for event in rival} == {0}


# Small parts ----------------------------------------------------------------------------------------------------------------------------


def test_ctrl_c_in_python_is_told_and_resumes(tiny: Tiny, whole: Whole, tmp_path: Path) -> None:
    shutil.copytree(whole.home / "bank", tmp_path / "bank")
    left = 4

    def listen(event: Progress) -> None:
        nonlocal left
        left -= event.phase == "search"
        if not left:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted, match="Resume: evopress search resume tiny"):
        tiny_study.run(tiny, tmp_path, listen=listen)
    left = -1
    tiny_study.run(tiny, tmp_path, listen=listen)
    assert tiny_study.contents(tiny_study.url(tmp_path)) == whole.contents


def test_two_processes_agree_on_the_type_that_was_measured_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(device: str, clock: Any) -> torch.dtype:
        """Meanwhile another process measures the other way and finishes first."""
        monkeypatch.setattr("evopress.precision.pick_dtype", lambda *_: torch.bfloat16)
        assert remembered_dtype(tmp_path, device, clock) == torch.bfloat16
        return torch.float32

    monkeypatch.setattr("evopress.precision.pick_dtype", slow)
    assert remembered_dtype(tmp_path, "cpu", lambda: 0.0) == torch.bfloat16
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == 1
    assert pick_dtype("cpu", lambda: 0.0) == torch.float32


def test_a_line_of_progress() -> None:
    event = Progress("search", "evolve", 7, 20, 0.5, 0.25, 30, 4000, 10.0, 130.0, 0)
    line = (
        "search: evolve generation 7/20 · incumbent 0.5000 · gain over uniform +0.2500 · 30 evaluations (3.0/s) · 4,000 tokens · ETA 2m10s"
    )
    assert str(event) == line
    assert "(3.0/s, 12 from the store)" in str(replace(event, cached=12))
    assert str(Progress("bank", "layers.0", 3, 9)) == "bank: layers.0 (3/9)"


def test_plain_progress_is_sparse_and_ends_with_the_last() -> None:
    lines: list[str] = []
    now = [0.0]
    listen = live.plain(lines.append, lambda: now[0])
    for number in range(1, 41):
        now[0] = number
        listen(Progress("bank", f"site {number}", number, 40))
    assert lines == [f"bank: site {number} ({number}/40)" for number in (1, 11, 21, 31, 40)]
