"""Deleting a study takes what it is and leaves what was measured, on SQLite and on PostgreSQL."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from store_cases import MODEL, SEARCH, SITES, key, profile, save_basics, slice_of, trial

from evopress.api import Cost, NotFound, UsageError
from evopress.store import LatencyRow, Owner, Store, TaskScore

HERE = Owner.current()
GONE = Owner(HERE.host, HERE.pid, "another boot:1")
FAR = Owner("another host/pid:[1]", 7, "boot:1")


@pytest.fixture
def store(storage_url: str) -> Iterator[Store]:
    with Store.open(storage_url, clock=time.time) as opened:
        save_basics(opened)
        yield opened


def start(store: Store, study_id: int, owner: Owner = HERE) -> int:
    return store.start_run(study_id, seed=0, command="", environment={}, code_version="", owner=owner)


def fill(store: Store, name: str, bits: int) -> int:
    """A finished study with a run, a step, a result, a score and a time; returns the id of its profile."""
    study = store.study(name, {"name": name}, name)
    run = start(store, study.id)
    of, on = profile(bits, bits, bits, 16), slice_of()
    stored = store.put_trial(key(of, on), trial(of, on, (1.0, 2.0, 3.0)), bits=float(bits), run_id=run)
    store.record_step(study.id, "evolve", 0, [stored.id], run_id=run)
    store.put_result(study.id, "evolve", stored.profile_id, role="winner", run_id=run)
    store.put_task_scores(stored.profile_id, [TaskScore("arc_easy", "acc", 0.5, 0.1, 100)], run_id=run)
    store.put_latency(LatencyRow("dense", "cpu", "decode", 1, 1, 1, 5, 1.0, 1.0, 1.0, 1.0, stored.profile_id, run_id=run))
    store.finish_run(run, "finished")
    return stored.profile_id


def test_everything_measured_stays_and_the_other_study_is_untouched(store: Store) -> None:
    first, second = fill(store, "first", 2), fill(store, "second", 3)
    kept = store.find_study("second")
    deleted = store.delete_study("first")
    assert (deleted.name, deleted.runs, deleted.trials) == ("first", 1, 1)
    assert store.studies() == [kept]
    assert [result.study for result in store.results()] == ["second"]
    assert store.trajectory(deleted.id) == []
    assert store.runs(deleted.id) == []
    assert len(store.trajectory(kept.id)) == len(store.runs(kept.id)) == 1
    of, on = profile(2, 2, 2, 16), slice_of()
    assert store.find_trials([key(of, on)])[key(of, on)].values == (1.0, 2.0, 3.0)
    assert [score.value for score in store.task_scores(first)] == [0.5]
    assert [row.run_id for row in store.latencies(profile_id=first)] == [None]
    assert store.latencies(profile_id=second)[0].run_id is not None
    board = {row.profile_id: row for row in store.leaderboard()}
    assert (board[first].study, board[second].study) == (None, "second")
    with pytest.raises(NotFound, match=r"Unknown study 'first' in the store\. Known: second\."):
        store.delete_study("first")


def test_a_deleted_study_may_be_made_again_and_continues_from_what_was_measured(store: Store) -> None:
    profile_id = fill(store, "first", 2)
    old = store.delete_study("first")
    assert fill(store, "first", 2) == profile_id
    assert (store.find_study("first").runs, store.find_study("first").trials) == (1, 1)
    assert store.find_study("first").definition == old.definition


def test_times_of_deleted_studies_are_not_set_side_by_side(store: Store) -> None:
    """Each was taken in turns with others of its own run; on the board of a third study they would be compared."""
    model_id = save_basics(store)
    ids = [store.save_profile(model_id, profile(bits, bits, bits, 16), Cost(bits, 1), float(bits)) for bits in (2, 3)]

    def time_in_run(study: str, profile_id: int, rate: float) -> None:
        row = store.study(study, {}, study)
        run = start(store, row.id)
        store.put_latency(LatencyRow("dense", "cpu", "decode", 1, 1, 1, 5, 1.0, 1.0, 1.0, rate, profile_id, run_id=run))
        store.finish_run(run, "finished")

    for study, profile_id, rate in (("first", ids[0], 1.0), ("second", ids[1], 2.0), ("third", ids[0], 3.0)):
        time_in_run(study, profile_id, rate)
    for number, profile_id in enumerate(ids):
        store.put_result(store.find_study("third").id, f"label{number}", profile_id)
    store.delete_study("first")
    store.delete_study("second")
    assert {row.profile_id: row.decode for row in store.leaderboard(study="third")} == {ids[0]: 3.0, ids[1]: None}


@pytest.mark.parametrize(("owner", "where"), [(HERE, "with Ctrl-C or a signal"), (FAR, "--force where that machine is gone")])
def test_a_living_run_keeps_its_study(store: Store, owner: Owner, where: str) -> None:
    study = store.study("busy", {}, "d")
    run = start(store, study.id, owner)
    with pytest.raises(UsageError) as caught:
        store.delete_study("busy")
    name = owner.host.partition("/")[0]
    assert caught.value.message == f"Study 'busy' is not deleted: its run {run} is going on, process {owner.pid} on {name}."
    assert where in caught.value.hint
    assert len(store.runs(study.id)) == 1
    if owner is HERE:
        with pytest.raises(UsageError, match="is going on"):
            store.delete_study("busy", force=True)
    else:
        store.delete_study("busy", force=True)
        assert store.studies() == []


def test_a_run_whose_process_is_gone_keeps_nothing(store: Store) -> None:
    start(store, store.study("dead", {}, "d").id, GONE)
    store.delete_study("dead")
    assert store.studies() == []


def test_sites_by_the_digest_of_the_weights(store: Store) -> None:
    assert store.sites_of(MODEL) == SITES
    with pytest.raises(NotFound, match="no model with digest"):
        store.sites_of("0" * 64)


def test_trials_on_the_search_text_stay_too(store: Store) -> None:
    """They stand on no leaderboard, but the next search reads them by their keys."""
    study = store.study("search", {}, "s")
    of, on = profile(4, 4, 4, 4), slice_of(SEARCH)
    run = start(store, study.id)
    stored = store.put_trial(key(of, on), trial(of, on, (1.0, 1.0, 1.0)), bits=4.0, run_id=run)
    store.record_step(study.id, "evolve", 0, [stored.id], run_id=run)
    store.finish_run(run, "stopped")
    store.delete_study("search")
    assert store.find_trials([key(of, on)])[key(of, on)].id == stored.id
