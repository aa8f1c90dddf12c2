"""Conformance check of searchers, and planted problems to test them on in milliseconds; shipped for plugin authors.

    from evopress.testing.searchers import check_searcher
    check_searcher(MySearcher, generations=5)

Needs no torch and no model: a planted problem has made-up sites and costs, a planted function says what a profile scores. For tests only.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal

from evopress.api import (
    ABSENT,
    DENSE,
    DROP,
    REMEMBERED,
    ZERO,
    Ask,
    Budget,
    Cost,
    EvopressError,
    KnownTrial,
    Level,
    Problem,
    Profile,
    Searcher,
    Site,
    SiteKind,
    Space,
    Trial,
    UsageError,
    dense_cost,
    order_levels,
)

Measure = Callable[[Ask], list[Trial]]
Planted = Callable[[Profile], float]


def quant_levels(rows: int, columns: int, bits: Sequence[int] = (2, 3, 4), group: int = 64, method: str = "gptq") -> dict[Level, Cost]:
    """Levels of a linear site with the bytes of packed codes, 16-bit scales and 8-bit zeros, and dense."""
    groups = -(-columns // group)
    levels = {
        Level.of(method, bits=width, group=group): Cost(rows * -(-columns * width // 8) + 3 * rows * groups, rows * columns)
        for width in bits
    }
    return {**levels, DENSE: dense_cost(rows * columns)}


def sparse_levels(rows: int, columns: int, step: int, count: int, method: str = "sparsegpt") -> dict[Level, Cost]:
    """Levels of a linear site with `step`, 2·`step`, … zeros: a bitmask and 16-bit values, and dense."""
    weights = rows * columns
    zeros = [number * step for number in range(1, count + 1) if number * step < weights]
    return {
        **{Level.of(method, zeros=zero): Cost(-(-weights // 8) + 2 * (weights - zero), weights - zero) for zero in zeros},
        DENSE: dense_cost(weights),
    }


def planted_space(
    blocks: int = 4,
    methods: Sequence[str] = ("gptq", "drop"),
    drops: Sequence[SiteKind] = ("attention", "mlp"),
    links: bool = False,
    width: int = 64,
    linears: bool = True,
) -> Space:
    """A small decoder: per block q, k, o under attention and up, down under mlp, both under a block site.

    methods: any of gptq, sparsegpt, drop. drops: kinds of container `drop` may remove. links: up and down of a block share a level, and so
    do all k. linears: False leaves only dense levels at the linear sites (the drop search).
    """
    shapes = {"attention": {"q": (width, width), "k": (width // 2, width), "o": (width, width)}, "mlp": {}}
    shapes["mlp"] = {"up": (2 * width, width), "down": (width, 2 * width)}
    sites: list[Site] = []
    options: list[dict[Level, Cost]] = []

    def container(name: str, kind: SiteKind, depth: int, parent: str | None, own: int) -> None:
        sites.append(Site(name, kind, (0, 0), depth, parent, own_params=own))
        options.append({DENSE: dense_cost(own), **({DROP: ZERO} if "drop" in methods and kind in drops else {})})

    for depth in range(blocks):
        block = f"layers.{depth}"
        container(block, "block", depth, None, 2 * width)
        for kind in ("attention", "mlp"):
            inner = f"{block}.{kind}"
            container(inner, "attention" if kind == "attention" else "mlp", depth, block, 0)
            for role, (rows, columns) in shapes[kind].items():
                sites.append(Site(f"{inner}.{role}", "linear", (rows, columns), depth, inner))
                levels = {DENSE: dense_cost(rows * columns)}
                if linears and "gptq" in methods:
                    levels |= quant_levels(rows, columns)
                if linears and "sparsegpt" in methods:
                    levels |= sparse_levels(rows, columns, step=width * width // 8, count=3)
                options.append(levels)
    ordered = [order_levels(option) for option in options]
    found = {site.name: position for position, site in enumerate(sites)}
    groups = [tuple(found[f"layers.{depth}.mlp.{role}"] for role in ("up", "down")) for depth in range(blocks)] if links else []
    ladders = tuple(levels for levels, _ in ordered)
    if links:
        groups.append(tuple(found[f"layers.{depth}.attention.k"] for depth in range(blocks)))
        groups = [group for group in groups if len({ladders[position] for position in group}) == 1]
    return Space(tuple(sites), ladders, tuple(costs for _, costs in ordered), dense_cost(1000), tuple(groups))


def timed_space(space: Space, seed: int = 0) -> Space:
    """The space with nanoseconds that are no function of bytes, as on a real machine.

    Every method has a price a byte and one a parameter of its own, every site a factor, and containers take time of their own.
    """
    rng = random.Random(f"times {seed}")
    prices: dict[str, tuple[float, float]] = {"dense": (4.0, 0.0)}
    for levels in space.levels:
        for level in levels:
            prices.setdefault(level.method, (rng.uniform(2, 8), rng.uniform(0, 4)))
    costs = []
    for site, levels, row in zip(space.sites, space.levels, space.costs, strict=True):
        factor = rng.uniform(0.7, 1.4)
        timed = []
        for level, cost in zip(levels, row, strict=True):
            a_byte, a_param = prices[level.method]
            linear = a_byte * cost.bytes + a_param * cost.params
            own = 0.0 if level == DROP else linear if site.kind == "linear" else 500.0
            timed.append(replace(cost, nanoseconds=round(factor * own)))
        costs.append(tuple(timed))
    return replace(space, costs=tuple(costs), fixed=replace(space.fixed, nanoseconds=1000))


def budget_between(space: Space, field: Literal["bytes", "params", "nanoseconds"], share: float) -> Budget:
    """A budget at a share of the way from the cheapest to the dearest profile of a space."""
    low, high = getattr(space.cheapest, field), getattr(space.dearest, field)
    limit = int(low + share * (high - low))
    text = {"bytes": f"size={limit}b", "params": f"params={limit}", "nanoseconds": f"latency={limit}ns"}[field]
    return Budget(text, field, limit)


def planted_problem(
    space: Space | None = None,
    budgets: Sequence[Budget] = (),
    share: float = 0.4,
    errors: bool = True,
    seed: int = 0,
    documents: Sequence[int] = (700,) * 60,
) -> Problem:
    """A problem with made-up documents, facts of its sites, and layer errors that fall with the parameters and bytes a level keeps."""
    space = space or planted_space()
    rng = random.Random(seed)
    table: list[tuple[float, ...]] = []
    below = [0] * len(space.sites)
    for position in reversed(range(len(space.sites))):
        below[position] += space.sites[position].kind == "linear"
        if space.parents[position] >= 0:
            below[space.parents[position]] += below[position]
    for position, (levels, costs) in enumerate(zip(space.levels, space.costs, strict=True)):
        scale = rng.uniform(0.05, 1.0)
        full = max(max(cost.bytes for cost in costs), 1)
        table.append(
            tuple(
                0.0 if level == DENSE else float(below[position]) if level == DROP else scale * (1 - cost.bytes / full) ** 4
                for level, cost in zip(levels, costs, strict=True)
            )
        )
    chosen = tuple(budgets) or (budget_between(space, "bytes", share),)
    facts = planted_facts(space, seed)
    return Problem(space, chosen, "planted", tuple(documents), tuple(table) if errors else (), **facts)


def planted_facts(space: Space, seed: int = 0) -> dict[str, Any]:
    """Made-up energies, outliers, spectra and similarities of the sites of a space, by the names of a problem's fields."""
    rng = random.Random(f"facts {seed}")
    linear = [site.kind == "linear" for site in space.sites]
    spectra = []
    for site in space.sites:
        decay = rng.uniform(0.5, 8.0)
        spectra.append(tuple((1 - place / min(site.shape)) ** decay for place in range(min(site.shape))))
    return {
        "energies": tuple(10 ** rng.uniform(-2, 2) if is_linear else 0.0 for is_linear in linear),
        "outliers": tuple(rng.uniform(0, 0.05) if is_linear else 0.0 for is_linear in linear),
        "spectra": tuple(spectra),
        "similarities": tuple(1.0 if is_linear else rng.uniform(0.5, 1.0) for is_linear in linear),
    }


FACTS = frozenset({"errors", "energies", "outliers", "spectra", "similarities"})
"""Fields of a problem that are told only to a searcher that names them in `needs`."""


def planted_function(space: Space, seed: int = 0, interaction: float = 0.3) -> Planted:
    """A fitness with a random effect per site and level, smaller for dearer levels, and random effects of pairs of compressed sites."""
    rng = random.Random(seed)
    main: dict[tuple[str, Level], float] = {}
    for position, site in enumerate(space.sites):
        full = max(max(cost.bytes for cost in space.costs[position]), 1)
        scale = rng.uniform(0.2, 1.0)
        for level, cost in zip(space.levels[position], space.costs[position], strict=True):
            loss = 1.0 if level == DROP else (1 - cost.bytes / full) ** 3
            main[site.name, level] = 0.0 if level == DENSE else scale * loss * rng.uniform(0.8, 1.2)
    count = len(space.sites)
    pairs = [(rng.randrange(count), rng.randrange(count), rng.uniform(-interaction, interaction)) for _ in range(2 * count)]

    def function(profile: Profile) -> float:
        loss = [main.get((name, level), 0.0) for name, level in profile]
        return 10 + sum(loss) + sum(weight * loss[a] * loss[b] for a, b, weight in pairs if a != b)

    return function


def measure_with(function: Planted, space: Space, noise: float = 0.0, seed: int = 0) -> Measure:
    """Measure by a planted function: every document scores it, plus noise that depends on profile and document only (so it pairs)."""

    def measure(ask: Ask) -> list[Trial]:
        trials = []
        for profile in ask.profiles:
            value = function(profile)
            values = []
            for index, _ in ask.slice.documents:
                wobble = random.Random(f"{seed}/{profile.digest}/{index}").gauss(0, noise) if noise else 0.0
                values.append(value + wobble)
            weights = tuple(max(tokens - 1, 1) for _, tokens in ask.slice.documents)
            slopes = planted_slopes(function, space, profile) if ask.slopes else ()
            trials.append(Trial(profile, ask.slice, tuple(values), weights, space.cost(profile), 0.001 * ask.slice.tokens, slopes=slopes))
        return trials

    return measure


def planted_slopes(function: Planted, space: Space, profile: Profile) -> tuple[float, ...]:
    """Twice what a planted function changes when one linear site alone goes dense, once what it changes when a container is dropped.

    Twice, because the slope of a parabola at its arm is twice the height over the distance, and losses are parabolas in the errors.
    """
    now, here = dict(profile), function(profile)
    found = []
    for site, levels in zip(space.sites, space.levels, strict=True):
        level = DENSE if site.kind == "linear" else DROP
        if now[site.name] in (level, DROP, ABSENT) or level not in levels:
            found.append(0.0)
            continue
        picks = {**now, site.name: level}
        if level == DROP:
            picks |= {below.name: ABSENT for below in space.sites if below.name.startswith(f"{site.name}.")}
        found.append((2 if level == DENSE else 1) * (function(Profile.of(picks)) - here))
    return tuple(found)


def follow(searcher: Searcher, measure: Measure, questions: int = 10_000) -> list[tuple[Ask, list[Trial]]]:
    """Run a searcher to its end; what it asked and what it was told. AssertionError when it asks more than `questions` times."""
    history: list[tuple[Ask, list[Trial]]] = []
    while (ask := searcher.ask()) is not None:
        assert len(history) < questions, f"{searcher.name} asked {questions} questions and was not finished"
        trials = measure(ask)
        searcher.tell(trials)
        history.append((ask, trials))
    return history


def check_profile(problem: Problem, profile: Profile, who: str, within: bool = True) -> None:
    """AssertionError unless the profile belongs to the space, respects its links and shadows, and meets every budget by the slow oracle.

    within: False leaves the budgets out.
    """
    genotype = problem.space.genotype(profile)
    assert problem.space.profile(genotype) == profile, f"{who}: the profile does not mark shadowed sites absent, and only those"
    cost = problem.space.cost(profile)
    for budget in problem.budgets if within else ():
        assert budget.allows(cost), f"{who}: {budget.spent(cost):,} {budget.field} exceed budget {budget.text} ({budget.limit:,})"


def conformance_problems(seed: int = 0) -> dict[str, Problem]:
    """Problems that between them hold mixed kinds, link groups, two budgets, latency, nested drops and shadowing."""
    mixed = planted_space(3, ("gptq", "sparsegpt", "drop"), ("attention", "mlp", "block"))
    linked = planted_space(3, ("gptq", "drop"), ("attention",), links=True)
    both = planted_space(3, ("gptq", "sparsegpt", "drop"))
    depth = planted_space(4, ("drop",))
    two = (budget_between(both, "bytes", 0.35), budget_between(both, "params", 0.7))
    timed = timed_space(both)
    fast_and_small = (budget_between(timed, "nanoseconds", 0.5), budget_between(timed, "bytes", 0.4))
    return {
        "quantisation": planted_problem(planted_space(3, ("gptq",)), share=0.2, seed=seed),
        "sparsity": planted_problem(planted_space(3, ("sparsegpt",)), share=0.5, seed=seed),
        "depth": planted_problem(depth, (budget_between(depth, "params", 0.6),), seed=seed),
        "mixed kinds": planted_problem(mixed, share=0.3, seed=seed),
        "link groups": planted_problem(linked, share=0.3, seed=seed),
        "two budgets": planted_problem(both, two, seed=seed),
        "latency": planted_problem(timed, (budget_between(timed, "nanoseconds", 0.4),), seed=seed),
        "latency and bytes": planted_problem(timed, fast_and_small, seed=seed),
        "at the cheapest": planted_problem(mixed, share=0.0, seed=seed),
        "at the dearest": planted_problem(linked, share=1.0, seed=seed),
        "remembered": _remembering(planted_problem(both, share=0.15, seed=seed)),
    }


def _remembering(problem: Problem) -> Problem:
    """A problem with memory of a search under a wider budget, whose profiles are beyond this one, and with trials of both."""
    space = problem.space
    wide = tuple(len(space.choices(gene)) - 1 for gene in range(len(space.genes)))
    function, rng = planted_function(space), random.Random(0)
    slopes = planted_slopes(function, space, space.profile(wide))
    drawn = [tuple(rng.randrange(len(space.choices(gene))) for gene in range(len(space.genes))) for _ in range(30)]
    ends = (wide, (0,) * len(space.genes))
    trials = tuple(KnownTrial(genotype, function(space.profile(genotype)), 700.0, "earlier") for genotype in (*drawn, *ends))
    return replace(problem, known_slopes=((wide, slopes),), known_trials=trials)


def degenerate_problems() -> dict[str, Problem]:
    """Problems without a legal move: a single site, and sites with one level each."""
    site = Site("only", "linear", (8, 64), 0, None)
    levels, costs = order_levels(quant_levels(8, 64))
    one = Space((site,), (levels,), (costs,))
    stuck = Space((site, Site("other", "linear", (8, 64), 0, None)), ((DENSE,), (DENSE,)), ((dense_cost(512),), (dense_cost(512),)))
    return {
        "one site": planted_problem(one, (Budget(f"size={costs[1].bytes}b", "bytes", costs[1].bytes),)),
        "no choice": planted_problem(stuck, (Budget("size=2048b", "bytes", 2048),)),
    }


def check_searcher(cls: type[Searcher], problems: dict[str, Problem] | None = None, questions: int = 500, **options: Any) -> int:
    """Check a searcher class on planted problems; raises AssertionError with the name of the problem, returns how many it took.

    Never leaves a budget, unless it `strays`; the incumbent is valid before the first question; the same seed gives the same questions;
    stored trials replay to the same state; asking twice gives one question; slices are exact and repeat no document; it terminates on
    spaces without a legal move; a pool with too few tokens ends in UsageError or in an end, never in an endless loop. Give options that
    end within so many `questions`. A searcher may refuse problems that are not its own with a UsageError, which is raised where it refuses
    all of them. Layer errors and other facts are told only to a searcher that names them in `needs`, as in a run.
    """
    taken, refused = 0, UsageError(f"Searcher {cls.name!r} was given no problem.")
    for name, problem in ({**conformance_problems(), **degenerate_problems()} if problems is None else problems).items():
        who = f"{cls.name} on {name}"
        untold: dict[str, Any] = dict.fromkeys((FACTS | REMEMBERED) - cls.needs, ())
        problem = replace(problem, **untold)
        measure = measure_with(planted_function(problem.space), problem.space, noise=0.01)
        try:
            searcher = cls(problem, random.Random(1), **options)
        except UsageError as error:
            refused = error
            continue
        taken += 1
        check_profile(problem, searcher.incumbent, f"{who}, before the first question")
        assert searcher.ask() == searcher.ask(), f"{who}: asking twice gives two questions"
        history = follow(searcher, measure, questions)
        for ask, _ in history:
            _check_ask(problem, ask, cls, who)
        check_profile(problem, searcher.incumbent, who)
        again = cls(problem, random.Random(1), **options)
        assert follow(again, measure, questions) == history, f"{who}: the same seed gives other questions"
        _check_replay(cls, problem, history, measure, options, who)
        _check_small_pool(cls, problem, options, who)
    if not taken:
        raise refused
    return taken


def _check_ask(problem: Problem, ask: Ask, cls: type[Searcher], who: str) -> None:
    assert ask.profiles, f"{who}: an empty question"
    for profile in ask.profiles:
        check_profile(problem, profile, who, within=not cls.strays)
    assert len({profile.digest for profile in ask.profiles}) == len(ask.profiles), f"{who}: one profile is asked twice on one slice"
    documents = [index for index, _ in ask.slice.documents]
    assert ask.slice.token_set == problem.token_set, f"{who}: the slice names another token set"
    assert len(set(documents)) == len(documents), f"{who}: a slice repeats a document"
    for index, used in ask.slice.documents:
        assert used <= problem.document_tokens[index], f"{who}: a piece is longer than its document"
        assert not ask.slopes or "slopes" in cls.needs, f"{who}: asks for slopes and does not name them in `needs`"
        assert used > 1, f"{who}: a piece of {used} token(s) holds no position to score"


def _check_replay(
    cls: type[Searcher], problem: Problem, history: Sequence[tuple[Ask, list[Trial]]], measure: Measure, options: dict[str, Any], who: str
) -> None:
    for cut in sorted({0, len(history) // 2, max(len(history) - 1, 0)}):
        replayed = cls(problem, random.Random(1), **options)
        for ask, trials in history[:cut]:
            assert replayed.ask() == ask, f"{who}: stored trials do not replay"
            replayed.tell(trials)
        assert follow(replayed, measure, len(history)) == list(history[cut:]), (
            f"{who}: after a replay of {cut} questions the search goes another way"
        )


def _check_small_pool(cls: type[Searcher], problem: Problem, options: dict[str, Any], who: str) -> None:
    small = replace(problem, document_tokens=(3, 2))
    try:
        searcher = cls(small, random.Random(1), **options)
        follow(searcher, measure_with(planted_function(small.space), small.space))
        check_profile(small, searcher.incumbent, f"{who}, tiny pool")
    except EvopressError as error:
        if not isinstance(error, UsageError) or "token" not in str(error):
            raise AssertionError(f"{who}: a tiny pool of tokens must give a UsageError about tokens, not {error!r}") from error
