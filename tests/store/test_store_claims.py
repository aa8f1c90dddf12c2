"""No measurement is taken twice: claims between processes, dead owners, reused pids, and leases of other hosts."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from store_cases import claim_and_hang, measure_all, numbered, save_basics, slice_of, trial, write_until_killed

from evopress.store import Owner, Store
from evopress.store.claims import process_start

SPAWN = multiprocessing.get_context("spawn")


class Clock:
    """Seconds set by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(storage_url: str, clock: Clock) -> Iterator[Store]:
    with Store.open(storage_url, clock=clock) as opened:
        save_basics(opened)
        yield opened


KEYS = tuple(numbered(number)[1] for number in range(6))
HERE = Owner.current()
FAR = Owner("another host", 1, "boot:1")


def _put(store: Store, number: int) -> None:
    of, name = numbered(number)
    store.put_trial(name, trial(of, slice_of(), (1.0, 2.0, 3.0)), bits=2.0)


def test_claims_follow_a_key_through_its_life(store: Store) -> None:
    _put(store, 5)
    first = store.claim([KEYS[5], KEYS[1], KEYS[0]], HERE)
    assert (first.claimed, first.done, first.busy) == ((KEYS[1], KEYS[0]), (KEYS[5],), ())
    assert store.claim(KEYS[:2], HERE).claimed == KEYS[:2]  # an owner may ask again
    other = store.claim(KEYS[:3], FAR)
    assert (other.claimed, other.done, other.busy) == ((KEYS[2],), (), KEYS[:2])
    _put(store, 0)
    after = store.claim(KEYS[:2], FAR)
    assert (after.done, after.busy) == (KEYS[:1], (KEYS[1],))
    store.release(HERE)
    assert store.claim(KEYS[:2], FAR).claimed == (KEYS[1],)
    store.release(FAR, [KEYS[1]])
    assert store.claim(KEYS[1:3], HERE).claimed == (KEYS[1],)
    assert store.claim([], HERE).claimed == ()


def test_threads_of_one_process_are_told_apart(store: Store) -> None:
    assert store.claim(KEYS, Owner.current("one")).claimed == KEYS
    assert store.claim(KEYS, Owner.current("two")).busy == KEYS


def test_a_foreign_owner_is_stolen_from_only_after_its_lease(store: Store, clock: Clock) -> None:
    store.claim(KEYS, FAR)
    clock.now += 100
    store.heartbeat(FAR)
    clock.now += 119
    assert store.claim(KEYS, HERE).busy == KEYS
    clock.now += 2
    assert store.claim(KEYS, HERE).claimed == KEYS
    assert store.claim(KEYS, FAR).busy == KEYS


def test_a_living_owner_of_this_host_keeps_its_claims_however_long_it_takes(store: Store, clock: Clock) -> None:
    store.claim(KEYS, HERE)
    clock.now += 1e6
    assert store.claim(KEYS, Owner.current("another")).busy == KEYS


def test_a_reused_pid_is_not_taken_for_the_owner(store: Store) -> None:
    store.claim(KEYS, Owner(HERE.host, HERE.pid, "an earlier process"))
    assert store.claim(KEYS, HERE).claimed == KEYS


def test_a_trial_of_an_owner_that_lost_its_claim_still_counts_once(store: Store, clock: Clock) -> None:
    store.claim(KEYS[:1], FAR)
    clock.now += 1000
    assert store.claim(KEYS[:1], HERE).claimed == KEYS[:1]
    _put(store, 0)  # the owner from far away returns, and stores
    of, name = numbered(0)
    assert store.put_trial(name, trial(of, slice_of(), (7.0, 7.0, 7.0)), bits=2.0).values == (1.0, 2.0, 3.0)


def test_heartbeating_beats_and_releases(storage_url: str) -> None:
    with Store.open(storage_url) as store:
        save_basics(store)
        with store.heartbeating(FAR, every_seconds=0.05):
            store.claim(KEYS, FAR, lease_seconds=0.5)
            time.sleep(1.0)
            assert store.claim(KEYS, HERE, lease_seconds=0.5).busy == KEYS
        assert store.claim(KEYS, HERE).claimed == KEYS


def test_work_is_done_by_one_owner_at_a_time(store: Store) -> None:
    begun: list[str] = []

    def meanwhile(_: float) -> None:
        begun.append("waiting")
        if len(begun) == 2:
            first.__exit__(None, None, None)

    first = store.holding("bank", FAR)
    first.__enter__()
    with store.holding("timing", HERE, sleep=meanwhile):
        assert not begun  # other work is nobody's business
    with store.holding("bank", HERE, sleep=meanwhile):
        assert begun == ["waiting", "waiting"]
        assert not store.claim(KEYS[:1], HERE).busy
    with store.holding("bank", FAR, sleep=meanwhile):
        assert len(begun) == 2


def test_work_of_an_owner_far_away_that_fell_silent_is_taken_over(store: Store, clock: Clock) -> None:
    silent = store.holding("bank", FAR)
    silent.__enter__()

    def later(_: float) -> None:
        clock.now += 50

    with store.holding("bank", HERE, sleep=later, lease_seconds=120):
        assert clock.now == 1150


def test_a_zombie_counts_as_dead() -> None:
    child = os.fork()
    if child == 0:
        os._exit(0)
    try:
        for _ in range(200):
            if process_start(child) is None:
                break
            time.sleep(0.01)
        assert process_start(child) is None
    finally:
        os.waitpid(child, 0)
    assert process_start(child) is None
    assert process_start(os.getpid()) == HERE.process


def test_two_processes_measure_every_key_exactly_once(storage_url: str, tmp_path: Path) -> None:
    count, log = 60, tmp_path / "measured.txt"
    with Store.open(storage_url) as store:
        save_basics(store)
        together = SPAWN.Barrier(2)
        children = [SPAWN.Process(target=measure_all, args=(storage_url, count, str(log), together)) for _ in range(2)]
        for child in children:
            child.start()
        for child in children:
            child.join(90)
            assert child.exitcode == 0
        lines = [line.split() for line in log.read_text().splitlines()]
        assert Counter(int(number) for number, _ in lines) == Counter(range(count))
        assert len({pid for _, pid in lines}) == 2  # both took part
        found = store.find_trials(numbered(number)[1] for number in range(count))
        assert all(found[numbered(number)[1]].values == (float(number), 1.0, 2.0) for number in range(count))


def test_kill_9_of_a_claimer_frees_its_keys_at_once(storage_url: str, tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    with Store.open(storage_url) as store:
        save_basics(store)
        child = SPAWN.Process(target=claim_and_hang, args=(storage_url, len(KEYS), str(ready)))
        child.start()
        _wait_for(ready)
        assert store.claim(KEYS, HERE).busy == KEYS[1:]
        os.kill(int(child.pid or 0), signal.SIGKILL)
        begin = time.monotonic()
        while not (turn := store.claim(KEYS, HERE)).claimed:
            assert time.monotonic() - begin < 10
        assert (turn.claimed, turn.done, turn.busy) == (KEYS[1:], KEYS[:1], ())
        child.join()


def test_kill_9_of_a_writer_leaves_whole_trials_only(storage_url: str, tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    with Store.open(storage_url) as store:
        save_basics(store)
        child = SPAWN.Process(target=write_until_killed, args=(storage_url, str(ready)))
        child.start()
        _wait_for(ready)
        os.kill(int(child.pid or 0), signal.SIGKILL)
        child.join()
        store.check()
        found = store.find_trials(numbered(number)[1] for number in range(4000))
        assert len(found) >= 20
        assert all(len(row.values) == 3 for row in found.values())
        _put(store, 4095)


def _wait_for(file: Path) -> None:
    begin = time.monotonic()
    while not file.exists():
        assert time.monotonic() - begin < 60
        time.sleep(0.01)
