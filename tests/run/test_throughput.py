"""How fast candidates are measured: what is counted, on a tiny model; the speeds themselves are nobody's to assert."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import tiny_study
from tiny_study import Tiny
from typer.testing import CliRunner

from evopress.cli import app
from evopress.hooks.registry import Registry
from evopress.plan import make_plan
from evopress.store import Store
from evopress.texts import Texts
from evopress.throughput import measure_throughput, neighbours
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


def test_neighbours_are_distinct_and_within_the_budget(tiny: Tiny, tmp_path: Path) -> None:
    plan = bench(tiny, tmp_path).plan
    profiles = neighbours(plan.space, plan.budgets, 9, random.Random(0))
    assert len({profile.digest for profile in profiles}) == 9
    assert all(budget.allows(plan.space.cost(profile)) for profile in profiles for budget in plan.budgets)


def test_the_command_prints_speeds_beside_their_floor(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVOPRESS_HOME", str(tmp_path))
    study = tmp_path / "tiny.toml"
    keys = {key: list(value) if isinstance(value, tuple) else value for key, value in tiny_study.values(tiny).items()}
    study.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in keys.items()))
    arguments = ["search", "bench", str(study), "--tokens", "64", "--candidates", "3", "--rounds", "2", "--dtype", "float32"]
    answer = CliRunner().invoke(app, arguments)
    assert answer.exit_code == 0, answer.output
    for line in ("floor: a bare pass", "bare forward pass with logits", "candidates measured", "of a bare pass, with"):
        assert line in answer.stdout
    document = json.loads(CliRunner().invoke(app, [*arguments, "--json"]).stdout)
    assert (document["candidates"], document["tokens"] % 3) == (3, 0)
    refused = CliRunner().invoke(app, ["search", "bench", str(study), "--tokens", "100000"])
    assert refused.exit_code != 0
