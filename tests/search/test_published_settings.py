"""The published settings of the parity mode, driven: evaluations and tokens of a generation, tokens of whole runs, presets by name."""

from __future__ import annotations

import random
from typing import Any

import pytest
from planted import SIZES, flat, ladder, masks, pooled

from evopress.api import ABSENT, DENSE, DROP, ZERO, Ask, Problem, Space, Trial, UsageError
from evopress.search.evolve import Evolve
from evopress.search.loop import Stops, drive
from evopress.search.parity import PARITY
from evopress.testing.searchers import Planted, follow, measure_with, planted_problem


def counted(problem: Problem, settings_: dict[str, Any], function: Planted = flat, **more: Any) -> list[tuple[Ask, list[Trial]]]:
    options = {**settings_, "generations": 2, **more}
    biggest = max(tokens for _, tokens in options["rungs"])
    searcher = Evolve(pooled(problem, biggest), random.Random(0), mode="parity", **options)
    return [item for item in follow(searcher, measure_with(function, problem.space)) if item[0].generation > 0]


@pytest.mark.parametrize(
    ("name", "problem", "evaluations", "tokens"),
    [
        ("quant", ladder(SIZES), 149, 1_179_648),
        ("sparsity", ladder((8,) * 64, rungs=9, target=4), 75, 458_752),
        ("depth", masks(32, 12, ("attention", "mlp")), 35, 163_840),
        ("superfast", ladder((8,) * 64, rungs=9, target=4), 18, 24_576),
    ],
)
def test_evaluations_and_tokens_of_a_generation(name: str, problem: Problem, evaluations: int, tokens: int) -> None:
    history = counted(problem, PARITY[name])
    for generation in (1, 2):
        asks = [ask for ask, _ in history if ask.generation == generation]
        assert sum(len(ask.profiles) for ask in asks) == evaluations
        assert sum(len(ask.profiles) * ask.slice.tokens for ask in asks) == tokens
        assert [ask.slice.tokens for ask in asks] == [rung[1] for rung in PARITY[name]["rungs"]]


@pytest.mark.parametrize("kinds", [("mlp",), ("attention", "mlp")])
def test_generations_of_the_depth_search_follow_what_is_dropped(kinds: tuple[str, ...]) -> None:
    """int(k(L−k)/1.5): the four published runs, other lengths, and nothing to drop; a number that was given is another matter."""
    tokens = PARITY["depth"]["rungs"][-1][1]

    def generations(dropped: int, length: int = 32, **options: int) -> int:
        problem = pooled(masks(length, dropped, kinds), tokens)
        return Evolve(problem, random.Random(0), preset="depth", **options).generations

    assert [generations(dropped) for dropped in (4, 8, 12, 16)] == [74, 128, 160, 170]
    assert [generations(dropped, 6) for dropped in (0, 1, 2)] == [0, 3, 5]
    assert generations(4, generations=7) == 7
    assert generations(4, generations=0) == 0


def test_generations_of_the_depth_search_where_fewer_sublayers_of_one_kind_can_go() -> None:
    """The longest mask counts: 3 of 4 MLPs, 3 of 10 attentions."""
    base = masks(10, 3, ("attention", "mlp"))
    space = base.space
    only = [position for position, site in enumerate(space.sites) if site.kind == "mlp" and site.depth >= 4]
    levels = tuple(own[1:] if position in only else own for position, own in enumerate(space.levels))
    costs = tuple(own[1:] if position in only else own for position, own in enumerate(space.costs))
    problem = Problem(Space(space.sites, levels, costs), base.budgets, "planted", (2**17,))
    assert Evolve(problem, random.Random(0), preset="depth").generations == int(3 * 7 / 1.5)


def test_the_depth_preset_drops_and_leaves_levels_alone() -> None:
    searcher = Evolve(planted_problem(share=0.6), random.Random(0), preset="depth")
    assert searcher.rules is not None
    assert searcher.rules.variant == "depth"
    assert all(level in (ABSENT, DENSE, DROP) for _, level in searcher.incumbent)


def test_the_default_is_100_generations_and_a_number_given_goes_before_a_preset() -> None:
    problem = pooled(ladder(SIZES), 2**17)
    assert Evolve(problem, random.Random(0)).generations == 100
    assert Evolve(problem, random.Random(0), mode="parity").generations == 100
    assert Evolve(problem, random.Random(0), preset="quant").generations == 150
    assert Evolve(problem, random.Random(0), preset="quant", generations=3).generations == 3


@pytest.mark.parametrize(
    ("name", "dropped", "million"),
    [
        ("quant", 0, "176.9"),
        ("sparsity", 0, "183.5"),
        ("superfast", 0, "9.83"),
        ("depth", 4, "12.3"),
        ("depth", 8, "21.1"),
        ("depth", 12, "26.3"),
        ("depth", 16, "28.0"),
    ],
)
def test_total_tokens_of_the_published_runs(name: str, dropped: int, million: str) -> None:
    """Every published run driven to its end, start selection included; the totals are those worked out from the authors' scripts."""
    base = masks(32, dropped, ("attention", "mlp")) if dropped else ladder((4,) * 8 + (12,) * 8)
    # Two documents make every slice cheap to draw; a flat fitness lets the parent wander, so that it never runs out of new mutants.
    problem = Problem(base.space, base.budgets, "planted", (2**17, 2**17))
    searcher = Evolve(problem, random.Random(0), preset=name)

    def measure(ask: Ask) -> list[Trial]:
        ones = (1.0,) * len(ask.slice.documents)
        return [Trial(profile, ask.slice, ones, (1,) * len(ones), ZERO, 0.0) for profile in ask.profiles]

    outcome = drive(searcher, measure, Stops(), lambda: 0.0)
    assert outcome.reason == "finished"
    assert f"{outcome.totals.tokens / 1e6:.{len(million.partition('.')[2])}f}" == million


@pytest.mark.parametrize("preset", sorted(PARITY))
def test_a_preset_is_the_published_setting(preset: str) -> None:
    problem = masks(32, 12, ("attention", "mlp")) if preset == "depth" else ladder(SIZES)
    published = PARITY[preset]
    searcher = Evolve(pooled(problem, published["rungs"][-1][1]), random.Random(0), preset=preset)
    assert searcher.mode == "parity"
    assert searcher.generations == published.get("generations", 160)
    assert (searcher.offspring, searcher.rungs) == (published["offspring"], published["rungs"])


def test_an_unknown_preset_lists_the_known() -> None:
    with pytest.raises(UsageError, match="superfast"):
        Evolve(ladder(SIZES), random.Random(0), preset="superfst")
