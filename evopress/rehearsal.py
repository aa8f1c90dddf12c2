"""Everything that can be wrong with a study and be told before weights are read: its texts, its budgets together, its searchers' options.

Called by the run before the bank is built, and by a dry run.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

from evopress.api import DENSE, Differentiable, Genotype, Problem, Searcher, UsageError
from evopress.data.tokens import ROLES
from evopress.hooks.registry import Registry
from evopress.plan import Plan, default_options, options_like, searcher_class
from evopress.texts import Texts

Errors = tuple[tuple[float, ...], ...]


def rehearse(plan: Plan, registry: Registry, texts: Texts) -> None:
    """Make the token sets and every searcher of the study, on made-up layer errors.

    Raises UsageError, NotFound, and InfeasibleBudget for budgets that no profile meets together.
    """
    for role in ROLES:
        texts.tokens(role)
    guess = tuple(tuple(float(level != DENSE) for level in levels) for levels in plan.space.levels)
    start = plan.space.genotype(make_searcher(plan, registry, texts, "uniform", {}, guess).incumbent)
    cls, options = searcher_class(registry, plan.study.searcher, plan.study)
    make_searcher(plan, registry, texts, cls.name, options, guess, (start,))
    for text in plan.study.baselines:
        rival, own = searcher_class(registry, text, plan.study)
        make_searcher(
            plan, registry, texts, rival.name, {**options_like({**default_options(cls), **options}, rival, 1), **own}, guess, (start,)
        )


def make_searcher(
    plan: Plan, registry: Registry, texts: Texts, name: str, options: Mapping[str, Any], errors: Errors, starts: tuple[Genotype, ...] = ()
) -> Searcher:
    """A searcher on the study's problem, with a random generator of its own from the study's seed and its name."""
    tokens, cls = texts.tokens("search"), registry.get("searcher", name)
    lengths = tuple(map(len, tokens.documents))
    if "slopes" in cls.needs and not issubclass(registry.get("fitness", plan.study.fitness), Differentiable):
        known = [name for name, fitness in registry.classes["fitness"].items() if issubclass(fitness, Differentiable)]
        raise UsageError(
            f"Searcher {name!r} needs slopes, and fitness {plan.study.fitness!r} of study {plan.study.name} has no gradient.",
            f"Take one that has: {', '.join(sorted(known))}; or another searcher.",
        )
    problem = Problem(plan.space, plan.budgets, tokens.digest, lengths, errors if "errors" in cls.needs else (), starts)
    made: Searcher = cls(problem, random.Random(f"{name}:{plan.study.seed}"), **options)
    return made
