"""Everything that can be wrong with a study and be told before weights are read: its texts, its budgets together, its searchers' options.

Called by the two composition roots, `evopress.run` and `evopress.contest`, before the bank is built, and by a dry run. The roots make the
searchers that they drive here too.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Any

from evopress.api import DENSE, REMEMBERED, Differentiable, Genotype, Knowledge, Problem, Searcher, UsageError, unknown
from evopress.data.tokens import ROLES
from evopress.hooks.registry import Registry
from evopress.plan import Plan, default_options, options_like, searcher_class
from evopress.texts import Texts

Tell = Callable[[Knowledge], tuple[Any, ...]]
"""What is known of the sites, by the name of the field of the problem that it fills; called for nothing that nobody needs."""
SIMPLE = ("uniform", "greedy", "knapsack")
"""The simple answers, which every search starts from."""
KNOWN: tuple[Knowledge, ...] = ("errors", "energies", "outliers", "spectra", "similarities", *sorted(REMEMBERED))
"""Fields of the problem that a searcher may need; slopes it asks for as it goes."""


def rehearse(plan: Plan, registry: Registry, texts: Texts) -> None:
    """Make the token sets and every searcher of the study, on made-up knowledge of the sites.

    Raises UsageError, NotFound, and InfeasibleBudget for budgets that no profile meets together.
    """
    for role in ROLES:
        texts.tokens(role)
    guess = guesses(plan)
    start = plan.space.genotype(make_searcher(plan, registry, texts, "uniform", {}, guess).incumbent)
    cls, options = searcher_class(registry, plan.study.searcher, plan.study)
    make_searcher(plan, registry, texts, cls.name, options, guess, (start,))
    for text in plan.study.baselines:
        rival, own = searcher_class(registry, text, plan.study)
        make_searcher(
            plan, registry, texts, rival.name, {**options_like({**default_options(cls), **options}, rival, 1), **own}, guess, (start,)
        )


def make_searcher(
    plan: Plan,
    registry: Registry,
    texts: Texts,
    name: str,
    options: Mapping[str, Any],
    tell: Tell,
    starts: tuple[Genotype, ...] = (),
    seed: int | None = None,
) -> Searcher:
    """A searcher on the study's problem, with a random generator of its own from a seed (None: the study's) and its name.

    It is told what its class names in `needs`, and nothing else. Raises UsageError for a need that nobody can tell, and for slopes where
    the fitness has none.
    """
    tokens, cls = texts.tokens("search"), registry.get("searcher", name)
    lengths = tuple(map(len, tokens.documents))
    if "slopes" in cls.needs and not issubclass(registry.get("fitness", plan.study.fitness), Differentiable):
        known = [name for name, fitness in registry.classes["fitness"].items() if issubclass(fitness, Differentiable)]
        raise UsageError(
            f"Searcher {name!r} needs slopes, and fitness {plan.study.fitness!r} of study {plan.study.name} has no gradient.",
            f"Take one that has: {', '.join(sorted(known))}; or another searcher.",
        )
    for need in sorted(cls.needs - {*KNOWN, "slopes"}):
        raise unknown(f"need of searcher {name}", need, (*KNOWN, "slopes"))
    facts = {need: tell(need) for need in KNOWN if need in cls.needs}
    problem = Problem(plan.space, plan.budgets, tokens.digest, lengths, starts=starts, **facts)
    made: Searcher = cls(problem, random.Random(f"{name}:{plan.study.seed if seed is None else seed}"), **options)
    return made


def guesses(plan: Plan) -> Tell:
    """Made-up knowledge of the right shape: every level but dense loses all, every site is like every other."""
    space = plan.space
    linear = [site.kind == "linear" for site in space.sites]

    def tell(need: Knowledge) -> tuple[Any, ...]:
        match need:
            case "errors":
                return tuple(tuple(float(level != DENSE) for level in levels) for levels in space.levels)
            case "spectra":
                return tuple((1.0,) * min(site.shape) for site in space.sites)
            case "known_slopes" | "known_trials":
                return ()
            case "similarities":
                return tuple(1.0 if is_linear else 0.5 for is_linear in linear)
            case _:
                return tuple(float(is_linear) for is_linear in linear)

    return tell
