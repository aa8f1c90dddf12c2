"""The front of a searcher of two objectives: scored on held-out text, labelled in the store, and on the leaderboard's own front."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import tiny_study
from tiny_study import Tiny

from evopress.report.pareto import pareto_rows
from evopress.run import FRONT, thinned
from evopress.search.fronts import dominates
from evopress.store import Store
from evopress.testing.searchers import planted_space, timed_space

NSGA2 = "nsga2(generations=8,population=8,tokens=160,looks=2x64|1x160)"


def test_a_run_of_nsga2_shows_its_front(tiny: Tiny, tmp_path: Path) -> None:
    run = tiny_study.run(tiny, tmp_path, searcher=NSGA2, baselines=("uniform",))
    front = [row for row in run.rows if row.label.startswith("nsga2 front ")]
    assert 2 <= len(front) <= FRONT
    sizes = [row.cost.bytes for row in front]
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[-1] <= run.plan.budgets[0].limit
    assert all(row.profile != run.best.profile for row in front), "the winner is not shown twice"
    assert all(row.against_uniform is None for row in front), "they are of other sizes"
    assert all(row.search_tokens == run.outcome.totals.tokens for row in front)
    assert "nsga2 front 1" in str(run)
    with Store.open(tiny_study.url(tmp_path)) as store:
        roles = {result.label: result.role for result in store.results(store.find_study(run.study.name).id)}
        assert [roles[row.label] for row in front] == ["front"] * len(front)
        board = {row.label for row in pareto_rows(store.leaderboard(), "kl")}
    points = {row.label: (float(row.cost.bytes), row.kl.mean) for row in run.rows}
    alive = {label for label, point in points.items() if not any(dominates(other, point) for other in points.values())}
    ours = {row.label for row in front}
    assert alive & ours == board & ours
    assert alive & ours, "none of the front is on the front of what was held out"


def test_a_smaller_front_leaves_no_label_of_a_larger_one(tiny: Tiny, tmp_path: Path) -> None:
    run = tiny_study.run(tiny, tmp_path, searcher=NSGA2, baselines=("uniform",), stop_tokens=4000)
    with Store.open(tiny_study.url(tmp_path)) as store:
        study = store.find_study(run.study.name).id
        stale = store.results(study)[0].profile_id
        store.put_result(study, "nsga2 front 99", stale, role="front")
        longer = tiny_study.run(tiny, tmp_path, searcher=NSGA2, baselines=("uniform",))
        assert longer.outcome.totals.tokens > run.outcome.totals.tokens
        kept = {result.label for result in store.results(study) if result.role == "front"}
    assert kept == {row.label for row in longer.rows if row.label.startswith("nsga2 front ")}


@pytest.mark.parametrize(("count", "most"), [(3, 8), (8, 8), (40, 8)])
def test_a_thinned_front_keeps_its_ends_and_order(count: int, most: int) -> None:
    space = planted_space(8, ("gptq",))
    movable = [gene for gene in range(len(space.genes)) if len(space.choices(gene)) > 1]
    raised = [set(movable[:number]) for number in range(count)]
    front = [space.profile(tuple(int(gene in genes) for gene in range(len(space.genes)))) for genes in raised]
    kept = thinned(front, space, most)
    assert kept[0] == front[0]
    assert kept[-1] == front[-1]
    assert len(kept) <= most
    assert [front.index(profile) for profile in kept] == sorted(front.index(profile) for profile in kept)
    sizes = [space.cost(profile).bytes for profile in front]
    if count > most:
        for step in range(most):
            wanted = sizes[0] + step * (sizes[-1] - sizes[0]) / (most - 1)
            nearest = min(abs(size - wanted) for size in sizes)
            assert any(abs(space.cost(profile).bytes - wanted) == nearest for profile in kept)
    else:
        assert kept == front


def test_a_thinned_front_of_a_latency_study_keeps_the_fastest_too() -> None:
    space = timed_space(planted_space(8, ("gptq", "sparsegpt")))
    movable = [gene for gene in range(len(space.genes)) if len(space.choices(gene)) > 1]
    drawn = random.Random(0)
    genotypes = [
        tuple(drawn.randrange(len(space.choices(gene))) if gene in movable else 0 for gene in range(len(space.genes))) for _ in range(40)
    ]
    front = sorted((space.profile(genotype) for genotype in genotypes), key=lambda profile: space.cost(profile).bytes)
    kept = thinned(front, space, FRONT)
    assert len(kept) <= FRONT
    assert {front[0], front[-1]} <= set(kept)
    for extreme in (min, max):
        assert extreme(front, key=lambda profile: space.cost(profile).nanoseconds) in kept
    assert [front.index(profile) for profile in kept] == sorted(front.index(profile) for profile in kept)
