"""A run: one execution of a study. A composition root: it wires models, data, bank, search and store together.

`evopress.contest` is the other one. Called by the command line and by `evopress.search`. Running the same study again resumes it:
everything measured is read from the store.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from evopress.api import (
    REMEMBERED,
    Ask,
    Genotype,
    InfeasibleBudget,
    Knowledge,
    Profile,
    Searcher,
    Space,
    Trial,
    check_feasible,
)
from evopress.api.study import Study
from evopress.events import Listener, Progress, silent
from evopress.found import Best, Row, Run
from evopress.gate import check_dense, dense_profile
from evopress.hooks.registry import Registry
from evopress.knowledge import Known
from evopress.memory import Memory
from evopress.plan import ENDLESS, Plan, default_options, make_plan, missed_roles, options_like, searcher_class, with_weights
from evopress.precision import check_device, check_dtype
from evopress.pricing import tables
from evopress.recording import recorded
from evopress.rehearsal import SIMPLE, make_searcher, rehearse
from evopress.report.latency import amount
from evopress.report.statistics import interval, paired
from evopress.search.ledger import Ledger
from evopress.search.loop import Event, Outcome, Stops, Totals, drive
from evopress.search.moves import within
from evopress.speed import pass_seconds, pass_speeds, speeds
from evopress.store import Store, load_reference
from evopress.texts import Texts
from evopress.tightening import ENOUGH, ROUNDS, TRIES, Fit, further, joined, lower, overtime, scaled
from evopress.workbench import Workbench

FRONT = 8
"""Profiles of a front that are compared, at most: each is scored on all held-out text, and timed."""
WATCH_TOKENS = 2048
"""Tokens on which the display compares with uniform."""
KEPT_TOKENS = 4096
"""Search tokens on which a simple answer that keeps a time stands against the answer under a tighter limit."""
WATCH_GENERATIONS = 5
"""Generations between two comparisons with uniform for the display."""


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
    check_device(device)
    check_dtype(dtype)
    plan = make_plan(study, registry, home, tables(storage, home, device, dtype, clock))
    listen(Progress("plan", facts(plan)))
    texts = Texts(plan, listen)
    rehearse(plan, registry, texts)
    plan = with_weights(plan, home)
    store = Store.open(storage)
    try:
        load_reference(store)
        bench = Workbench(plan, texts, registry, store, home, listen, device, dtype, bank_quota_bytes, clock)
        options = {"dtype": dtype, "device": device, "speed": speed}
        about = (study.name, study.identity, study.digest, {"stops": study.stops, "options": options})
        with recorded(bench, *about, command, f"evopress search resume {study.name}") as study_id:
            run = _Execution(bench, study_id, clock).run(speed)
        return replace(run, history=tuple(store.runs(study_id)))
    finally:
        store.close()


class _Execution:
    """The steps of a run, in order; holds what they share."""

    def __init__(self, bench: Workbench, study_id: int, clock: Callable[[], float]) -> None:
        self.bench, self.study_id, self.clock = bench, study_id, clock
        self.plan, self.study, self.space = bench.plan, bench.plan.study, bench.plan.space
        self.known = Known(bench)
        self.remarks: dict[str, str] = {}

    def run(self, speed: bool) -> Run:
        """Bank, gate, baselines, search, comparison on held-out documents, speed."""
        self.bench.complete_bank()
        simple = self._simple()
        check_dense(self.bench, simple["uniform"])
        cls, options = searcher_class(self.bench.registry, self.study.searcher, self.study)
        options = {**default_options(cls), **options}
        stops = Stops(self.study.stop_generations, self.study.stop_tokens, self.study.stop_seconds)
        in_time = speed and self.plan.workload is not None
        share, kept = self._fitting(simple["knapsack"]) if in_time else (1.0, None)
        if share != 1:  # what stands beside the search must have its limits
            simple = self._simple(share)
        starts = tuple(self.space.genotype(profile) for profile in simple.values())
        outcome = self._drive(cls.name, options, stops, starts, simple["uniform"], share=share)
        if in_time:
            outcome = self._in_time(cls.name, options, stops, outcome, share, kept)
        found, spent = {"dense": dense_profile(self.space)}, {cls.name: outcome.totals}
        for text in self.study.baselines:
            rival, rival_options = searcher_class(self.bench.registry, text, self.study)
            if rival.name in simple and not rival_options:
                found[rival.name] = simple[rival.name]
            elif rival.name != cls.name:
                matched = {**options_like(options, rival, max(outcome.totals.evaluations, 1)), **rival_options}
                # Equal evaluations for a rival that can count them; equal tokens for any other.
                stops = Stops() if matched.get("evaluations") else Stops(tokens=max(outcome.totals.tokens, 1))
                result = self._drive(rival.name, matched, stops, starts, rival=True, share=share)
                found[rival.name], spent[rival.name] = result.best, result.totals
        found[cls.name] = outcome.best
        others = [profile for profile in thinned(outcome.front, self.space, FRONT) if profile not in found.values()]
        front = {f"{cls.name} front {number}": profile for number, profile in enumerate(others, 1)}
        found.update(front)
        spent.update(dict.fromkeys(front, outcome.totals))
        same = [name for name, profile in simple.items() if profile == outcome.best and name not in (*found, cls.name)]
        if same:
            ended = f"it ended at the profile of {' and '.join(same)}, found without a search"
            self.remarks[cls.name] = "; ".join(filter(None, (self.remarks.get(cls.name), ended)))
        rows = self._compare(found, spent, front)
        if speed:
            timed = speeds(self.bench, found)
            if in_time:  # what the budget is of is known best from single passes
                passes = pass_speeds(self.bench, found, "comparison")
                timed = {label: timed[label] | passes[label] for label in found}
            rows = tuple(replace(row, speed=timed[row.label]) for row in rows)
        self._keep(rows, {"dense": "reference", cls.name: "winner", **dict.fromkeys(front, "front")})
        best = Best(cls.name, outcome.best, self.bench)
        return Run(
            self.study, self.plan, rows, best, outcome, self.bench.store.describe(),
            remarks=dict(self.remarks), known=self.memory.told, bank_seconds=self.bench.bank_seconds,
        )  # fmt: skip

    def _simple(self, share: float = 1.0) -> dict[str, Profile]:
        """The simple answers under a share of the study's limits on time. Raises InfeasibleBudget."""
        return {name: self._drive(name, {}, Stops(), share=share).best for name in SIMPLE}

    def _limited(self, share: float) -> Plan:
        """The plan with a share of the study's limits on time. Raises InfeasibleBudget."""
        budgets = scaled(self.plan.budgets, share)
        check_feasible(self.space, budgets)
        return replace(self.plan, budgets=budgets)

    def _overtime(self, profile: Profile, what: str) -> float:
        """What a profile takes as a whole model, as a multiple of the study's latency budgets."""
        timed = pass_seconds(self.bench, {"dense": dense_profile(self.space), what: profile}, what)
        return overtime(self.plan.budgets, self.space, timed["dense"], timed[what])

    def _fitting(self, profile: Profile) -> tuple[float, Profile | None]:
        """The share of the study's limits under which a simple answer, as a whole model, keeps its budgets and leaves little of them.

        profile: the simple answer to the study's own limits. With the share comes the answer under the loosest limit that kept them.
        """
        fit, kept = Fit(), None
        for turn in range(TRIES):
            times, tried = self._overtime(profile, f"simple answer {turn}"), fit.share
            fit = fit.after(times)
            kept = profile if fit.kept == tried else kept
            if fit.done:
                break
            try:
                profile = self._simple(fit.share)["knapsack"]
            except InfeasibleBudget:  # the answer of the search itself is timed, and then it is said
                return 1.0, kept
            if turn + 1 < TRIES:
                said = f"the knapsack's answer takes {times:.3f} times its budget as a whole model"
                self.bench.listen(Progress("speed", f"{said}; trying limits that are {fit.share:.3f} of it"))
        return fit.best, kept

    def _in_time(
        self, name: str, options: Mapping[str, Any], stops: Stops, outcome: Outcome, share: float, kept: Profile | None
    ) -> Outcome:
        """While the answer as a whole model leaves nothing of its latency budget, search on under a tighter limit.

        kept: a simple answer under a looser limit that keeps the budget; it stands against an answer under a tighter one.
        """
        first = outcome
        for turn in range(ROUNDS):
            times = self._overtime(outcome.best, f"answer {turn}")
            if times <= ENOUGH:
                break
            share, said = lower(share, times), f"the answer takes {times:.3f} times its budget as a whole model"
            try:
                # The answer so far, brought under the new limit, stands beside the simple answers to it.
                limited, own = self._limited(share), self.space.genotype(outcome.best)
                repaired = within(Ledger(self.space, limited.budgets), own, random.Random(self.study.seed))
                starts = (*map(self.space.genotype, self._simple(share).values()), repaired)
            except InfeasibleBudget:
                self.remarks[name] = "; ".join(filter(None, (self.remarks.get(name), f"{said}, and no tighter limit can be met")))
                break
            self.bench.listen(Progress("speed", f"{said}; searching under a tighter limit"))
            track = f"{name} tighter {turn + 1}"
            outcome = joined(outcome, self._drive(name, options, further(stops), starts, share=share, track=track))
        return outcome if kept is None or outcome is first else self._better(name, outcome, kept)

    def _better(self, name: str, outcome: Outcome, kept: Profile) -> Outcome:
        """The outcome, with the kept profile in place of its answer where that is worse on some of the search text."""
        slice_ = self.bench.texts.first("search", KEPT_TOKENS)
        found, simple = self.bench.measure([outcome.best, kept], slice_, self.study.fitness, "search")
        spent = outcome.totals
        totals = replace(spent, evaluations=spent.evaluations + 2, tokens=spent.tokens + 2 * slice_.tokens)
        if simple.fitness >= found.fitness:
            return replace(outcome, totals=totals)
        said = "under the tighter limit it found nothing better than a simple answer that keeps the budget"
        self.remarks[name] = "; ".join(filter(None, (self.remarks.get(name), said)))
        return replace(outcome, best=kept, totals=totals)

    def _tell(self, need: Knowledge) -> tuple[Any, ...]:
        """A fact of the sites, or what earlier searches left in the store, read when a searcher first needs it."""
        if need not in REMEMBERED:
            return self.known(need)
        if self.study.fresh:
            return ()
        return self.memory(need)

    @cached_property
    def memory(self) -> Memory:
        """What the store held before this study was first started."""
        return Memory(self.bench, self.bench.store, self.bench.store.find_study(self.study.name).created)

    def _drive(
        self,
        name: str,
        options: Mapping[str, Any],
        stops: Stops,
        starts: tuple[Genotype, ...] = (),
        uniform: Profile | None = None,
        rival: bool = False,
        share: float = 1.0,
        track: str = "",
    ) -> Outcome:
        """Drive a searcher; every question and its trials become steps of the study's trajectory, under `track` or its name.

        share: of the study's limits on time.
        """
        plan = self.plan if share == 1 else self._limited(share)
        searcher = make_searcher(plan, self.bench.registry, self.bench.texts, name, options, self._tell, starts)
        # A rival's questions depend on how long it is allowed to go on, so its trajectory carries that in its name.
        track = f"{name}@{options.get('evaluations', stops.tokens)}" if rival else track or name
        track += "" if share == 1 else f" under {share:.6f} of the limits"  # other limits, other questions
        ordinal = 0

        def measure(ask: Ask) -> Sequence[Trial]:
            nonlocal ordinal
            trials = self.bench.measure(ask.profiles, ask.slice, self.study.fitness, "search", ask.slopes)
            ids = [self.bench.stored(profile, ask.slice, self.study.fitness, ask.slopes).id for profile in ask.profiles]
            self.bench.store.record_step(
                self.study_id, track, ordinal, ids, generation=ask.generation, stage=ask.stage, run_id=self.bench.run_id
            )
            ordinal += 1
            return trials

        outcome = drive(searcher, measure, stops, self.clock, self._narrator(searcher, stops, uniform))
        if searcher.remark:
            self.remarks[name] = searcher.remark
        elif rival and outcome.next_tokens is not None and not outcome.totals.evaluations:
            taken = f"{outcome.next_tokens:,} tokens, and the search took {stops.tokens:,}"
            self.remarks[name] = f"measured nothing: its first question takes {taken}"
        return outcome

    def _narrator(self, searcher: Searcher, stops: Stops, uniform: Profile | None) -> Callable[[Event], None]:
        """Tell the listener how the search goes. Every few generations the incumbent is compared with uniform on one small slice.

        That comparison is for the display alone: it is stored like any trial, but it steers nothing and does not count as search.
        """
        # A round of slopes and a race takes as long as several generations of mutants.
        every = 1 if "slopes" in searcher.needs else WATCH_GENERATIONS
        own = int(getattr(searcher, "generations", None) or 0)
        total = stops.generations or (own if own < ENDLESS else 0)
        shown: dict[str, Any] = {"profile": None, "generation": -every, "best": None, "gain": None}

        def tell(event: Event) -> None:
            at = event.totals.generation
            if uniform is not None and event.incumbent != shown["profile"] and at - shown["generation"] >= every:
                small = self.bench.texts.first("search", WATCH_TOKENS)
                pair = self.bench.measure([event.incumbent, uniform], small, self.study.fitness, "search")
                shown.update(profile=event.incumbent, generation=at, best=pair[0].fitness, gain=pair[1].fitness - pair[0].fitness)
            totals = event.totals
            spent = (totals.evaluations, totals.tokens, totals.seconds)
            left = _eta(totals, stops, total)
            self.bench.listen(Progress("search", searcher.name, at, total, shown["best"], shown["gain"], *spent, left, totals.cached))

        return tell

    def _compare(self, found: Mapping[str, Profile], spent: Mapping[str, Totals], front: Collection[str]) -> tuple[Row, ...]:
        """Measure every profile on all held-out documents: KL and the text's own likelihood.

        front: labels of profiles of other sizes, which are not tested against uniform.
        """
        slice_, origins = self.bench.texts.whole("heldout"), self.bench.tokens("heldout").origins
        trials: dict[str, dict[str, Trial]] = {}
        for number, (label, profile) in enumerate(found.items()):
            self.bench.listen(Progress("heldout", label, number, len(found)))
            names = dict.fromkeys(("kl", "perplexity", self.study.fitness))
            trials[label] = {name: self.bench.measure([profile], slice_, name, "heldout")[0] for name in names}
        rows = []
        for label, profile in found.items():
            cost = self.space.cost(profile)  # with the time it has here, which a stored trial does not tell
            kl, nll, mine = (trials[label][name] for name in ("kl", "perplexity", self.study.fitness))
            against = None
            if "uniform" in found and label not in ("uniform", "dense", *front):
                against = paired(mine.values, trials["uniform"][self.study.fitness].values, mine.weights, self.study.seed, origins)
            kl_interval, nll_interval = (interval(trial.values, trial.weights, groups=origins) for trial in (kl, nll))
            took = spent.get(label, Totals())
            size = (cost, self.space.bits(cost))
            rows.append(Row(label, profile, *size, kl_interval, nll_interval, against, took.evaluations, took.tokens))
        return tuple(rows)

    def _keep(self, rows: Sequence[Row], roles: Mapping[str, str]) -> None:
        """Label the profiles of the comparison in the store. roles: by label; any other is a baseline."""
        slice_ = self.bench.texts.whole("heldout")
        self.bench.store.forget_results(self.study_id, "front")
        for row in rows:
            stored = self.bench.stored(row.profile, slice_, "kl")
            details: dict[str, Any] = {
                "slice": slice_.digest,
                "kl": asdict(row.kl),
                "nll": asdict(row.nll),
                "search_evaluations": row.search_evaluations,
                "search_tokens": row.search_tokens,
            }
            if row.against_uniform is not None:
                details["against_uniform"] = asdict(row.against_uniform)
            role = roles.get(row.label, "baseline")
            self.bench.store.put_result(self.study_id, row.label, stored.profile_id, role=role, details=details, run_id=self.bench.run_id)


def thinned(front: Sequence[Profile], space: Space, most: int) -> list[Profile]:
    """At most so many of a front that is sorted by bytes: both ends, and those nearest to even steps of bytes between them.

    Where the costs of the space tell nanoseconds, half of the places go to those nearest to even steps of time, so the fastest stays too.
    """
    if len(front) <= most:
        return list(front)
    costs = [space.cost(profile) for profile in front]
    axes = [[cost.bytes for cost in costs]]
    if space.dearest.nanoseconds:
        axes.append([cost.nanoseconds for cost in costs])
    steps = most // len(axes)
    nearest: set[int] = set()
    for sizes in axes:
        low, high = min(sizes), max(sizes)
        wanted = [low + step * (high - low) / (steps - 1) for step in range(steps)]
        nearest |= {min((abs(size - goal), at) for at, size in enumerate(sizes))[1] for goal in wanted}
    return [front[at] for at in sorted(nearest)]


def facts(plan: Plan) -> str:
    """One line on what will be searched: sites, coverage, budgets."""
    linear = sum(site.kind == "linear" for site in plan.space.sites)
    missed = [role for role, _ in missed_roles(plan.space)]
    without = f" (no level to choose at: {', '.join(missed[:6])})" if missed else ""
    limits = ", ".join(f"{budget.text} = at most {amount(budget.limit, budget.field)}" for budget in plan.budgets)
    reach = f"{plan.coverage:.1%} of the parameters outside embeddings and head{without}"
    return f"{plan.ref.name}: {linear} linear sites, {reach}; budget {limits}"


def last_stops(store: Store, study_id: int) -> dict[str, Any]:
    """The stops of the study's last run, so that resuming it goes as far as was asked."""
    runs = store.runs(study_id)
    return dict(runs[-1].environment.get("stops", {})) if runs else {}


def _eta(totals: Totals, stops: Stops, generations: int) -> float | None:
    """Seconds left by the tightest of the stops, from what was measured now and not read from the store."""
    shares = []
    if not totals.generation:
        return None  # the first questions are about the start, and tell nothing of the pace
    if generations:
        shares.append(totals.generation / generations)
    if stops.tokens:
        shares.append(totals.tokens / stops.tokens)
    if stops.seconds:
        shares.append(totals.seconds / stops.seconds)
    share = max(shares, default=0.0)
    return totals.seconds * (1 - share) / share if 0 < share <= 1 else None
