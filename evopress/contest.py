"""A contest run: every entrant, with every seed, on one bank. The second composition root, beside `evopress.run`.

Called by `evopress study`. It differs from a run in what it keeps: the path of every search, measured on held-out documents, in one JSON
document that is written after every finished search. Every trial comes from the store or goes there, so a killed contest goes on where it
was, and `replay` makes the document again without measuring.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from evopress.api import Ask, Genotype, Knowledge, NotFound, Profile, Searcher, Slice, Trial, unknown
from evopress.api.contest import Contest, Entrant
from evopress.data.tokens import Role
from evopress.events import Listener, Progress, silent
from evopress.gate import check_dense
from evopress.hooks.registry import Registry
from evopress.knowledge import Known
from evopress.plan import Plan, default_options, make_plan, searcher_class, with_weights
from evopress.precision import check_device, check_dtype
from evopress.pricing import tables
from evopress.provenance import commit
from evopress.recording import recorded
from evopress.rehearsal import SIMPLE, make_searcher, rehearse
from evopress.report.contest_document import Document, adopt, asks_nothing, check_same_bank, packed, runs_of, sort_runs
from evopress.search.loop import Event, Stops, Totals, drive
from evopress.store import Store, load_reference
from evopress.texts import Texts
from evopress.workbench import Workbench

FIRST_MARK = 4096
"""Token-forwards of the first mark; every further one is SPACING times as far."""
SPACING = 2
DIGITS = 7
"""Significant digits of a value in the document."""


class NotMeasured(NotFound):
    """A replay came to something that the store has not."""

    code = "not-measured"


@dataclass(frozen=True)
class Mark:
    """Where a search stood. seconds: of its measurements, as first taken, and of its thinking."""

    tokens: int
    evaluations: int
    seconds: float
    incumbent: Profile


@dataclass(frozen=True)
class Trace:
    """A search from beginning to end. marks: in order, the last one at its end. reason: as in `Outcome`."""

    marks: tuple[Mark, ...]
    reason: str


def compete(
    contest: Contest,
    storage: str,
    home: Path,
    registry: Registry | None = None,
    listen: Listener = silent,
    device: str = "cpu",
    dtype: str = "auto",
    bank_quota_bytes: int | None = None,
    latest: Callable[[], Document | None] = lambda: None,
    save: Callable[[Document], None] = lambda _: None,
    only: Sequence[str] = (),
    seeds: Sequence[int] = (),
    command: str = "",
    source: Path = Path("the result"),
    clock: Callable[[], float] = time.perf_counter,
) -> Document:
    """Run what is missing of a contest, and return its document.

    latest: reads the document as it lies in `source` by now: its finished runs are not run again. save: writes it there, after every
    finished run; two processes on one store do so in turns, and each adds what the other has finished. only, seeds: run these labels and
    seeds alone. Raises Interrupted on Ctrl-C and Stopped on SIGTERM, both after a clean checkpoint; UsageError for an unknown label or seed
    and for a document of another bank; InfeasibleBudget before any weight is read.
    """
    registry = registry or Registry.load()
    wanted = _chosen(contest, only, seeds)
    kept = latest()
    plan, texts = _rehearsed(contest, registry, storage, home, listen, device, dtype)
    store = Store.open(storage)
    try:
        load_reference(store)
        bench = Workbench(plan, texts, registry, store, home, listen, device, dtype, bank_quota_bytes, clock)
        if kept is not None:
            check_same_bank(kept, bench.model_digest, bench.recipe.digest, source)
        environment = {"stops": {}, "options": {"dtype": dtype, "device": device}}
        resume = f"the same command again ({command})" if command else "the same call again"
        with recorded(bench, contest.stored_name, contest.base, contest.base_digest, environment, command, resume) as study_id:
            field = _Field(contest, bench, clock, measures=True)
            document = field.document(kept)
            if told := _kept_text(document, contest, wanted, source):
                listen(Progress("plan", told))
            if any(seed not in runs_of(document, contest, label) for label, seed in wanted):
                bench.complete_bank()
                document["bank"] = field.bank(kept)
                check_dense(bench, bench.plan.space.profile(field.starts[0]))

            def together() -> None:
                with store.holding(f"result {source.absolute()}", bench.owner):
                    if (other := latest()) is not None:
                        adopt(document, other, contest)
                    save(document)

            for label, seed in wanted:
                if seed not in runs_of(document, contest, label):
                    run, final = field.run(label, seed)
                    field.add(document, run, final)
                    _keep(bench, study_id, contest, run, final)
                    together()
            together()
        return document
    finally:
        store.close()


def replay(
    contest: Contest,
    storage: str,
    home: Path,
    registry: Registry | None = None,
    listen: Listener = silent,
    device: str = "cpu",
    dtype: str = "auto",
    clock: Callable[[], float] = time.perf_counter,
) -> Document:
    """The document of a contest from the store alone, with the runs whose every trial is there. Measures nothing.

    Raises NotFound when the store or the bank is missing.
    """
    registry = registry or Registry.load()
    plan, texts = _rehearsed(contest, registry, storage, home, listen, device, dtype)
    with Store.open(storage, create=False) as store:
        bench = Workbench(plan, texts, registry, store, home, listen, device, dtype, clock=clock)
        if not bench.bank_is_complete:
            raise NotFound(f"The bank of contest {contest.name} is not built.", "Run it first: evopress study run FILE.")
        field = _Field(contest, bench, clock, measures=False)
        document = field.document(None)
        for label, seed in _chosen(contest, (), ()):
            if seed not in runs_of(document, contest, label):
                try:
                    field.add(document, *field.run(label, seed))
                except NotMeasured:
                    continue
        return document


def _chosen(contest: Contest, only: Sequence[str], seeds: Sequence[int]) -> list[tuple[str, int]]:
    """(label, seed) of what shall run, all entrants with one seed before the next. Raises UsageError for unknown ones."""
    for label in only:
        if label not in contest.entrants:
            raise unknown("entrant", label, contest.entrants, f"--only of contest {contest.name}")
    for seed in seeds:
        if seed not in contest.seeds:
            raise unknown("seed", str(seed), map(str, contest.seeds), f"--seeds of contest {contest.name}")
    labels = [label for label in contest.entrants if label in only or not only]
    return [(label, seed) for seed in contest.seeds if seed in seeds or not seeds for label in labels]


def _kept_text(document: Document, contest: Contest, wanted: Sequence[tuple[str, int]], source: Path) -> str:
    """How many of the wanted runs are there already, and by which code where it may have been another; "" for none."""
    found = {label: runs_of(document, contest, label) for label, _ in wanted}
    there = [found[label][seed] for label, seed in wanted if seed in found[label]]
    # A run that asks nothing stands for every seed. What a commit with local changes was, nobody knows.
    count, present = len({id(run) for run in there}), commit()
    others = sorted({run["commit"] for run in there if run["commit"] != present or present.endswith("+")})
    by = f", by code {', '.join(others)} (this is {present}); another --result runs them anew" if others else ""
    return f"{count} runs are kept from {source.name}{by}" if there else ""


def _rehearsed(
    contest: Contest, registry: Registry, storage: str, home: Path, listen: Listener, device: str, dtype: str
) -> tuple[Plan, Texts]:
    """Plan and texts, once every entrant was made on made-up knowledge: what is wrong with one is told before the bank is built."""
    check_device(device)
    check_dtype(dtype)
    plan = make_plan(contest.study, registry, home, tables(storage, home, device, dtype))
    listen(Progress("plan", f"{plan.ref.name}: contest of {', '.join(contest.entrants)}"))
    texts = Texts(plan, listen)
    for entrant in contest.entrants.values():
        rehearse(replace(plan, study=contest.study.model_copy(update={"searcher": entrant.searcher})), registry, texts)
    return with_weights(plan, home), texts


class _Field:
    """What the entrants of one contest share. measures: False to take nothing that is not in the store."""

    def __init__(self, contest: Contest, bench: Workbench, clock: Callable[[], float], measures: bool) -> None:
        self.contest, self.bench, self.clock, self.measures = contest, bench, clock, measures
        self.plan, self.fitness = bench.plan, contest.study.fitness
        self.known, self.telling = Known(bench), 0.0
        self.heldout = bench.texts.whole("heldout")
        self.weights: list[int] = []

    def tell(self, need: Knowledge) -> tuple[Any, ...]:
        """A fact of the sites. `telling` counts the seconds: what a fact takes is paid alike by all who need it, not by who asks first.

        What earlier searches left in the store is told to nobody (`Known` has no memory): every entrant pays for what it learns.
        """
        began = self.clock()
        told = self.known(need)
        self.telling += self.clock() - began
        return told

    @cached_property
    def starts(self) -> tuple[Genotype, ...]:
        """The simple answers, uniform first. Needs the bank."""
        simple = (make_searcher(self.plan, self.bench.registry, self.bench.texts, name, {}, self.tell) for name in SIMPLE)
        return tuple(self.plan.space.genotype(searcher.incumbent) for searcher in simple)

    # Searching --------------------------------------------------------------------------------------------------------------------------

    def run(self, label: str, seed: int) -> tuple[dict[str, Any], Profile]:
        """One entrant with one seed, as a run of the document; and where it ended. Raises NotMeasured."""
        entrant = self.contest.entrants[label]
        path = self._search(label, entrant, seed)
        found: dict[str, list[float]] = {}
        profiles = dict.fromkeys(mark.incumbent for mark in path.marks)
        for number, profile in enumerate(profiles, 1):
            self.bench.listen(Progress("heldout", f"{label} seed {seed}", number, len(profiles)))
            trial = self._measure([profile], self.heldout, "heldout")[0]
            self.weights = list(trial.weights)
            found[_short(profile)] = [_rounded(value) for value in trial.values]
        end = path.marks[-1]
        run = {
            "label": label, "searcher": entrant.searcher, "seed": seed, "stop_tokens": entrant.tokens, "commit": commit(),
            "environment": self._environment(), "evaluations": end.evaluations, "tokens": end.tokens, "seconds": round(end.seconds, 3),
            "reason": path.reason, "marks": [self._mark(mark) for mark in path.marks], "profiles": found,
        }  # fmt: skip
        return run, end.incumbent

    def _search(self, label: str, entrant: Entrant, seed: int) -> Trace:
        """Drive the searcher to its end or its stop; its marks on the way."""
        searcher, making = self._made(entrant, seed)
        marks: list[Mark] = []
        due = 0

        def mark(totals: Totals, incumbent: Profile) -> Mark:
            return Mark(totals.tokens, totals.evaluations, making + totals.seconds + totals.thinking_seconds, incumbent)

        def on_event(event: Event) -> None:
            nonlocal due
            totals = event.totals
            about = (totals.evaluations, totals.tokens, totals.seconds)
            left = totals.seconds * (entrant.tokens / totals.tokens - 1) if totals.tokens else None
            self.bench.listen(Progress("search", f"{label} seed {seed}", totals.generation, 0, None, None, *about, left, totals.cached))
            if totals.tokens < FIRST_MARK * SPACING**due:
                return
            while totals.tokens >= FIRST_MARK * SPACING**due:
                due += 1
            if not marks or event.incumbent != marks[-1].incumbent:
                marks.append(mark(totals, event.incumbent))

        def measure(ask: Ask) -> Sequence[Trial]:
            return self._measure(ask.profiles, ask.slice, "search", ask.slopes)

        outcome = drive(searcher, measure, Stops(tokens=entrant.tokens), self.clock, on_event)
        end = mark(outcome.totals, outcome.best)
        if not marks or (marks[-1].tokens, marks[-1].incumbent) != (end.tokens, end.incumbent):
            marks.append(end)
        return Trace(tuple(marks), outcome.reason)

    def _made(self, entrant: Entrant, seed: int) -> tuple[Searcher, float]:
        """The searcher, and the seconds it took to make: for the simple ones that is all of their thinking."""
        cls, options = searcher_class(self.bench.registry, entrant.searcher, self.contest.study)
        options = {**default_options(cls), **options}
        began, telling = self.clock(), self.telling
        searcher = make_searcher(self.plan, self.bench.registry, self.bench.texts, cls.name, options, self.tell, self.starts, seed)
        own = self.clock() - began - (self.telling - telling)
        return searcher, own + self.known.seconds(cls.needs)

    def _measure(self, profiles: Sequence[Profile], slice_: Slice, role: Role, slopes: bool = False) -> list[Trial]:
        if not self.measures:
            keys = {self.bench.key(profile, slice_, self.fitness, slopes) for profile in profiles}
            if len(self.bench.store.find_trials(keys)) < len(keys):
                raise NotMeasured(f"Contest {self.contest.name} is not in the store whole.", "Run it: evopress study run FILE.")
        return self.bench.measure(profiles, slice_, self.fitness, role, slopes)

    # The document -----------------------------------------------------------------------------------------------------------------------

    def document(self, kept: Document | None) -> Document:
        """The document, with those runs of the one before that are still of this contest."""
        contest, bench = self.contest, self.bench
        made: Document = {
            "bank": self.bank(kept),
            "contest": {"name": contest.name, "digest": contest.digest, "base_digest": contest.base_digest, **contest.definition},
            "heldout": self._heldout(kept),
            "levels": list(kept["levels"]) if kept else [],
            "model": {"name": self.plan.ref.name, "digest": bench.model_digest},
            "quick": contest.quick,
            "runs": [],
            "sites": [site.name for site in self.plan.space.sites],
        }
        if kept is not None:
            adopt(made, kept, contest)
        return made

    def bank(self, kept: Document | None) -> dict[str, Any]:
        """What the bank costs. Seconds: those of the document before, for a bank may be built elsewhere than its contest is finished."""
        seconds = kept["bank"]["seconds"] if kept is not None and kept["bank"]["seconds"] is not None else self.bench.bank_seconds
        return {
            "recipe": self.bench.recipe.digest,
            "calibration_tokens": self.bench.tokens("calibration").tokens,
            "bytes": self.plan.bank_bytes,
            "seconds": None if seconds is None else round(seconds, 3),
        }

    def add(self, document: Document, run: dict[str, Any], final: Profile) -> None:
        """Put a finished run into the document."""
        document["runs"].append({**run, "final": packed(final, document["levels"])})
        document["heldout"]["weights"] = self.weights
        sort_runs(document, self.contest)

    def _heldout(self, kept: Document | None) -> dict[str, Any]:
        tokens = self.bench.tokens("heldout")
        weights = kept["heldout"]["weights"] if kept is not None else []  # known with the first measurement
        about = {"slice": self.heldout.digest, "documents": [len(ids) for ids in tokens.documents]}
        return {**about, "origins": list(tokens.origins), "weights": weights}

    def _mark(self, mark: Mark) -> dict[str, Any]:
        cost = self.plan.space.cost(mark.incumbent)
        size = {"bytes": cost.bytes, "bits": round(self.plan.space.bits(cost), 4)}
        spent = {"tokens": mark.tokens, "evaluations": mark.evaluations, "seconds": round(mark.seconds, 3)}
        return {**spent, "profile": _short(mark.incumbent), **size}

    def _environment(self) -> dict[str, Any]:
        from evopress.latency.clock import fingerprint

        return {**fingerprint(self.bench.device), "arithmetic": self.bench.arithmetic}


def _keep(bench: Workbench, study_id: int, contest: Contest, run: dict[str, Any], final: Profile) -> None:
    """Label the profile in the store, so that a leaderboard shows it and it can be exported."""
    slice_ = bench.texts.whole("heldout")
    stored = bench.stored(final, slice_, contest.study.fitness)
    label = run["label"] if asks_nothing(run) else f"{run['label']}@{run['seed']}"
    details = {"slice": slice_.digest, "search_evaluations": run["evaluations"], "search_tokens": run["tokens"]}
    bench.store.put_result(study_id, label, stored.profile_id, role="entrant", details=details, run_id=bench.run_id)


def _short(profile: Profile) -> str:
    """A digest that tells the profiles of one run apart."""
    return profile.digest[:16]


def _rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")
