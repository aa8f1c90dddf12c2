"""Store: the database of everything that was ever measured. SQLite by default, PostgreSQL by URL.

One method per question, each one short transaction: a process killed at any point leaves whole rows only. The work is done by the
functions of the files beside this one; nouns of `evopress.api` go in and come out. Called by the run, the reports and the command line;
free of torch.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from sqlalchemy import Connection, delete, select

from evopress.api import Cost, Profile, Site, Slice, StorageError, Trial
from evopress.store import board, catalog, claims, history, measurements, remembered
from evopress.store.claims import LEASE_SECONDS, ClaimResult, Owner
from evopress.store.database import Database, insert
from evopress.store.migrate import ensure_current
from evopress.store.remembered import Earlier, RememberedSlopes, RememberedTrial
from evopress.store.rows import (
    BankEntry,
    BoardRow,
    LatencyRow,
    ProfileRow,
    ReferenceRow,
    ResultRow,
    Role,
    RunRow,
    RunState,
    StepRow,
    StoredTrial,
    StudyRow,
    TaskScore,
    TokenSetRow,
    TrialKey,
)
from evopress.store.schema import BankEntries, Levels, ReferenceRows

T = TypeVar("T")
POLL_SECONDS = 0.2
"""Pause between two looks at work that somebody else is doing."""


class Store:
    """An open store. Safe to use from several threads; every process opens its own."""

    def __init__(self, database: Database, clock: Callable[[], float]) -> None:
        self.database = database
        self._clock = clock
        self._known: dict[tuple[str, ...], int] = {}

    @staticmethod
    def open(url: str, *, create: bool = True, clock: Callable[[], float] = time.time) -> Store:
        """Open the store at an SQLAlchemy URL; with `create`, a missing one is made at the newest schema.

        Raises UsageError (malformed or unsupported URL), NotFound (missing, without `create`), MissingDependency (PostgreSQL without
        psycopg) and StorageError (older or newer schema, damaged, read-only, full, unreachable).
        """
        database = Database(url, create=create)
        try:
            ensure_current(database, create=create)
        except BaseException:
            database.close()
            raise
        return Store(database, clock)

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close every connection."""
        self.database.close()

    def describe(self) -> str:
        """Where the store is, without any password."""
        return self.database.describe()

    def check(self) -> None:
        """Verify the whole file. Raises StorageError."""
        self.database.check()

    # -- nouns ---------------------------------------------------------------------------------------------------------

    def save_model(self, name: str, digest: str, config: Mapping[str, Any], sites: Sequence[Site], params: int) -> int:
        """Store a dense model with its sites; returns its id. digest: of the weights."""
        return self.database.write(lambda conn: catalog.save_model(conn, name, digest, config, sites, params))

    def sites(self, model_id: int) -> tuple[Site, ...]:
        """Sites of a stored model."""
        return self.database.read(lambda conn: catalog.load_sites(conn, model_id))

    def sites_of(self, model_digest: str) -> tuple[Site, ...]:
        """Sites of the stored model with these weights. Raises NotFound."""
        return self.database.read(lambda conn: catalog.sites_of(conn, model_digest))

    def save_token_set(self, row: TokenSetRow) -> int:
        """Store a token set in its role; returns its id."""
        return self.database.write(lambda conn: catalog.save_token_set(conn, row))

    def save_profile(self, model_id: int, profile: Profile, cost: Cost, bits: float, bank: str = "") -> int:
        """Store a profile with the exact cost of the whole model; returns its id. bank: as in `TrialKey`."""
        return self._with_ids(lambda conn, ids: catalog.save_profile(conn, ids, model_id, profile, cost, bits, bank))

    def find_profile(self, digest: str, model: str | None = None) -> ProfileRow:
        """The profile whose digest starts so. Raises NotFound, and UsageError when several do."""
        return self.database.read(lambda conn: catalog.find_profile(conn, digest, model))

    def profiles(self, profile_ids: Iterable[int]) -> dict[int, ProfileRow]:
        """Profiles by id."""
        return self.database.read(lambda conn: catalog.load_profiles(conn, profile_ids))

    def slice(self, digest: str) -> Slice:
        """A slice that was measured on. Raises NotFound."""
        return self.database.read(lambda conn: catalog.load_slice(conn, digest))

    def token_sets(self, role: Role) -> list[TokenSetRow]:
        """The token sets of a role."""
        return self.database.read(lambda conn: catalog.token_sets(conn, role))

    def origins(self, slice: str) -> list[int] | None:
        """Number of the source document of each piece of a slice (digest), for tests over independent documents; None where unknown."""
        return self.database.read(lambda conn: catalog.origins(conn, slice))

    # -- studies and runs ----------------------------------------------------------------------------------------------

    def study(self, name: str, definition: Mapping[str, Any], digest: str) -> StudyRow:
        """Get or create a study. Raises UsageError, listing the keys that differ, when the name has another digest."""
        return self.database.write(lambda conn: history.study(conn, name, definition, digest, self._clock()))

    def find_study(self, name: str) -> StudyRow:
        """The study of this name. Raises NotFound."""
        return self.database.read(lambda conn: history.find_study(conn, name))

    def studies(self) -> list[StudyRow]:
        """Every study, oldest first."""
        return self.database.read(history.studies)

    def delete_study(self, name: str, *, force: bool = False) -> StudyRow:
        """Remove a study with its runs, trajectory and results, not what it measured. Raises NotFound, and UsageError while it runs."""
        return self.database.write(lambda conn: history.delete_study(conn, name, force))

    def start_run(
        self,
        study_id: int,
        *,
        seed: int,
        command: str,
        environment: Mapping[str, Any],
        code_version: str,
        owner: Owner,
    ) -> int:
        """Note that an execution begins; returns its id."""
        return self.database.write(
            lambda conn: history.start_run(conn, study_id, seed, command, environment, code_version, owner, self._clock())
        )

    def finish_run(self, run_id: int, state: RunState, *, stop_reason: str = "", error: str = "") -> None:
        """Note how an execution ended."""
        self.database.write(lambda conn: history.finish_run(conn, run_id, state, stop_reason, error, self._clock()))

    def runs(self, study_id: int) -> list[RunRow]:
        """Executions of a study, oldest first; one whose process is gone shows as killed."""
        return self.database.read(lambda conn: history.runs(conn, study_id))

    # -- measurements --------------------------------------------------------------------------------------------------

    def find_trials(self, keys: Iterable[TrialKey]) -> dict[TrialKey, StoredTrial]:
        """The stored trials among `keys`."""
        wanted = list(keys)
        return self.database.read(lambda conn: measurements.find(conn, wanted))

    def put_trial(self, key: TrialKey, trial: Trial, *, bits: float, run_id: int | None = None) -> StoredTrial:
        """Store a trial and drop the claim on its key. When the key is stored already, the first numbers stay and are returned.

        bits: mean stored bits a weight of the profile (`space.bits(trial.cost)`). The nanoseconds of its cost, where it has any, are kept
        with the trial, not with the profile: they are of one workload and machine. Raises NumericalError for NaN and infinity, NotFound
        when the model of the key was not saved, ValueError when key and trial disagree.
        """
        measurements.check(key, trial)
        return self._with_ids(lambda conn, ids: measurements.put(conn, ids, key, trial, bits, run_id, self._clock()))

    def estimate_trials(self, seconds: Mapping[int, float]) -> None:
        """Give trials, by id, the seconds they are estimated to take, where they have none: they were measured without a time."""
        self.database.write(lambda conn: measurements.estimate(conn, seconds))

    def slopes_before(self, wanted: Earlier) -> list[RememberedSlopes]:
        """The newest stored slopes of earlier trials, newest first."""
        return self.database.read(lambda conn: remembered.slopes_before(conn, wanted))

    def trials_before(self, wanted: Earlier) -> list[RememberedTrial]:
        """The newest earlier trials, newest first."""
        return self.database.read(lambda conn: remembered.trials_before(conn, wanted))

    def document_values(self, trial_ids: Iterable[int]) -> dict[int, tuple[tuple[float, ...], tuple[int, ...]]]:
        """Trial id -> (values, weights) per document, in the order of the slice: what paired tests need."""
        wanted = list(trial_ids)
        return self.database.read(lambda conn: measurements.document_values(conn, wanted))

    def record_step(
        self,
        study_id: int,
        searcher: str,
        ordinal: int,
        trial_ids: Sequence[int],
        *,
        generation: int = 0,
        stage: int = 0,
        run_id: int | None = None,
    ) -> None:
        """Note the trials that answered question `ordinal` of a searcher. Replays repeat it freely; another answer raises StorageError."""
        self.database.write(lambda conn: measurements.record_step(conn, study_id, searcher, ordinal, trial_ids, generation, stage, run_id))

    def trajectory(self, study_id: int, searcher: str | None = None) -> list[StepRow]:
        """What the searchers of a study asked for, in order."""
        return self.database.read(lambda conn: measurements.trajectory(conn, study_id, searcher))

    # -- claims --------------------------------------------------------------------------------------------------------

    def claim(self, keys: Iterable[TrialKey], owner: Owner, *, lease_seconds: float = LEASE_SECONDS) -> ClaimResult:
        """Say which of `keys` this owner shall measure, which are stored, and which another owner is measuring now."""
        wanted = list(keys)
        return self.database.write(lambda conn: claims.claim(conn, wanted, owner, self._clock(), lease_seconds))

    def release(self, owner: Owner, keys: Iterable[TrialKey] | None = None) -> None:
        """Give claims back without a measurement: these keys, or all of the owner."""
        wanted = None if keys is None else list(keys)
        self.database.write(lambda conn: claims.release(conn, owner, wanted))

    @contextmanager
    def holding(
        self, work: str, owner: Owner, *, sleep: Callable[[float], None] = time.sleep, lease_seconds: float = LEASE_SECONDS
    ) -> Iterator[None]:
        """Do a piece of work that only one owner may do at a time, known by its name; waits while a living owner does it.

        Whoever comes second finds the work done: look again before doing it. A dead owner's claim is taken over.
        """
        while not self.database.write(lambda conn: claims.hold(conn, work, owner, self._clock(), lease_seconds)):
            sleep(POLL_SECONDS)
        try:
            yield
        finally:
            self.database.write(lambda conn: claims.let_go(conn, work, owner))

    def heartbeat(self, owner: Owner) -> None:
        """Tell other hosts that the owner lives."""
        self.database.write(lambda conn: claims.beat(conn, owner, self._clock()))

    @contextmanager
    def heartbeating(self, owner: Owner, every_seconds: float = LEASE_SECONDS / 4) -> Iterator[None]:
        """Send heartbeats from a thread while the block runs, and release what the owner still holds at its end."""
        done = threading.Event()

        def beat() -> None:
            while not done.wait(every_seconds):
                try:
                    self.heartbeat(owner)
                except StorageError:
                    # A missed beat at worst lets another host measure the same key again, and the first stored trial stays. The block
                    # itself meets the same trouble at its next write, and says so there.
                    continue

        thread = threading.Thread(target=beat, name="evopress-heartbeat", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
            self.release(owner)

    # -- results -------------------------------------------------------------------------------------------------------

    def put_result(
        self,
        study_id: int,
        label: str,
        profile_id: int,
        *,
        role: str = "",
        details: Mapping[str, Any] | None = None,
        run_id: int | None = None,
    ) -> None:
        """Keep a profile under a label (dense, uniform, random, knapsack, evolve, nsga2 front 1) of a study; the last one stays."""
        self.database.write(lambda conn: board.put_result(conn, study_id, label, profile_id, role, details or {}, run_id, self._clock()))

    def forget_results(self, study_id: int, role: str) -> None:
        """Take the labels of one role from a study, of which it may have fewer next time; profiles and trials stay."""
        self.database.write(lambda conn: board.forget_results(conn, study_id, role))

    def results(self, study_id: int | None = None) -> list[ResultRow]:
        """Labelled profiles of a study, or of all."""
        return self.database.read(lambda conn: board.results(conn, study_id))

    def put_task_scores(self, profile_id: int, scores: Sequence[TaskScore], *, run_id: int | None = None) -> None:
        """Store benchmark scores of a profile; the same benchmark again replaces the old value."""
        self.database.write(lambda conn: board.put_task_scores(conn, profile_id, scores, run_id, self._clock()))

    def task_scores(self, profile_id: int) -> list[TaskScore]:
        """Benchmark scores of a profile."""
        return self.database.read(lambda conn: board.task_scores(conn, profile_id))

    def put_latency(self, row: LatencyRow) -> int:
        """Append a measured time; returns its id. Raises NumericalError when low ≤ median ≤ high does not hold."""
        return self.database.write(lambda conn: board.put_latency(conn, row, self._clock()))

    def put_latencies(self, rows: Sequence[LatencyRow]) -> None:
        """Append measured times: all, or none where `put_latency` would refuse one."""
        self.database.write(lambda conn: [board.put_latency(conn, row, self._clock()) for row in rows])

    def latencies(self, *, profile_id: int | None = None, kernel: str | None = None, phase: str | None = None) -> list[LatencyRow]:
        """Measured times, oldest first."""
        return self.database.read(lambda conn: board.latencies(conn, profile_id, kernel, phase))

    def leaderboard(
        self,
        fitness: str = "kl",
        *,
        role: Role = "heldout",
        slice: str | None = None,
        model: str | None = None,
        study: str | None = None,
        where: str | None = None,
        sort: str | None = None,
        limit: int | None = None,
    ) -> list[BoardRow]:
        """Profiles with accuracy, size and speed, best first.

        role, slice: which documents count (slice: start of a digest). model: name or digest. where: see `evopress.store.where`.
        sort: a column, with a leading `-` for descending; the fitness by default. Raises UsageError for unknown columns.
        """
        return self.database.read(
            lambda conn: board.leaderboard(
                conn, fitness=fitness, role=role, slice=slice, model=model, study=study, where=where, sort=sort, limit=limit
            )
        )

    # -- bank and reported numbers -------------------------------------------------------------------------------------

    def put_bank_entries(self, model_id: int, calibration: str, entries: Sequence[BankEntry]) -> None:
        """Store error and size of variants built with a calibration (digest); known ones are replaced."""

        def work(conn: Connection, ids: catalog.Ids) -> None:
            numbers = catalog.level_ids(conn, ids, [entry.level for entry in entries])
            query = insert(conn, BankEntries)
            query = query.on_conflict_do_update(
                index_elements=["model_id", "calibration", "site", "level_id"],
                set_={"relative_error": query.excluded.relative_error, "bytes": query.excluded.bytes},
            )
            rows = [
                {
                    "model_id": model_id,
                    "calibration": calibration,
                    "site": entry.site,
                    "level_id": numbers[entry.level],
                    "relative_error": entry.relative_error,
                    "bytes": entry.bytes,
                }
                for entry in entries
            ]
            if rows:
                conn.execute(query, rows)

        self._with_ids(work)

    def bank_entries(self, model_id: int, calibration: str) -> list[BankEntry]:
        """Variants built for a model with a calibration."""
        columns = (BankEntries.site, Levels.text, BankEntries.relative_error, BankEntries.bytes)
        query = select(*columns).join(Levels).where(BankEntries.model_id == model_id, BankEntries.calibration == calibration)
        return self.database.read(lambda conn: [BankEntry(*row) for row in conn.execute(query.order_by(BankEntries.site, Levels.id))])

    def put_reference_rows(self, rows: Sequence[ReferenceRow]) -> None:
        """Replace the reported numbers of the sources in `rows`."""
        names = ("source", "model", "method", "budget", "metric", "value", "state")

        def work(conn: Connection) -> None:
            conn.execute(delete(ReferenceRows).where(ReferenceRows.source.in_({row.source for row in rows})))
            new = [{name: getattr(row, name) for name in names} for row in rows]
            conn.execute(insert(conn, ReferenceRows).on_conflict_do_nothing(), new)  # another process may put the same ones now

        if rows:
            self.database.write(work)

    def reference_rows(self) -> list[ReferenceRow]:
        """Numbers reported by others. No leaderboard contains them."""
        names = ("source", "model", "method", "budget", "metric", "value", "state")
        query = select(*(getattr(ReferenceRows, name) for name in names)).order_by(ReferenceRows.id)
        return self.database.read(lambda conn: [ReferenceRow(*row) for row in conn.execute(query)])

    # ------------------------------------------------------------------------------------------------------------------

    def _with_ids(self, work: Callable[[Connection, catalog.Ids], T]) -> T:
        # Ids are remembered only after the commit: those of a rolled-back attempt would point nowhere.
        attempts: list[catalog.Ids] = []

        def attempt(conn: Connection) -> T:
            attempts.append(catalog.Ids(self._known))
            return work(conn, attempts[-1])

        result = self.database.write(attempt)
        self._known.update(attempts[-1].fresh)
        return result
