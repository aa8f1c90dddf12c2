"""Whole contests on the tiny model: what is measured, what is kept, killed and resumed, and what a study run finds of it again."""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import tiny_contest
import tiny_study
from fork_server import Forks
from tiny_study import Tiny

from evopress.api import InfeasibleBudget, NotFound, UsageError
from evopress.contest import FIRST_MARK, SPACING, replay
from evopress.events import Progress
from evopress.recording import Interrupted
from evopress.report.contest_document import adopt, final_profile, packed, read_document, runs_of, write_document
from evopress.store import Store, TrialKey

Document = dict[str, Any]
SMALL: dict[str, Any] = {"entrants": {"uniform": "uniform", "random": "random(rungs=1x64,candidates=4)"}, "tokens": 600}


class Held(NamedTuple):
    """An uninterrupted contest: its document, its home, everything stored, and the documents saved on the way."""

    document: Document
    home: Path
    contents: tiny_study.Contents
    saved: list[Document]


@pytest.fixture(scope="module")
def held(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Held:
    """The standard contest, with a clock that stands still; tests only read its home."""
    home = tmp_path_factory.mktemp("held")
    saved: list[Document] = []
    document = tiny_contest.run(tiny, home, save=lambda made: saved.append({**made, "runs": list(made["runs"])}))
    return Held(document, home, tiny_study.contents(tiny_study.url(home)), saved)


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[TrialKey]:
    """The key of every evaluation that is taken while the test runs."""
    found: list[TrialKey] = []
    put = Store.put_trial

    def told(store: Store, key: TrialKey, trial: Any, **about: Any) -> Any:
        found.append(key)
        return put(store, key, trial, **about)

    monkeypatch.setattr(Store, "put_trial", told)
    return found


def comparable(document: Document) -> Document:
    """Without what depends on the moment: the bank's seconds and the commit (another change may be made while tests run)."""
    runs = [{key: value for key, value in run.items() if key not in ("commit", "seconds", "marks")} for run in document["runs"]]
    marks = [[{**mark, "seconds": 0} for mark in run["marks"]] for run in document["runs"]]
    return {**document, "runs": runs, "marks": marks, "bank": {**document["bank"], "seconds": 0}}


def test_every_entrant_runs_with_every_seed_within_its_tokens(held: Held) -> None:
    found = [(run["label"], run["seed"]) for run in held.document["runs"]]
    # What asks nothing is run once; the rest with both seeds.
    assert found == [("uniform", 0), ("knapsack", 0), ("evolve", 0), ("evolve", 1), ("random", 0), ("random", 1)]
    for run in held.document["runs"]:
        assert run["tokens"] <= run["stop_tokens"]
        assert run["stop_tokens"] == (4096 if run["label"] == "random" else 8192)
        assert run["reason"] == ("finished" if run["label"] in ("uniform", "knapsack") else "tokens")
        assert run["environment"]["arithmetic"].startswith("float32/cpu")
    evolve = [run for run in held.document["runs"] if run["label"] == "evolve"]
    assert evolve[0]["final"] != evolve[1]["final"], "seeds differ"


def test_marks_are_spaced_and_end_at_the_end(held: Held) -> None:
    for run in held.document["runs"]:
        marks = run["marks"]
        assert (marks[-1]["tokens"], marks[-1]["evaluations"], marks[-1]["seconds"]) == (run["tokens"], run["evaluations"], run["seconds"])
        assert set(run["profiles"]) == {mark["profile"] for mark in marks}
        between = [mark["tokens"] for mark in marks[:-1]]
        assert all(tokens >= FIRST_MARK for tokens in between)
        due = [int(math.log(tokens / FIRST_MARK, SPACING)) for tokens in between]
        assert len(set(due)) == len(due), "at most one mark a step"
        profiles = [mark["profile"] for mark in marks[:-1]]
        assert all(a != b for a, b in pairwise(profiles))
        assert final_profile(held.document, run).digest.startswith(marks[-1]["profile"])
        for values in run["profiles"].values():
            assert len(values) == len(held.document["heldout"]["weights"]) == len(held.document["heldout"]["documents"])
    assert any(len(run["marks"]) > 1 for run in held.document["runs"])


def test_the_values_are_those_of_the_store(held: Held) -> None:
    with Store.open(tiny_study.url(held.home), create=False) as store:
        results = {result.label: result for result in store.results()}
        assert set(results) == {"uniform", "knapsack", "evolve@0", "evolve@1", "random@0", "random@1"}
        board = {(row.profile, row.slices["kl"]): row.trials["kl"] for row in store.leaderboard(slice=held.document["heldout"]["slice"])}
        for run in held.document["runs"]:
            profile = final_profile(held.document, run).digest
            values, weights = store.document_values([board[profile, held.document["heldout"]["slice"]]]).popitem()[1]
            assert run["profiles"][run["marks"][-1]["profile"]] == pytest.approx(values, rel=1e-6)
            assert list(weights) == held.document["heldout"]["weights"]


def test_it_is_saved_after_every_run_and_the_bank_is_told(held: Held, tiny: Tiny) -> None:
    assert [len(made["runs"]) for made in held.saved] == [1, 2, 3, 4, 5, 6, 6]
    assert [made["runs"][-1]["label"] for made in held.saved[:3]] == ["uniform", "knapsack", "evolve"], "all entrants with one seed first"
    assert held.saved[3]["runs"][-1]["label"] == "random"
    bank = held.document["bank"]
    assert bank["calibration_tokens"] >= 256
    assert bank["bytes"] > 0
    assert bank["seconds"] == 0.0, "the clock stands still, and yet every site was timed"
    assert held.document["contest"]["digest"] == tiny_contest.contest(tiny).digest


@pytest.mark.usefixtures("no_model")
def test_the_same_call_again_measures_nothing(held: Held, tiny: Tiny) -> None:
    assert comparable(tiny_contest.run(tiny, held.home)) == comparable(held.document)
    assert comparable(tiny_contest.run(tiny, held.home, latest=lambda: held.document)) == comparable(held.document)
    assert tiny_study.contents(tiny_study.url(held.home)).trials == held.contents.trials


@pytest.mark.usefixtures("no_model")
def test_a_replay_makes_the_document_from_the_store(held: Held, tiny: Tiny, tmp_path: Path) -> None:
    contest, url = tiny_contest.contest(tiny), tiny_study.url(held.home)
    still = {"dtype": "float32", "clock": lambda: 0.0}
    assert comparable(replay(contest, url, held.home, **still)) == comparable(held.document)
    # An entrant that never ran is left out, and nothing is measured for it.
    more = tiny_contest.contest(tiny, entrants={**tiny_contest.ENTRANTS, "longer": "evolve(generations=9,offspring=3,rungs=1x64)"})
    found = replay(more, url, held.home, **still)
    assert runs_of(found, more, "longer") == {}
    assert len(found["runs"]) == 6
    with pytest.raises(NotFound):
        replay(contest, tiny_study.url(tmp_path), tmp_path, **still)


def test_finished_runs_of_the_document_are_kept_on_another_store(held: Held, tiny: Tiny, tmp_path: Path, taken: list[TrialKey]) -> None:
    part = {**held.document, "runs": [run for run in held.document["runs"] if run["seed"] == 0]}
    found = tiny_contest.run(tiny, tmp_path, latest=lambda: part, only=["random"])
    assert [(run["label"], run["seed"]) for run in found["runs"]] == [*((run["label"], 0) for run in part["runs"]), ("random", 1)]
    assert runs_of(found, tiny_contest.contest(tiny), "random")[1]["final"] == held.document["runs"][-1]["final"]
    assert len(taken) == held.document["runs"][-1]["evaluations"] + 1 + len(found["runs"][-1]["profiles"]), "one for the gate"
    assert found["bank"]["seconds"] == held.document["bank"]["seconds"]


@pytest.mark.usefixtures("no_model")
def test_runs_of_older_code_are_kept_and_named(held: Held, tiny: Tiny) -> None:
    old = {**held.document, "runs": [{**run, "commit": "0123abc" if run["seed"] else run["commit"]} for run in held.document["runs"]]}
    told: list[str] = []
    tiny_contest.run(tiny, held.home, latest=lambda: old, listen=lambda event: told.append(event.text))
    (kept,) = [text for text in told if "are kept" in text]
    assert kept.startswith("6 runs are kept from ")
    assert "0123abc" in kept
    assert "another --result runs them anew" in kept


def test_a_changed_entrant_alone_is_run_again(held: Held, tiny: Tiny, tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    write_document(held.document, path)
    changed = {**tiny_contest.ENTRANTS, "random": {"searcher": "random(rungs=1x64,candidates=4)", "tokens": 600}}
    del changed["knapsack"]
    found = tiny_contest.run(tiny, held.home, {"entrants": changed}, latest=lambda: read_document(path))
    before = {(run["label"], run["seed"]): run for run in held.document["runs"]}
    for run in found["runs"]:
        if run["label"] == "random":
            assert run["stop_tokens"] == 600
        else:
            assert run == before[run["label"], run["seed"]]
    assert {run["label"] for run in found["runs"]} == {"uniform", "evolve", "random"}


def test_another_type_of_arithmetic_is_another_bank(held: Held, tiny: Tiny) -> None:
    with pytest.raises(UsageError, match=r"c\.json was measured on bank"):
        tiny_contest.run(tiny, held.home, latest=lambda: held.document, dtype="bfloat16", source=Path("c.json"))


def test_trials_of_a_study_with_the_same_searcher_and_seed_are_found_again(tiny: Tiny, tmp_path: Path, taken: list[TrialKey]) -> None:
    searcher = "evolve(generations=3,offspring=4,rungs=2x64|1x160)"
    run = tiny_study.run(tiny, tmp_path, searcher=searcher, baselines=("uniform",), seed=5)
    assert taken
    taken.clear()
    entrants = {"evolve": searcher, "uniform": "uniform"}
    found = tiny_contest.run(tiny, tmp_path, {"entrants": entrants, "seeds": [5], "seed": 5, "tokens": 100_000})
    assert {key.slice for key in taken} <= {found["heldout"]["slice"]}, "nothing of the search is taken again"
    evolve = found["runs"][0]
    totals = run.outcome.totals
    assert (evolve["evaluations"], evolve["tokens"], evolve["reason"]) == (totals.evaluations, totals.tokens, "finished")
    assert final_profile(found, evolve) == run.best.profile
    assert evolve["seconds"] == pytest.approx(totals.seconds, abs=1e-3), "seconds of the measurements as first taken"


def test_entrants_learn_nothing_from_searches_before_them(tiny: Tiny, tmp_path: Path) -> None:
    guided = "guided(slope_tokens=64,looks=3x32|1x224,local_looks=4x32|1x224,start_tokens=64,alpha=0.5,rounds=2)"
    space = {"methods": ("gptq(bits=2..4,group=32)",)}
    tiny_study.run(tiny, tmp_path / "used", searcher=guided, baselines=("uniform",), budgets=("bits=3.5",), stop_tokens=4000, **space)
    changed = {"entrants": {"guided": guided}, "seeds": [1], "tokens": 4000, **space}
    found = [tiny_contest.run(tiny, tmp_path / home, changed)["runs"][0] for home in ("used", "empty")]
    assert found[0]["tokens"] == found[1]["tokens"] > 0
    assert found[0]["final"] == found[1]["final"]
    assert [mark["profile"] for mark in found[0]["marks"]] == [mark["profile"] for mark in found[1]["marks"]]


def test_options_that_are_wrong_are_told_before_the_bank_is_built(tiny: Tiny, tmp_path: Path) -> None:
    def run(**changed: Any) -> Document:
        return tiny_contest.run(tiny, tmp_path, changed, listen=lambda event: pytest.fail("too late") if event.phase == "bank" else None)

    wrong = {"evolve(ofspring=3)": "Unknown option of searcher evolve 'ofspring'", "evolve(rungs=1x9999)": "asks for 9,999 tokens"}
    for text, message in {**wrong, "gided": "Unknown searcher 'gided'"}.items():
        with pytest.raises(UsageError, match=message):
            run(entrants={"uniform": "uniform", "last": text})
    with pytest.raises(InfeasibleBudget):
        run(budgets=("size=1KiB",))
    with pytest.raises(UsageError, match=r"Unknown entrant 'evolv' in --only of contest tiny. Did you mean 'evolve'?"):
        tiny_contest.run(tiny, tmp_path, only=["evolv"])
    with pytest.raises(UsageError, match="Unknown seed '7' in --seeds of contest tiny"):
        tiny_contest.run(tiny, tmp_path, seeds=[7])


# Killed and resumed ---------------------------------------------------------------------------------------------------------------------


def interrupted_at(number: int) -> Callable[[Progress], None]:
    """A listener that is a Ctrl-C at the so-many-th event of a search."""
    left = [number]

    def listen(event: Progress) -> None:
        left[0] -= event.phase == "search"
        if event.phase == "search" and left[0] == 0:
            raise KeyboardInterrupt

    return listen


def test_runs_that_another_process_has_added_meanwhile_stay(held: Held, tiny: Tiny, tmp_path: Path) -> None:
    """Their final profiles too, though levels have other numbers in its document."""
    path, contest = tmp_path / "c.json", tiny_contest.contest(tiny)
    other = {**held.document, "levels": [], "runs": []}
    adopt(other, {**held.document, "runs": [run for run in reversed(held.document["runs"]) if run["seed"] == 1]}, contest)
    turned = {**other, "levels": other["levels"][::-1], "runs": []}
    for run in other["runs"]:
        turned["runs"].append({**run, "final": packed(final_profile(other, run), turned["levels"])})

    def listen(event: Progress) -> None:
        if "random seed 0" in event.text and not path.exists():
            write_document(turned, path)

    def latest() -> Document | None:
        return read_document(path) if path.exists() else None

    some: dict[str, Any] = {"only": ["random"], "seeds": [0]}
    tiny_contest.run(tiny, held.home, listen=listen, latest=latest, save=lambda made: write_document(made, path), **some)
    found = read_document(path)
    assert [(run["label"], run["seed"]) for run in found["runs"]] == [("evolve", 1), ("random", 0), ("random", 1)]
    for run in found["runs"]:
        assert final_profile(found, run).digest.startswith(run["marks"][-1]["profile"])


def test_ctrl_c_in_the_middle_loses_nothing(held: Held, tiny: Tiny, tmp_path: Path, taken: list[TrialKey]) -> None:
    path = tmp_path / "c.json"
    with pytest.raises(Interrupted, match="the same call again"):
        tiny_contest.run(tiny, tmp_path, listen=interrupted_at(30), save=lambda made: write_document(made, path))
    kept = read_document(path)
    assert 2 <= len(kept["runs"]) < 6
    found = tiny_contest.run(tiny, tmp_path, latest=lambda: kept)
    assert comparable(found) == comparable(held.document)
    contents = tiny_study.contents(tiny_study.url(tmp_path))
    assert contents.trials.keys() == held.contents.trials.keys()
    assert contents.claims == 0
    assert len(taken) == len(contents.trials), "nothing was taken twice"


def test_kill_9_in_a_search_and_the_same_command_end_in_the_same_document(held: Held, tiny: Tiny, forks: Forks, tmp_path: Path) -> None:
    (tmp_path / "studies").mkdir()
    (tmp_path / "results").mkdir()
    values = tiny_contest.values(tiny)
    entrants = values.pop("entrants")
    tables = [f"{key} = {tiny_contest.inline(value)}" for key, value in entrants.items()]
    file = tiny_study.toml(tmp_path / "studies" / "tiny.toml", values)
    file.write_text(file.read_text() + "\n[entrants]\n" + "\n".join(tables))
    request = {"argv": ["study", "run", str(file), "--dtype", "float32"], "home": str(tmp_path / "home"), "out": str(tmp_path / "out.txt")}
    pid = forks.start(**request)
    left = 25
    while left:
        report = forks.report(pid)
        assert "exit" not in report, (tmp_path / "out.txt").read_text()
        left -= report.get("event", {}).get("phase") == "search"
    os.kill(pid, signal.SIGKILL)
    assert forks.finish(pid)[-1] == {"exit": -signal.SIGKILL}
    result = tmp_path / "results" / "tiny.json"
    assert 2 <= len(read_document(result)["runs"]) < 6
    assert forks.finish(forks.start(**request))[-1] == {"exit": 0}, (tmp_path / "out.txt").read_text()
    assert comparable(read_document(result)) == comparable(held.document)
    assert read_document(result)["bank"]["seconds"] > 0


# Quick ----------------------------------------------------------------------------------------------------------------------------------


def test_a_quick_contest_says_so(tiny: Tiny, tmp_path: Path) -> None:
    from evopress.contest import compete

    small = tiny_contest.contest(tiny, **SMALL).small()
    document = compete(small, tiny_study.url(tmp_path), tmp_path, dtype="float32")
    assert document["quick"]
    assert document["contest"]["name"] == "tiny-quick"
    assert {run["seed"] for run in document["runs"]} == {0}
    with Store.open(tiny_study.url(tmp_path), create=False) as store:
        assert [study.name for study in store.studies()] == ["tiny-quick.contest"]
