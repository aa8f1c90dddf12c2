"""Multi-step selection: candidates shrink over rungs of more and more tokens, each rung on one fresh slice for all. Paired, so fair.

EvoPress: Towards Optimal Dynamic Model Compression via Evolutionary Search (2024), arXiv 2410.14649, Algorithm 1. Departure from its code:
the parent joins in the last rung by position, not whenever the survivor count equals the last one. Called by `evolve` and `sampling`.
"""

from __future__ import annotations

import random
from collections.abc import Generator, Sequence
from itertools import pairwise

from evopress.api import Ask, Genotype, Problem, Trial, UsageError
from evopress.search.options import check_count
from evopress.search.slices import draw_slice

Rungs = tuple[tuple[int, int], ...]
"""(survivors, tokens) per stage."""


def check_rungs(rungs: Sequence[Sequence[int]], option: str = "rungs") -> Rungs:
    """Validate stages given as (survivors, tokens) pairs. Raises UsageError."""
    shown = f"Option {option}={rungs!r}"
    allowed = "Write (survivors, tokens) pairs, e.g. rungs=4x2048|1x16384; the last stage keeps 1."
    try:
        checked = tuple((int(keep), int(tokens)) for keep, tokens in rungs)
    except (TypeError, ValueError) as error:
        raise UsageError(f"{shown} is not a list of pairs of integers.", allowed) from error
    if not checked or checked[-1][0] != 1:
        raise UsageError(f"{shown} does not end with one survivor.", allowed)
    if any(keep < 1 or tokens < 2 for keep, tokens in checked):
        raise UsageError(f"{shown} has a stage without survivors or with fewer than 2 tokens.", allowed)
    if any(later[0] > earlier[0] for earlier, later in pairwise(checked)):
        raise UsageError(f"{shown} has survivors that grow from one stage to the next.", allowed)
    return checked


def check_initial(initial: Sequence[int] | Sequence[Sequence[int]]) -> tuple[int, int]:
    """Validate a start selection given as (candidates, tokens). Raises UsageError."""
    try:
        pair = initial[0] if len(initial) == 1 else initial  # `32x2048` on a command line is a list of one pair
        candidates, tokens = (int(value) for value in pair)  # type: ignore[union-attr, arg-type]
    except (TypeError, ValueError) as error:
        raise UsageError(f"Option initial={initial!r} is not a pair (candidates, tokens).", "Write e.g. initial=32x2048.") from error
    return check_count("initial candidates", candidates, 0), check_count("initial tokens", tokens, 2)


def best_of(
    problem: Problem,
    rng: random.Random,
    candidates: Sequence[Genotype],
    tokens: int,
    generation: int = 0,
    stage: int = 0,
) -> Generator[Ask, Sequence[Trial], list[int]]:
    """Measure all candidates on one fresh slice; their positions, best first, ties in the order given."""
    profiles = tuple(problem.space.profile(candidate) for candidate in candidates)
    trials = yield Ask(profiles, draw_slice(rng, problem, tokens), generation, stage)
    return sorted(range(len(candidates)), key=lambda position: trials[position].fitness)


def tournament(
    problem: Problem,
    rng: random.Random,
    children: Sequence[Genotype],
    rungs: Rungs,
    parent: Genotype | None,
    generation: int,
    thrifty: bool = False,
    late: Sequence[Genotype] = (),
) -> Generator[Ask, Sequence[Trial], Genotype]:
    """Select one survivor of `children` and, in the last stage only, `late` and `parent`; a tie with the parent goes to the child.

    thrifty: leave out a stage that could not remove anybody. What it asks for without: `tournament_evaluations`.
    """
    standing = list(children)
    for stage, (survivors, tokens) in enumerate(rungs):
        if stage == len(rungs) - 1:
            standing += [*late, *([] if parent is None else [parent])]
        if not standing or (thrifty and len(standing) <= survivors):
            continue
        order = yield from best_of(problem, rng, standing, tokens, generation, stage)
        standing = [standing[position] for position in order[:survivors]]
    return standing[0]


def tournament_evaluations(children: int, rungs: Rungs) -> int:
    """Profiles that a tournament of so many children measures over all stages, without those that join in the last one."""
    return children + sum(min(children, survivors) for survivors, _ in rungs[:-1])
