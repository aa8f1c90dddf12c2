"""A run: one execution of a study. The composition root; the only file that wires models, data, bank, search and store together.

Called by the command line and by `evopress.search`. Running the same study again resumes it: everything measured is read from the store.
"""

from __future__ import annotations

import random
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from evopress.api import (
    DENSE,
    Ask,
    Cost,
    Genotype,
    NotFound,
    NumericalError,
    Problem,
    Profile,
    QualityGateFailed,
    Searcher,
    Slice,
    Stopped,
    Trial,
    UsageError,
)
from evopress.api.study import Study
from evopress.data.tokens import ROLES
from evopress.events import Listener, Progress, silent
from evopress.hooks.registry import Registry
from evopress.plan import Plan, default_options, make_plan, options_like, searcher_class
from evopress.report.comparison import commit
from evopress.report.statistics import Interval, Paired, interval, paired
from evopress.search.loop import Event, Outcome, Stops, Totals, drive
from evopress.store import LatencyRow, ProfileRow, Store
from evopress.workbench import Workbench

if TYPE_CHECKING:
    from torch import nn

SIMPLE = ("uniform", "greedy", "knapsack")
"""The simple answers, which every search starts from."""
SMALL_TOKENS = 2048
"""Tokens on which the all-dense profile must score zero before a search starts, and on which the display compares with uniform."""
ZERO_LIMIT = {"float32": 1e-4, "other": 5e-3}
"""Largest divergence of the dense model from itself, in nats a token, that is rounding, by compute type."""
WATCH_GENERATIONS = 5
"""Generations between two comparisons with uniform for the display."""
P_VALUE = 0.01
"""The winner is accepted when the paired test against uniform is below this."""


class Interrupted(Stopped):
    """Stopped by Ctrl-C after a clean checkpoint."""

    exit_code = 130
    code = "interrupted"


@dataclass(frozen=True)
class Row:
    """One profile of the final comparison, on the held-out documents.

    label: dense, uniform, random, greedy, knapsack or the searcher. against_uniform: paired differences of the fitness.
    search_tokens: token-forwards spent to find it. speed: phase -> measured tokens per second, absent where it was not measured.
    """

    label: str
    profile: Profile
    cost: Cost
    bits: float
    kl: Interval
    nll: Interval
    against_uniform: Paired | None
    search_tokens: int = 0
    speed: Mapping[str, LatencyRow] = field(default_factory=dict)


@dataclass(frozen=True)
class Best:
    """The winner. `apply` writes it into a model; `tokenizer` is the model's own."""

    label: str
    profile: Profile
    _bench: Workbench = field(repr=False, compare=False)

    @property
    def tokenizer(self) -> Any:
        """The tokenizer of the study's model."""
        return self._bench.tokenizer

    def apply(self, model: nn.Module | str | Path | None = None) -> nn.Module:
        """Stitch the winner into `model` (default: the study's own) and return it: a live model that generates text.

        The model must have the sites of the study's model. Its weights are replaced by de-quantised ones; dropped parts are skipped.
        """
        from evopress.models.stitch import Stitcher

        self._bench.complete_bank()
        if isinstance(model, str | Path):
            from evopress.models.load import load, resolve

            model = load(resolve(str(model), self._bench.home), self._bench.dtype, self._bench.device)[0]
        target = self._bench.model if model is None else model
        stitcher = self._bench.stitcher if model is None else Stitcher(target, self._bench.plan.sitemap.sites)
        stitcher.set(self.profile, self._bench.decoder)
        return target


@dataclass(frozen=True)
class Run:
    """What a run found: the comparison on held-out documents, and the winner. commits: of the code that ran this study so far."""

    study: Study
    plan: Plan
    rows: tuple[Row, ...]
    best: Best
    outcome: Outcome
    storage: str
    commits: tuple[str, ...] = ()

    @property
    def gain(self) -> Paired | None:
        """The winner against uniform: a paired test of the fitness on held-out documents."""
        return next(row.against_uniform for row in self.rows if row.label == self.best.label)

    def require_gain(self) -> None:
        """Raise QualityGateFailed unless the winner beats uniform on held-out documents: a lower mean, and p < 0.01."""
        if self.gain is None or self.gain.p >= P_VALUE or self.gain.difference >= 0:
            p = "no uniform profile to compare with" if self.gain is None else f"{self.gain.difference:+.4f}, p = {self.gain.p:.3g}"
            raise QualityGateFailed(
                f"The profile of {self.best.label} does not beat uniform on held-out documents ({p}, asked for p < {P_VALUE}).",
                "Search longer, or judge on more text: with few documents no p can be small enough (raise --heldout-tokens).",
            )

    def __str__(self) -> str:
        from evopress.report.comparison import comparison_text

        return comparison_text(self)

    def _repr_html_(self) -> str:
        from evopress.report.comparison import comparison_html

        return comparison_html(self)


def execute(
    study: Study,
    storage: str,
    home: Path,
    registry: Registry | None = None,
    listen: Listener = silent,
    device: str = "cpu",
    dtype: str = "auto",
    bank_quota_bytes: int | None = None,
    speed: bool = True,
    command: str = "",
    clock: Callable[[], float] = time.perf_counter,
) -> Run:
    """Run a study to its end, or to its stops. Every measurement is stored the moment it is taken.

    Raises Interrupted on Ctrl-C and Stopped on SIGTERM, both after a clean checkpoint: the same call resumes. Raises InfeasibleBudget
    before any weight is read.
    """
    registry = registry or Registry.load()
    plan = make_plan(study, registry, home)
    store = Store.open(storage)
    try:
        bench = Workbench(plan, registry, store, home, listen, device, dtype, bank_quota_bytes, clock)
        with _recorded(store, bench, command) as study_id:
            return _Execution(bench, study_id, clock).run(speed)
    finally:
        store.close()


@contextmanager
def _recorded(store: Store, bench: Workbench, command: str) -> Iterator[int]:
    """Keep a run row around the work, and heartbeats while it lasts; yields the id of the study."""
    from evopress.latency.clock import fingerprint

    plan = bench.plan
    study_id = store.study(plan.study.name, plan.study.identity, plan.study.digest).id
    bench.save_model()
    bench.run_id = store.start_run(
        study_id,
        seed=plan.study.seed,
        command=command,
        environment={**fingerprint(), "stops": plan.study.stops, "options": {"dtype": bench.asked_dtype, "device": bench.device}},
        code_version=commit(),
        owner=bench.owner,
    )
    try:
        with _sigterm_raises(), store.heartbeating(bench.owner):
            yield study_id
    except KeyboardInterrupt:
        store.finish_run(bench.run_id, "interrupted", stop_reason="Ctrl-C")
        raise Interrupted(
            f"Interrupted. Everything measured so far is stored in study {plan.study.name!r}.",
            f"Resume: evopress search resume {plan.study.name}",
        ) from None
    except Stopped as stopped:
        store.finish_run(bench.run_id, "stopped", stop_reason=stopped.message)
        raise
    except Exception as error:
        store.finish_run(bench.run_id, "failed", error=f"{type(error).__name__}: {error}")
        raise
    store.finish_run(bench.run_id, "finished")


@contextmanager
def _sigterm_raises() -> Iterator[None]:
    def stop(_: int, __: FrameType | None) -> None:
        raise Stopped("Stopped by SIGTERM. Everything measured so far is stored.", "Run the same command again to resume.")

    # Signals belong to the main thread; a notebook server may call from another, where SIGTERM keeps its default.
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class _Execution:
    """The steps of a run, in order; holds what they share."""

    def __init__(self, bench: Workbench, study_id: int, clock: Callable[[], float]) -> None:
        self.bench, self.study_id, self.clock = bench, study_id, clock
        self.plan, self.study, self.space = bench.plan, bench.plan.study, bench.plan.space
        self.dense = self.space.profile([self.space.choices(gene).index(DENSE) for gene in range(len(self.space.genes))])

    def run(self, speed: bool) -> Run:
        """Bank, gate, baselines, search, comparison on held-out documents, speed."""
        self._rehearse()
        self.bench.complete_bank()
        self._gate()
        simple = {name: self._drive(name, {}, Stops()).best for name in SIMPLE}
        starts = tuple(self.space.genotype(profile) for profile in simple.values())
        cls, options = searcher_class(self.bench.registry, self.study.searcher, self.study)
        options = {**default_options(cls), **options}
        stops = Stops(self.study.stop_generations, self.study.stop_tokens, self.study.stop_seconds)
        outcome = self._drive(cls.name, options, stops, starts, simple["uniform"])
        found, spent = {"dense": self.dense}, {cls.name: outcome.totals.tokens}
        for text in self.study.baselines:
            rival, rival_options = searcher_class(self.bench.registry, text, self.study)
            if rival.name in simple and not rival_options:
                found[rival.name] = simple[rival.name]
            elif rival.name != cls.name:
                matched = {**options_like(options, rival), **rival_options}
                result = self._drive(rival.name, matched, Stops(tokens=max(outcome.totals.tokens, 1)), starts)
                found[rival.name], spent[rival.name] = result.best, result.totals.tokens
        found[cls.name] = outcome.best
        rows = self._compare(found, spent)
        if speed:
            rows = self._with_speed(rows, ("dense", "uniform", cls.name))
        self._keep(rows, cls.name)
        commits = tuple(dict.fromkeys(run.code_version for run in self.bench.store.runs(self.study_id)))
        best = Best(cls.name, outcome.best, self.bench)
        return Run(self.study, self.plan, rows, best, outcome, self.bench.store.describe(), commits)

    def _rehearse(self) -> None:
        """Make the token sets and the searchers that have options, so that what is wrong with them is told before the bank is built."""
        for role in ROLES:
            self.bench.tokens(role)
        guess = tuple(tuple(float(level != DENSE) for level in levels) for levels in self.space.levels)
        start = self.space.genotype(self._searcher("uniform", {}, guess).incumbent)
        for text in dict.fromkeys((self.study.searcher, *self.study.baselines)):
            cls, options = searcher_class(self.bench.registry, text, self.study)
            if options or text == self.study.searcher:
                self._searcher(cls.name, options, guess, (start,))

    def _searcher(
        self, name: str, options: Mapping[str, Any], errors: tuple[tuple[float, ...], ...], starts: tuple[Genotype, ...] = ()
    ) -> Searcher:
        tokens = self.bench.tokens("search")
        problem = Problem(self.space, self.plan.budgets, tokens.digest, tuple(map(len, tokens.documents)), errors, starts)
        made: Searcher = self.bench.registry.get("searcher", name)(problem, random.Random(f"{name}:{self.study.seed}"), **options)
        return made

    def _gate(self) -> None:
        """The all-dense profile must score zero to rounding: else stitching or the fitness is broken, and a search would be nonsense."""
        if not self.bench.registry.get("fitness", self.study.fitness).zero_when_dense:
            return
        trial = self.bench.measure([self.dense], self._small_slice(), self.study.fitness, "search")[0]
        limit = ZERO_LIMIT["float32" if self.bench.numerics.startswith("float32") else "other"]
        if abs(trial.fitness) > limit:
            raise NumericalError(
                f"The all-dense profile scores {trial.fitness:.2e} {self.study.fitness} against the dense model; "
                f"at most {limit:.0e} is rounding.",
                "Stitching changes this model, so no search on it can be trusted: try --dtype float32, and report the model.",
            )

    def _small_slice(self) -> Slice:
        """The first documents of the search set, at least SMALL_TOKENS of them where there are so many."""
        tokens, documents, taken = self.bench.tokens("search"), [], 0
        for index, ids in enumerate(tokens.documents):
            if taken >= SMALL_TOKENS:
                break
            documents.append((index, len(ids)))
            taken += len(ids)
        return Slice(tokens.digest, tuple(documents))

    def _drive(
        self, name: str, options: Mapping[str, Any], stops: Stops, starts: tuple[Genotype, ...] = (), uniform: Profile | None = None
    ) -> Outcome:
        """Drive a searcher; every question and its trials become steps of the study's trajectory."""
        searcher = self._searcher(name, options, self.bench.errors, starts)
        # A rival's questions depend on how long it is allowed to go on, so its trajectory carries that in its name.
        track = name if uniform is not None or stops.tokens is None else f"{name}@{stops.tokens}"
        ordinal = 0

        def measure(ask: Ask) -> Sequence[Trial]:
            nonlocal ordinal
            trials = self.bench.measure(ask.profiles, ask.slice, self.study.fitness, "search")
            ids = [self.bench.stored(profile, ask.slice, self.study.fitness).id for profile in ask.profiles]
            self.bench.store.record_step(
                self.study_id, track, ordinal, ids, generation=ask.generation, stage=ask.stage, run_id=self.bench.run_id
            )
            ordinal += 1
            return trials

        return drive(searcher, measure, stops, self.clock, self._narrator(name, options, stops, uniform))

    def _narrator(self, name: str, options: Mapping[str, Any], stops: Stops, uniform: Profile | None) -> Callable[[Event], None]:
        """Tell the listener how the search goes. Every few generations the incumbent is compared with uniform on one small slice.

        That comparison is for the display alone: it is stored like any trial, but it steers nothing and does not count as search.
        """
        shown: dict[str, Any] = {"profile": None, "generation": -WATCH_GENERATIONS, "best": None, "gain": None}

        def tell(event: Event) -> None:
            at = event.totals.generation
            if uniform is not None and event.incumbent != shown["profile"] and at - shown["generation"] >= WATCH_GENERATIONS:
                pair = self.bench.measure([event.incumbent, uniform], self._small_slice(), self.study.fitness, "search")
                shown.update(profile=event.incumbent, generation=at, best=pair[0].fitness, gain=pair[1].fitness - pair[0].fitness)
            total = stops.generations or options.get("generations") or 0
            totals = event.totals
            spent = (totals.evaluations, totals.tokens, totals.seconds)
            left = _eta(totals, stops, int(total))
            self.bench.listen(Progress("search", name, at, int(total), shown["best"], shown["gain"], *spent, left, totals.cached))

        return tell

    def _compare(self, found: Mapping[str, Profile], spent: Mapping[str, int]) -> tuple[Row, ...]:
        """Measure every profile on all held-out documents: KL and the text's own likelihood."""
        slice_ = self.bench.whole("heldout")
        trials: dict[str, dict[str, Trial]] = {}
        for number, (label, profile) in enumerate(found.items()):
            self.bench.listen(Progress("heldout", label, number, len(found)))
            names = dict.fromkeys(("kl", "perplexity", self.study.fitness))
            trials[label] = {name: self.bench.measure([profile], slice_, name, "heldout")[0] for name in names}
        rows = []
        for label, profile in found.items():
            kl, nll, mine = (trials[label][name] for name in ("kl", "perplexity", self.study.fitness))
            against = None
            if "uniform" in found and label not in ("uniform", "dense"):
                against = paired(mine.values, trials["uniform"][self.study.fitness].values, mine.weights, self.study.seed)
            intervals = (interval(kl.values, kl.weights), interval(nll.values, nll.weights))
            rows.append(Row(label, profile, kl.cost, self.space.bits(kl.cost), *intervals, against, spent.get(label, 0)))
        return tuple(rows)

    def _with_speed(self, rows: tuple[Row, ...], labels: Sequence[str]) -> tuple[Row, ...]:
        """Prefill and decode speed of the named profiles with real kernels; measured in turns, once, then read from the store."""
        chosen = {row.label: row.profile for row in rows if row.label in labels}
        speeds = self.bench.speeds(chosen)
        return tuple(replace(row, speed=speeds[row.label]) if row.label in speeds else row for row in rows)

    def _keep(self, rows: Sequence[Row], winner: str) -> None:
        """Label the profiles of the comparison in the store."""
        slice_ = self.bench.whole("heldout")
        for row in rows:
            stored = self.bench.stored(row.profile, slice_, "kl")
            role = "winner" if row.label == winner else "reference" if row.label == "dense" else "baseline"
            details: dict[str, Any] = {
                "slice": slice_.digest,
                "kl": asdict(row.kl),
                "nll": asdict(row.nll),
                "search_tokens": row.search_tokens,
            }
            if row.against_uniform is not None:
                details["against_uniform"] = asdict(row.against_uniform)
            self.bench.store.put_result(self.study_id, row.label, stored.profile_id, role=role, details=details, run_id=self.bench.run_id)


def last_stops(store: Store, study_id: int) -> dict[str, Any]:
    """The stops of the study's last run, so that resuming it goes as far as was asked."""
    runs = store.runs(study_id)
    return dict(runs[-1].environment.get("stops", {})) if runs else {}


def last_options(store: Store, study_id: int) -> dict[str, str]:
    """Device and type the study's last run was asked for: other ones would be other measurements."""
    runs = store.runs(study_id)
    return dict(runs[-1].environment.get("options", {})) if runs else {}


def open_profile(
    store: Store, row: ProfileRow, home: Path, listen: Listener = silent, device: str = "cpu", dtype: str = "auto"
) -> tuple[nn.Module, Any]:
    """A stored profile as a live model, with its tokenizer. Rebuilds what its bank lacks.

    Raises NotFound when no study of the store holds the profile, so that nobody knows what it was calibrated on.
    """
    results = [result for result in store.results() if result.profile_id == row.id]
    if not results:
        raise NotFound(
            f"Profile {row.profile.digest[:12]} is a trial that no study kept, so its study is not known.",
            "Name a profile of a finished comparison: evopress leaderboard.",
        )
    found = store.find_study(results[-1].study)
    study = Study.make({"name": found.name, **found.definition}, f"stored study {found.name}")
    registry = Registry.load()
    bench = Workbench(make_plan(study, registry, home), registry, store, home, listen, device, dtype)
    if bench.model_digest != row.model_digest:
        raise UsageError(
            f"Study {found.name} ran on weights {row.model_digest[:12]}, but {bench.plan.ref.name} now has {bench.model_digest[:12]}.",
            "Bring the old weights back, or search again under a new study name.",
        )
    return Best("", row.profile, bench).apply(), bench.tokenizer


def _eta(totals: Totals, stops: Stops, generations: int) -> float | None:
    """Seconds left by the tightest of the stops, from what was measured now and not read from the store."""
    shares = []
    if generations and totals.generation:
        shares.append(totals.generation / generations)
    if stops.tokens:
        shares.append(totals.tokens / stops.tokens)
    if stops.seconds:
        shares.append(totals.seconds / stops.seconds)
    share = max(shares, default=0.0)
    return totals.seconds * (1 - share) / share if 0 < share <= 1 else None
