"""The same command again: finished, longer, under another definition; and stopped by Ctrl-C or SIGTERM."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_study
from fork_server import Forks
from tiny_study import Answer, Tiny, Whole

from evopress.store import Owner, Store

Command = Callable[..., Answer]


@pytest.fixture
def finished(whole: Whole, home: Path) -> Path:
    """A copy of the home of the finished study."""
    shutil.copytree(whole.home, home)
    return home


@pytest.mark.usefixtures("no_model")
def test_a_finished_study_runs_again_without_the_model(tiny: Tiny, whole: Whole, finished: Path) -> None:
    again = tiny_study.run(tiny, finished)
    assert again.rows == whole.run.rows
    assert again.best == whole.run.best
    assert whole.run.outcome.totals.cached == 0
    assert again.outcome.totals.cached == again.outcome.totals.evaluations > 0
    assert tiny_study.contents(tiny_study.url(finished)) == whole.contents


def test_a_longer_stop_continues_and_ends_where_one_long_run_ends(tiny: Tiny, whole: Whole, home: Path, evopress_command: Command) -> None:
    assert evopress_command("search", "start", *tiny_study.arguments(tiny, stop_generations=2)).code == 0
    store = tiny_study.url(home)
    short = tiny_study.contents(store)
    assert max(generation for (track, *_), (generation, *_) in short.steps.items() if track == "evolve") == 2

    resumed = evopress_command("search", "resume", "tiny", "--dtype", "float32", "--no-speed", "--generations", "6", "--json")
    assert resumed.code == 0, resumed.err
    long = tiny_study.contents(store)
    assert short.trials.items() <= long.trials.items()
    assert short.steps.items() <= long.steps.items()
    evolve = {key: step for key, step in long.steps.items() if key[0] == "evolve"}
    assert evolve == {key: step for key, step in whole.contents.steps.items() if key[0] == "evolve"}
    assert long.results == whole.contents.results
    document = json.loads(resumed.out)
    assert document["search"]["evaluations"] == whole.run.outcome.totals.evaluations
    assert document["rows"][-1]["profile"] == whole.run.best.profile.digest


@pytest.mark.usefixtures("no_model")
def test_resume_keeps_the_stops_of_the_last_run(tiny: Tiny, home: Path, evopress_command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def execute(study: Any, *_: object) -> None:
        seen.append(study)
        raise AssertionError("far enough")

    study = tiny_study.study(tiny, stop_tokens=300)
    with Store.open(tiny_study.url(home)) as store:
        row = store.study(study.name, study.identity, study.digest)
        store.start_run(row.id, seed=0, command="", environment={"stops": study.stops}, code_version="", owner=Owner.current())
    monkeypatch.setattr("evopress.run.execute", execute)
    for options, stops in (([], {"stop_tokens": 300}), (["--generations", "4"], {"stop_generations": 4})):
        with pytest.raises(AssertionError, match="far enough"):
            evopress_command("search", "resume", "tiny", *options)
        assert seen[-1].stops == stops
        assert seen[-1].digest == study.digest


@pytest.mark.usefixtures("no_model", "finished")
def test_status_and_list_tell_what_is_stored(whole: Whole, evopress_command: Command) -> None:
    status = json.loads(evopress_command("search", "status", "tiny", "--json").out)
    assert (status["state"], status["runs"], status["last_error"]) == ("finished", 1, "")
    assert {row["label"]: row["profile"] for row in status["results"]} == {row.label: row.profile.digest for row in whole.run.rows}
    tracks = {track["searcher"]: track for track in status["tracks"]}
    assert tracks["evolve"]["evaluations"] == whole.run.outcome.totals.evaluations
    assert tracks["evolve"]["tokens"] == whole.run.outcome.totals.tokens
    text = evopress_command("search", "status", "tiny").out
    assert "study tiny" in text
    assert "finished" in text
    assert whole.run.best.profile.digest[:12] in text

    listed = json.loads(evopress_command("search", "list", "--json").out)
    assert [(study["name"], study["state"], study["budgets"]) for study in listed] == [("tiny", "finished", ["bits=3.8"])]
    assert "bits=3.8" in evopress_command("search", "list").out


@pytest.mark.usefixtures("no_model", "finished")
def test_an_unknown_study_is_not_found(evopress_command: Command) -> None:
    for verb in ("status", "resume"):
        answer = evopress_command("search", verb, "tinny")
        assert answer.code == 5
        assert "Unknown study 'tinny' in the store." in answer.err
        assert "Did you mean 'tiny'? Known: tiny." in answer.err


@pytest.mark.usefixtures("no_model", "finished")
def test_another_definition_under_the_same_name_lists_the_keys(tiny: Tiny, evopress_command: Command) -> None:
    answer = evopress_command("search", "start", *tiny_study.arguments(tiny, budgets=("bits=4.0",), seed=3))
    assert answer.code == 2
    assert "budgets: ['bits=3.8'] then, ['bits=4.0'] now; seed: 0 then, 3 now." in answer.err
    assert "--study NAME" in answer.err


@pytest.mark.parametrize(
    ("number", "code", "state", "advice"),
    [
        (signal.SIGINT, 130, "interrupted", "Resume: evopress search resume tiny"),
        (signal.SIGTERM, 75, "stopped", "Run the same command again to resume."),
    ],
)
def test_a_signal_checkpoints_and_the_same_study_goes_on(
    tiny: Tiny, whole: Whole, forks: Forks, tmp_path: Path, number: int, code: int, state: str, advice: str
) -> None:
    home, out = tmp_path / "home", tmp_path / "out.txt"
    pid = forks.start(argv=["search", "start", *tiny_study.arguments(tiny)], home=str(home), out=str(out), hold=9)
    left = 9
    while left:
        left -= forks.report(pid).get("event", {}).get("phase") == "search"
    os.kill(pid, number)
    assert forks.finish(pid)[-1] == {"exit": code}
    text = out.read_text()
    assert text.startswith("error: ")
    assert advice in text
    assert "Traceback" not in text
    with Store.open(tiny_study.url(home)) as store:
        study = store.find_study("tiny")
        assert (study.state, study.runs) == (state, 1)
    partial = tiny_study.contents(tiny_study.url(home))
    assert partial.claims == 0
    assert partial.trials
    assert not partial.results

    argv = shlex.split(advice.partition("evopress ")[2]) or ["search", "start", *tiny_study.arguments(tiny)]
    options = [] if argv[1] == "start" else ["--dtype", "float32", "--no-speed"]
    pid = forks.start(argv=[*argv, *options], home=str(home), out=str(out))
    assert forks.finish(pid)[-1] == {"exit": 0}
    assert tiny_study.contents(tiny_study.url(home)) == whole.contents
