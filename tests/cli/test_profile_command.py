"""`evopress profile show` and `evaluate` on a planted store."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from planted_store import MODEL, PROFILES, Planted, invoke, sites

import evopress.cli.profile as command
from evopress.api import Cost, NotFound, Profile
from evopress.api.study import Study
from evopress.store import Store, TaskScore


def show(planted: Planted, *arguments: str) -> str:
    result = invoke(command.app, "show", "--storage", planted.url, *arguments)
    assert result.exit_code == 0, result.output
    return str(result.stdout)


def test_header_and_map(planted: Planted) -> None:
    text = show(planted, "demo")
    assert f"profile     {planted.digests['evolve']}" in text
    assert "size        19,900 bytes, 30,000 parameters, 3.500 bits a weight" in text
    assert "held as     demo/evolve" in text
    assert "kl          0.2500 [0.2250, 0.2625] over 2 held-out documents" in text
    assert "perplexity  9.49 [9.25, 9.61] over 2 held-out documents (2.2500 nats/token)" in text
    assert "arc_easy    acc 0.6100 ±0.0200 (n=500, 0-shot)" in text
    assert text[text.index("depth") :].splitlines() == [
        "depth       0  1  2   mean bits",
        "self_attn   ·  x  ·           -",
        "q_proj      4     3       2.583",
        "down_proj   2 60  ·       8.571",
        "",
        "00-99  per cent zeros, sparsegpt ×1",
        "    2  gptq(bits=2,group=64) ×1",
        "    3  gptq(bits=3,group=64) ×1",
        "    4  gptq(bits=4,group=64) ×1",
        "    x  dropped ×1",
        "    ·  dense ×1",
        "blank  under a dropped parent",
    ]


def test_speed_names_the_kernel(planted: Planted) -> None:
    assert "decode   40.0 tokens/s on cpu (batch 1, 1 tokens, 1 threads), kernels: torch-int4" in " ".join(
        show(planted, "demo/uniform").split("  ")
    )


@pytest.mark.parametrize("label", list(PROFILES))
def test_study_label_and_digest_name_the_same_profile(planted: Planted, label: str) -> None:
    digest = planted.digests[label]
    assert show(planted, f"demo/{label}") == show(planted, digest) == show(planted, digest[:10].upper())


def test_text_reads_back(planted: Planted) -> None:
    assert Profile.parse(show(planted, "demo", "--text")) == PROFILES["evolve"]


def test_json(planted: Planted) -> None:
    document = json.loads(show(planted, "demo", "--json"))
    assert document["profile"] == planted.digests["evolve"]
    assert document["fitness"]["kl"] == pytest.approx({"mean": 0.25, "low": 0.225, "high": 0.2625, "documents": 2})
    assert document["map"]["depths"] == [0, 1, 2]
    assert document["map"]["rows"][0] == {"role": "self_attn", "kind": "attention", "cells": ["·", "x", "·"], "mean_bits": None}
    assert document["levels"]["model.layers.1.self_attn.q_proj"] == "absent"
    assert document["tasks"][0]["value"] == 0.61
    assert json.loads(show(planted, "demo/uniform", "--json"))["speed"]["decode"]["kernel"] == "torch-int4"


@pytest.mark.parametrize(
    ("name", "code", "text"),
    [
        ("demmo", 5, "Did you mean 'demo'?"),
        ("demmo/uniform", 5, "Did you mean 'demo'?"),
        ("demo/unifrm", 5, "Did you mean 'uniform'? Known: dense, evolve, knapsack, uniform."),
        ("empty", 5, "has no winner yet. Let it finish: evopress search resume empty"),
        ("ffff0000", 5, "No profile 'ffff0000'"),
        ("abc", 5, "4 or more digits of a digest"),
    ],
)
def test_unknown_names(planted: Planted, name: str, code: int, text: str) -> None:
    result = invoke(command.app, "show", name, "--storage", planted.url)
    assert result.exception.exit_code == code
    assert text in str(result.exception)


def test_a_missing_store_is_not_made(tmp_path: Path) -> None:
    result = invoke(command.app, "show", "demo", "--storage", f"sqlite:///{tmp_path / 'no.db'}")
    assert isinstance(result.exception, NotFound)
    assert not (tmp_path / "no.db").exists()


def test_a_name_that_is_a_study_and_a_digest_is_ambiguous(own_store: Planted) -> None:
    start = own_store.digests["uniform"][:6]
    with Store.open(own_store.url) as store:
        study = Study.make({"name": start})
        store.study(study.name, study.identity, study.digest)
    result = invoke(command.app, "show", start, "--storage", own_store.url)
    assert result.exception.exit_code == 2
    assert f"Write {start}/LABEL or more digits" in str(result.exception)
    assert own_store.digests["uniform"] in show(own_store, own_store.digests["uniform"][:7])


def test_an_ambiguous_digest_lists_the_choices(own_store: Planted) -> None:
    with Store.open(own_store.url) as store:
        other = store.save_model("twin", "f" * 64, {}, sites(), 30_000)
        store.save_profile(other, PROFILES["uniform"], Cost(1, 1), 3.0)
    result = invoke(command.app, "show", own_store.digests["uniform"], "--storage", own_store.url)
    assert result.exception.exit_code == 2
    assert "of tiny" in str(result.exception)
    assert "of twin" in str(result.exception)


def test_a_profile_that_was_calibrated_twice_is_named_with_its_bank(own_store: Planted) -> None:
    digest = own_store.digests["uniform"]
    with Store.open(own_store.url) as store:
        model_id = store.save_model("tiny", MODEL, {}, sites(), 30_000)
        store.save_profile(model_id, PROFILES["uniform"], Cost(777, 30_000), 3.0, "beef" * 16)
    ambiguous = invoke(command.app, "show", digest, "--storage", own_store.url).exception
    assert "DIGEST@BANK" in str(ambiguous)
    assert "777 bytes" in show(own_store, f"{digest[:8]}@beef")
    assert invoke(command.app, "show", f"{digest[:8]}@dead", "--storage", own_store.url).exception.exit_code == 5


def test_two_answers_at_once_are_refused(planted: Planted) -> None:
    assert invoke(command.app, "show", "demo", "--text", "--json", "--storage", planted.url).exception.exit_code == 2


SCORES = [TaskScore("mine", "acc", 0.5, 0.05, 100, 2, "none", "1"), TaskScore("mine", "perplexity", 12.25, None, 100)]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Stand-ins for the heavy parts; what they were asked is returned."""
    import evopress.fitness.tasks
    import evopress.reopening

    seen: dict[str, Any] = {}

    def open_profile(store: Store, row: Any, home: Path, listen: Any, device: str, dtype: str) -> tuple[str, str]:
        seen.update(profile=row.profile.digest, home=home, device=device, dtype=dtype)
        return "model", "tokenizer"

    def evaluate(model: str, tokenizer: str, tasks: Any, dirs: Any, limit: Any, shots: Any, batch: int) -> list[TaskScore]:
        seen.update(model=model, tokenizer=tokenizer, tasks=tasks, dirs=dirs, limit=limit, shots=shots, batch=batch)
        return SCORES

    def check(tasks: Any, *_: Any) -> None:
        assert "profile" not in seen, "the model was opened before its tasks were checked"
        seen["checked"] = tasks

    seen["check"] = evopress.fitness.tasks.check
    monkeypatch.setattr(evopress.fitness.tasks, "check", check)
    monkeypatch.setattr(evopress.reopening, "open_profile", open_profile)
    monkeypatch.setattr(evopress.fitness.tasks, "evaluate", evaluate)
    return seen


def test_evaluate_stores_and_prints(own_store: Planted, asked: dict[str, Any], tmp_path: Path) -> None:
    result = invoke(
        command.app,
        "evaluate",
        "demo/uniform",
        "--tasks",
        "mine, other",
        "--task-dir",
        str(tmp_path),
        "--limit",
        "100",
        "--num-fewshot",
        "2",
        "--storage",
        own_store.url,
    )
    assert result.exit_code == 0, result.output
    assert asked["profile"] == own_store.digests["uniform"]
    assert asked["checked"] == ["mine", "other"]
    assert (asked["model"], asked["tokenizer"], asked["device"], asked["dtype"]) == ("model", "tokenizer", None, None)
    assert (asked["tasks"], asked["dirs"], asked["limit"], asked["shots"], asked["batch"]) == (["mine", "other"], [tmp_path], 100, 2, 8)
    table = [line.split() for line in result.stdout.splitlines()]
    assert table[1] == ["task", "metric", "filter", "value", "stderr", "n", "shots"]
    assert table[3] == ["mine", "acc", "none", "0.5000", "0.0500", "100", "2"]
    assert table[4] == ["mine", "perplexity", "none", "12.2500", "-", "100", "0"]
    with Store.open(own_store.url) as store:
        assert store.task_scores(own_store.ids["uniform"]) == SCORES
    assert "acc 0.5000 ±0.0500 (n=100, 2-shot)" in show(own_store, "demo/uniform")


def test_evaluate_json(own_store: Planted, asked: dict[str, Any]) -> None:
    result = invoke(command.app, "evaluate", "demo", "--tasks", "mine", "--json", "--storage", own_store.url)
    document = json.loads(result.stdout)
    assert document["profile"] == own_store.digests["evolve"]
    assert document["scores"][0] == {
        "task": "mine",
        "metric": "acc",
        "filter": "none",
        "value": 0.5,
        "stderr": 0.05,
        "samples": 100,
        "shots": 2,
        "version": "1",
    }


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["demo", "--tasks", " , "], 2, "names no task"),
        (["demo", "--tasks", "a", "--task-dir", "absent"], 5, "Task folder absent does not exist."),
        (["demo/none", "--tasks", "a"], 5, "Unknown label 'none'"),
        (["demo", "--tasks", "absent.jsonl"], 5, "Task file absent.jsonl does not exist."),
        (["demo", "--tasks", "arc_easy,arc_esay"], 2, "Unknown task 'arc_esay'. Did you mean 'arc_easy'"),
    ],
)
def test_evaluate_refuses_before_anything_is_loaded(
    planted: Planted, asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch, arguments: list[str], code: int, text: str
) -> None:
    """With the real check of the tasks, on a small part of lm-eval's list: indexing all of it takes half a minute."""
    import lm_eval.tasks

    from evopress.fitness import tasks

    arc, whole = Path(lm_eval.tasks.__file__).parent / "arc", tasks._index
    monkeypatch.setattr(tasks, "_index", lambda harness, folders, hub: whole(harness, [*([arc] if hub else []), *folders], hub=False))
    monkeypatch.setattr(tasks, "check", asked.pop("check"))
    result = invoke(command.app, "evaluate", *arguments, "--storage", planted.url)
    assert result.exception.exit_code == code
    assert text in str(result.exception)
    assert not asked
