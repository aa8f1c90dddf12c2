"""The allocators of the literature against answers worked out by hand, and the rules each promises."""

from __future__ import annotations

import random
from dataclasses import replace
from math import inf, log2
from typing import Any

import pytest
from planted import POOL, ladder, masks

from evopress.api import DENSE, DROP, Budget, Cost, Level, Problem, Searcher, Site, Space, UsageError, dense_cost, order_levels
from evopress.search.baq import Baq, closed_form, sensitivity
from evopress.search.baselines import uniform_genotype
from evopress.search.erk import Erk, erk_density
from evopress.search.ledger import ledger_of
from evopress.search.owl import Owl, banded, pooled
from evopress.search.similarity import UNUSED, Similarity
from evopress.search.welore import NO_RANKS, Welore, share_above
from evopress.testing.searchers import planted_problem, planted_space


def answer(cls: type[Searcher], problem: Problem, **options: Any) -> tuple[int, ...]:
    searcher = cls(problem, random.Random(0), **options)
    assert searcher.ask() is None, "an allocator measures nothing"
    return problem.space.genotype(searcher.incumbent)


def dials(shapes: list[tuple[int, int]], limit: int, steps: int = 20) -> Problem:
    """Matrices, one a block, that keep any multiple of 1/steps of their weights; a parameter budget."""
    sites = tuple(Site(f"l{place}.w", "linear", shape, place, None) for place, shape in enumerate(shapes))
    made = []
    for site in sites:
        kept = [site.weights * step // steps for step in range(1, steps)]
        levels = {Level.of("prune", zeros=site.weights - keep): Cost(2 * keep, keep) for keep in kept}
        made.append(order_levels({**levels, DENSE: dense_cost(site.weights)}))
    space = Space(sites, tuple(levels for levels, _ in made), tuple(costs for _, costs in made))
    return Problem(space, (Budget("params", "params", limit),), "planted", POOL)


def densities(problem: Problem, genotype: tuple[int, ...]) -> list[float]:
    space = problem.space
    return [space.costs[place][level].params / space.sites[place].weights for place, level in enumerate(genotype)]


# ERK ------------------------------------------------------------------------------------------------------------------------------------


def test_erk_densities_by_hand() -> None:
    """20×20, 10×40 and 40×40 have (r + c)/rc = 0.1, 0.125 and 0.05; with factor 4 they keep 0.4, 0.5 and 0.2 of their weights."""
    shapes = [(20, 20), (10, 40), (40, 40)]
    assert [erk_density(Site("w", "linear", shape, 0, None)) for shape in shapes] == pytest.approx([0.1, 0.125, 0.05])
    problem = dials(shapes, 160 + 200 + 320)
    assert densities(problem, answer(Erk, problem)) == pytest.approx([0.4, 0.5, 0.2])


def test_erk_caps_a_density_at_dense() -> None:
    """Factor 10: 2×2 would keep 10 times itself and stays dense; 20×20 keeps all, 40×40 half."""
    problem = dials([(4, 4), (20, 20), (40, 40)], 16 + 400 + 800)
    assert densities(problem, answer(Erk, problem)) == pytest.approx([1, 1, 0.5])


# OWL ------------------------------------------------------------------------------------------------------------------------------------


def test_bands_by_hand() -> None:
    """Shares 0, 0.02 and 0.01 with a spread of 0.1 scale to 0, 0.2 and 0.1, whose mean is 0.1."""
    assert banded([0.0, 0.02, 0.01], 0.1) == pytest.approx([-0.1, 0.1, 0.0])
    assert banded([0.3, 0.3], 0.1) == [0, 0]
    assert sum(banded([0.1, 0.7, 0.2, 0.2], 0.08)) == pytest.approx(0)


def test_owl_keeps_more_where_outliers_are() -> None:
    problem = replace(dials([(20, 20)] * 3, 600), outliers=(0.0, 0.02, 0.01))
    assert densities(problem, answer(Owl, problem, spread=0.1)) == pytest.approx([0.4, 0.6, 0.5])
    assert densities(problem, answer(Owl, problem, spread=0.0)) == pytest.approx([0.5] * 3)


def test_owl_gives_a_block_one_ratio_unless_asked_per_site() -> None:
    """Two matrices a block of unlike outliers; blocks have means of 0.01 and 0.02 over their weights."""
    flat = dials([(20, 20)] * 4, 800)
    sites = tuple(replace(site, depth=place // 2) for place, site in enumerate(flat.space.sites))
    problem = replace(flat, space=replace(flat.space, sites=sites), outliers=(0.0, 0.02, 0.04, 0.0))
    assert pooled(problem.space, problem.outliers) == pytest.approx([0.01, 0.01, 0.02, 0.02])
    assert densities(problem, answer(Owl, problem, spread=0.1)) == pytest.approx([0.4, 0.4, 0.6, 0.6])
    assert len(set(densities(problem, answer(Owl, problem, spread=0.1, per="site")))) > 2


@pytest.mark.parametrize(("options", "message"), [({"per": "model"}, "Unknown scope of outliers 'model'"), ({"spread": 2}, "is 2")])
def test_owl_refuses_other_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Owl(replace(dials([(20, 20)], 200), outliers=(0.0,)), random.Random(0), **options)


# BAQ ------------------------------------------------------------------------------------------------------------------------------------


def test_a_sensitivity_is_fitted_with_a_slope_of_two_bits() -> None:
    assert sensitivity([(bits, 8 * 4.0**-bits) for bits in (2, 3, 4)]) == pytest.approx(3)
    assert sensitivity([(2, 4.0**-2 * 2), (3, 4.0**-3 / 2)]) == pytest.approx(0)
    assert sensitivity([(2, 0.0)]) == -inf
    assert closed_form(log2(64 * 3), log2(3)) == 3


def sensitive(factors: list[float], extra: int) -> Problem:
    """Eight sites of equal size, `factors` a site in c; energies undo what errors say, so that only their product tells."""
    problem = ladder((4,) * len(factors), target=2)
    energies = tuple(10.0 ** (place % 3) for place in range(len(factors)))
    errors = tuple(
        tuple(0.0 if level == DENSE else factor / energy * 4.0 ** -level.option("bits") for level in levels)
        for factor, energy, levels in zip(factors, energies, problem.space.levels, strict=True)
    )
    limit = problem.budgets[0].limit + extra
    return replace(problem, budgets=(Budget("size", "bytes", limit),), errors=errors, energies=energies)


def test_baq_gives_every_site_the_width_of_equal_loss() -> None:
    """c of 1, 4, 16 differ by one bit each: 3, 4 and 5 bits lose the same, which is 4 bits a weight on average."""
    problem = sensitive([1, 4, 16], 0)
    genotype = answer(Baq, problem)
    bits = [levels[level].option("bits") for levels, level in zip(problem.space.levels, genotype, strict=True)]
    assert bits == [3, 4, 5]
    losses = [problem.errors[place][level] * problem.energies[place] for place, level in enumerate(genotype)]
    assert losses == pytest.approx([4.0**-3] * 3)


def test_what_baq_has_left_goes_to_the_most_lossy() -> None:
    """With one rung more than 3, 4, 5 allows, the site just above its bound rises."""
    problem = sensitive([1.2, 4, 16], 4)
    genotype = answer(Baq, problem)
    assert [levels[level].option("bits") for levels, level in zip(problem.space.levels, genotype, strict=True)] == [4, 4, 5]


def test_baq_takes_the_measured_loss_where_levels_have_no_bits() -> None:
    """Losses a weight of (1 - kept)² times 1 and 4: with half of the loss's root allowed, 0.2 and 0.6 are kept."""
    flat = dials([(20, 20)] * 2, 80 + 240)
    errors = tuple(
        tuple((1 - cost.params / site.weights) ** 2 for cost in costs)
        for site, costs in zip(flat.space.sites, flat.space.costs, strict=True)
    )
    problem = replace(flat, errors=errors, energies=(100.0, 400.0))
    assert densities(problem, answer(Baq, problem)) == pytest.approx([0.2, 0.6])


def test_baq_rounds_a_width_down_and_needs_sixteen_bits_for_dense() -> None:
    """c of 1 and 4^9, nine bits apart: where the second wishes for 11 it stands at 6, the widest on offer, and not at dense."""
    problem = sensitive([1, 4.0**9], 0)
    genotype = answer(Baq, replace(problem, budgets=(Budget("size", "bytes", 13 + 4 * (2 + 40)),)))
    assert genotype == (4, 4)
    assert answer(Baq, replace(problem, budgets=(Budget("size", "bytes", 13 + 4 * (2 + 6)),))) == (0, 4)


def test_relative_losses_leave_the_energies_out() -> None:
    """Errors of c = 1, 4 and 16, and energies that turn them upside down."""
    problem = replace(sensitive([1, 4, 16], 0), energies=(256.0, 4.0, 1 / 256))
    relative = replace(problem, errors=sensitive([1, 40, 1600], 0).errors)  # of energies 1, 10, 100 there
    assert [level + 2 for level in answer(Baq, relative, loss="relative")] == [3, 4, 5]
    assert answer(Baq, relative)[0] > answer(Baq, relative)[2]
    with pytest.raises(UsageError, match="Unknown loss 'squared'"):
        Baq(problem, random.Random(0), loss="squared")


def test_a_site_that_loses_nothing_stands_at_its_cheapest_until_all_others_are_dense() -> None:
    problem = replace(sensitive([1, 4, 16], 4), energies=(0.0, 1.0, 1.0))
    assert answer(Baq, problem)[0] == 0


# WeLore ---------------------------------------------------------------------------------------------------------------------------------


def test_the_share_above_a_threshold() -> None:
    spectrum = (1.0, 0.5, 0.5, 0.1)
    assert [share_above(spectrum, at) for at in (1.1, 1.0, 0.5, 0.2, 0.1, 0.0)] == [0, 0.25, 0.75, 0.75, 1, 1]
    assert share_above((), 0.5) == 0


def test_welore_cuts_all_spectra_at_one_threshold() -> None:
    """A slow and a fast decay of 20 values: at 0.5, 16 and 4 of them are kept."""
    slow, fast = (1.0,) * 16 + (0.1,) * 4, (1.0,) * 4 + (0.1,) * 16
    problem = replace(dials([(20, 20)] * 2, 320 + 80), spectra=(slow, fast))
    assert densities(problem, answer(Welore, problem)) == pytest.approx([0.8, 0.2])
    assert Welore(problem, random.Random(0)).remark == NO_RANKS


def test_spectra_that_tell_nothing_apart_still_spend_the_budget() -> None:
    problem = replace(dials([(20, 20)] * 2, 420), spectra=((1.0,) * 20,) * 2)
    assert sum(densities(problem, answer(Welore, problem))) == pytest.approx(420 / 400)


def test_a_threshold_is_a_rank_where_levels_have_one() -> None:
    """Factors of rank r hold r (rows + columns) weights, so a share of the rank is no share of the cost."""
    site = Site("w", "linear", (20, 20), 0, None)
    factors = {Level.of("svd", rank=rank): Cost(80 * rank, 40 * rank) for rank in range(1, 10)}
    levels, costs = order_levels({**factors, DENSE: dense_cost(400)})
    space = Space((site, replace(site, name="v", depth=1)), (levels,) * 2, (costs,) * 2)
    slow, fast = (1.0,) * 6 + (0.1,) * 14, (1.0,) * 2 + (0.1,) * 18
    problem = Problem(space, (Budget("params", "params", 40 * 8),), "planted", POOL, spectra=(slow, fast))
    searcher = Welore(problem, random.Random(0))
    assert [str(level) for _, level in searcher.incumbent] == ["svd(rank=6)", "svd(rank=2)"]
    assert searcher.remark == ""


# Similarity -----------------------------------------------------------------------------------------------------------------------------


def test_the_most_similar_sublayers_go_first_of_both_kinds() -> None:
    """Attention and MLP in one ranking; linear sites between them tell nothing."""
    flat = masks(3, 1, ("attention", "mlp"))
    by_name = {"attention0": 0.9, "mlp0": 0.7, "attention1": 0.99, "mlp1": 0.6, "attention2": 0.8, "mlp2": 0.5}
    problem = replace(flat, similarities=tuple(by_name.get(site.name, 1.0) for site in flat.space.sites))
    searcher = Similarity(problem, random.Random(0))
    assert {name for name, level in searcher.incumbent if level == DROP} == {"attention1", "attention0"}
    assert searcher.remark == ""


def test_what_still_fits_comes_back() -> None:
    """Dropping the most similar, which is small, is not enough; with the large one gone too the small one fits again."""
    sites, levels, costs = [], [], []
    for name, size in (("small", 10), ("large", 100), ("other", 50)):
        sites += [Site(name, "mlp", (0, 0), len(sites), None), Site(f"{name}.w", "linear", (1, size), len(sites), name)]
        levels += [(DROP, DENSE), (DENSE,)]
        costs += [(Cost(0, 0), Cost(0, 0)), (dense_cost(size),)]
    space = Space(tuple(sites), tuple(levels), tuple(costs))
    problem = Problem(space, (Budget("params", "params", 60),), "planted", POOL, similarities=(0.9, 1, 0.8, 1, 0.1, 1))
    assert {name for name, level in Similarity(problem, random.Random(0)).incumbent if level == DROP} == {"large"}


def test_blocks_are_ranked_alone_where_asked() -> None:
    space = planted_space(4, ("drop",), ("attention", "mlp", "block"))
    values = {"layers.0": 0.6, "layers.1": 0.9, "layers.2": 0.95, "layers.3": 0.5}
    similarities = tuple(values.get(site.name, 1.0) for site in space.sites)
    half = Budget("params", "params", space.fixed.params + (space.dense.params - space.fixed.params) // 2)
    problem = replace(planted_problem(space, (half,)), similarities=similarities)
    searcher = Similarity(problem, random.Random(0), per="block")
    assert {name for name, level in searcher.incumbent if level == DROP} == {"layers.1", "layers.2"}
    with pytest.raises(UsageError, match=r"--method 'drop\(kinds=block\)'"):
        Similarity(planted_problem(planted_space(2, ("drop",))), random.Random(0), per="block")
    with pytest.raises(UsageError, match="Unknown scope of drops 'layer'"):
        Similarity(problem, random.Random(0), per="layer")


def test_drops_come_last_where_linear_sites_have_levels() -> None:
    """As far as uniform meets the budget nothing is dropped; below that, linear sites stand at their cheapest or one rung above."""
    space = planted_space(3, ("gptq", "drop"))
    easy = planted_problem(space, share=0.3)
    searcher = Similarity(easy, random.Random(0))
    assert searcher.remark == UNUSED
    assert space.genotype(searcher.incumbent) == uniform_genotype(easy)
    assert DROP not in dict(searcher.incumbent).values()
    tight = planted_problem(space, share=0.05)
    found = Similarity(tight, random.Random(0))
    dropped = {name for name, level in found.incumbent if level == DROP}
    ranked = sorted((site.name for site in space.sites if site.kind in ("attention", "mlp")),
                    key=lambda name: -tight.similarities[space.index[name]])  # fmt: skip
    assert dropped
    assert dropped <= set(ranked[: len(dropped) + 1])
    assert found.remark == ""


# All ------------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("cls", "fact"), [(Owl, "outliers"), (Baq, "energies"), (Welore, "spectra"), (Similarity, "similarities")])
def test_a_fact_that_is_not_told_is_asked_for(cls: type[Searcher], fact: str) -> None:
    untold: dict[str, Any] = {fact: ()}
    problem = replace(planted_problem(planted_space(2, ("gptq", "drop"))), **untold)
    with pytest.raises(UsageError, match=f"needs the {fact} of every site"):
        cls(problem, random.Random(0))


@pytest.mark.parametrize("cls", [Erk, Owl, Baq, Welore])
def test_a_budget_for_everything_leaves_everything_dense(cls: type[Searcher]) -> None:
    problem = planted_problem(planted_space(2, ("gptq", "sparsegpt")), share=1.0)
    space, ledger = problem.space, ledger_of(problem)
    assert answer(cls, problem) == tuple(ledger.top(gene) for gene in range(len(space.genes)))
