"""`evopress search` on planted stores: status, list, delete, and what a start that fails leaves behind."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from planted_store import PROFILES, Planted, invoke
from typer.testing import CliRunner

import evopress.cli.search as command
from evopress.api import EvopressError, NotFound, Stopped, UsageError
from evopress.api.study import Study
from evopress.store import Owner, Store


def start_run(store: Store, study_id: int) -> int:
    return store.start_run(study_id, seed=0, command="", environment={}, code_version="", owner=Owner.current())


def studies(planted: Planted) -> list[str]:
    with Store.open(planted.url) as store:
        return [study.name for study in store.studies()]


# Status and list ------------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def searched(own_store: Planted) -> Planted:
    """The planted store, where the searcher of `demo` asked for three different trials, one of them twice."""
    with Store.open(own_store.url) as store:
        study = store.find_study("demo")
        run = start_run(store, study.id)
        trials = [dict(row.trials)["kl"] for row in store.leaderboard(study="demo")][:3]
        store.record_step(study.id, "evolve", 0, trials, run_id=run)
        store.record_step(study.id, "evolve", 1, trials[1:2], generation=1, run_id=run)
        store.finish_run(run, "finished")
    return own_store


def test_status_says_what_it_counts(searched: Planted) -> None:
    text = invoke(command.app, "status", "demo", "--storage", searched.url).stdout
    assert "finished, 2 runs\n" in text
    assert "  3 different trials asked for by its searchers; those of the final comparison are not among them\n" in text
    assert "  evolve: generation 1, 4 evaluations, 128 tokens, best of its last question 0.2500 on 32 tokens\n" in text
    assert "held-out KL" in text
    assert "go on" not in text
    document = json.loads(invoke(command.app, "status", "demo", "--storage", searched.url, "--json").stdout)
    assert document["search_trials"] == 3
    assert document["tracks"][0] | {"seconds": 0} == {
        "searcher": "evolve", "generation": 1, "evaluations": 4, "tokens": 128, "seconds": 0, "last_best": pytest.approx(0.25),
        "last_tokens": 32,
    }  # fmt: skip


def test_status_of_a_study_that_was_stopped_says_how_to_go_on(own_store: Planted) -> None:
    with Store.open(own_store.url) as store:
        store.finish_run(start_run(store, store.find_study("demo").id), "stopped")
    text = invoke(command.app, "status", "demo", "--storage", own_store.url).stdout
    assert "stopped, 2 runs\n  0 different trials asked for" in text
    assert text.endswith("\ngo on: evopress search resume demo\n")


def test_list_counts_the_same(searched: Planted) -> None:
    lines = invoke(command.app, "list", "--storage", searched.url).stdout.splitlines()
    assert lines[0].endswith("  search trials  runs  state")
    assert lines[2].split()[-3:] == ["3", "2", "finished"]
    rows = json.loads(invoke(command.app, "list", "--storage", searched.url, "--json").stdout)
    assert {row["name"]: row["search_trials"] for row in rows} == {"demo": 3, "empty": 0}


# Delete ---------------------------------------------------------------------------------------------------------------------------------


def test_delete_keeps_what_was_measured(searched: Planted) -> None:
    result = invoke(command.app, "delete", "demo", "--yes", "--storage", searched.url)
    assert result.stdout == "deleted study demo; its 3 search trials and all other measurements stay in the store\n"
    assert studies(searched) == ["empty"]
    with Store.open(searched.url) as store:
        assert {row.profile for row in store.leaderboard()} == set(searched.digests.values())
        assert {row.label for row in store.leaderboard()} == {None}
    again = invoke(command.app, "delete", "demo", "--yes", "--storage", searched.url)
    assert isinstance(again.exception, NotFound)


def test_delete_as_json(own_store: Planted) -> None:
    document = json.loads(invoke(command.app, "delete", "empty", "-y", "--json", "--storage", own_store.url).stdout)
    assert (document["deleted"], document["runs"], document["search_trials"]) == ("empty", 0, 0)


@pytest.mark.parametrize("options", [[], ["--json"], ["--force"]])
def test_delete_asks_and_nobody_there_is_no_yes(own_store: Planted, options: list[str]) -> None:
    result = invoke(command.app, "delete", "demo", "--storage", own_store.url, *options)
    assert isinstance(result.exception, UsageError)
    assert str(result.exception) == (
        f"Delete study 'demo' with 1 run and {len(PROFILES)} results? Nobody is there to say yes. Say it with --yes."
    )
    assert studies(own_store) == ["demo", "empty"]


@pytest.mark.parametrize(("answer", "code", "left"), [("n", 1, ["demo", "empty"]), ("y", 0, ["empty"])])
def test_delete_asks_at_the_terminal(own_store: Planted, monkeypatch: pytest.MonkeyPatch, answer: str, code: int, left: list[str]) -> None:
    monkeypatch.setattr(command, "at_terminal", lambda: True)
    result = CliRunner().invoke(command.app, ["delete", "demo", "--storage", own_store.url], input=f"{answer}\n")
    assert result.exit_code == code
    assert "Delete study 'demo' with 1 run and" in result.stderr
    assert studies(own_store) == left


def test_delete_refuses_while_a_run_is_alive(own_store: Planted) -> None:
    with Store.open(own_store.url) as store:
        run = start_run(store, store.find_study("demo").id)
    result = invoke(command.app, "delete", "demo", "--yes", "--storage", own_store.url)
    assert isinstance(result.exception, UsageError)
    assert f"Study 'demo' is not deleted: its run {run} is going on, process " in str(result.exception)
    assert studies(own_store) == ["demo", "empty"]


# What a failing start leaves ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`execute` that makes the study and its run as the real one does, and then fails."""

    def plant(error: Exception | None, state: Any, trials: int = 0) -> None:
        def execute(study: Study, url: str, *_: object) -> None:
            with Store.open(url) as store:
                row = store.study(study.name, study.identity, study.digest)
                run = start_run(store, row.id)
                if trials:
                    known = [dict(found.trials)["kl"] for found in store.leaderboard()]
                    store.record_step(row.id, "evolve", 0, known[:trials], run_id=run)
                if state:
                    store.finish_run(run, state)
            assert error is not None
            raise error

        monkeypatch.setattr("evopress.run.execute", execute)

    return plant


@pytest.mark.parametrize(
    ("error", "state", "trials", "named", "left"),
    [
        (UsageError("planted"), "failed", 0, False, False),  # a typo: nothing is worth keeping
        (OSError("planted"), "failed", 0, False, False),
        (UsageError("planted"), "failed", 0, True, True),  # its name is somebody's
        (UsageError("planted"), "failed", 2, False, True),  # its searchers measured something
        (Stopped("planted"), "stopped", 0, False, True),  # it can be resumed
        (UsageError("planted"), None, 0, False, True),  # another process is on it
    ],
)
def test_a_start_that_fails_before_measuring_leaves_no_study_that_nobody_named(
    own_store: Planted, failing: Any, error: Exception, state: str | None, trials: int, named: bool, left: bool
) -> None:
    failing(error, state, trials)
    arguments = ["start", "--method", "drop", "--storage", own_store.url, *(["--study", "mine"] if named else [])]
    assert CliRunner().invoke(command.app, arguments).exception is error
    name = "mine" if named else Study.make({"methods": "drop"}).name
    assert studies(own_store) == ["demo", "empty"] + [name] * left


def test_an_earlier_run_that_can_be_resumed_keeps_the_study(own_store: Planted, failing: Any) -> None:
    for state in ("interrupted", "failed"):
        failing(EvopressError("planted"), state)
        invoke(command.app, "start", "--method", "drop", "--storage", own_store.url)
        assert len(studies(own_store)) == 3


# Files ----------------------------------------------------------------------------------------------------------------------------------


def test_a_folder_in_the_place_of_the_study_file(tmp_path: Path) -> None:
    result = invoke(command.app, "start", str(tmp_path), "--dry-run")
    assert isinstance(result.exception, UsageError)
    assert "is a folder, not a study file." in str(result.exception)
