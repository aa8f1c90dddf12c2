"""Races: the test against enumeration, false acceptance under optional stopping, and documents seen once."""

from __future__ import annotations

import random
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st
from planted import POOL, random_tree

from evopress.api import Ask, Genotype, Problem, Trial, UsageError
from evopress.search.racing import EXACT, PARTS, Deck, Race, check_looks, race, sign_flip


def problem() -> Problem:
    """A planted problem with several feasible genotypes."""
    return random_tree(random.Random(3))


@given(st.lists(st.tuples(st.floats(-5, 5), st.integers(1, 9)), min_size=1, max_size=8))
def test_the_sign_flip_test_counts_every_pattern(pairs: list[tuple[float, int]]) -> None:
    terms = [value * weight for value, weight in pairs]
    patterns = [sum(sign * term for sign, term in zip(signs, terms, strict=True)) for signs in product((1, -1), repeat=len(terms))]
    slack = 1e-12 * sum(map(abs, terms))
    expected = sum(total <= sum(terms) + slack for total in patterns) / len(patterns)
    found = sign_flip([value for value, _ in pairs], [weight for _, weight in pairs], random.Random(0))
    assert found == pytest.approx(expected, abs=2 / 2 ** len(terms))  # a tie may fall either way by rounding


def test_many_documents_are_drawn_and_agree_with_counting() -> None:
    rng = random.Random(1)
    values = [rng.gauss(-0.3, 1) for _ in range(EXACT)]
    exact = sign_flip(values, [1] * EXACT, rng)
    doubled = sign_flip([*values, *[1e-9] * 4], [1] * (EXACT + 4), rng)
    assert doubled == pytest.approx(exact, abs=0.03)


def answered(
    differences: dict[Genotype, float], incumbent: Genotype, made: Problem, noise: float, seed: int, alpha: float, finalists: int = 2
) -> tuple[Race, list[Ask]]:
    """A race whose candidates differ from the incumbent by a mean and noise per document."""
    rng = random.Random(seed)
    steps = race(made, rng, Deck(made, rng), list(differences), incumbent, ((4, 1000), (finalists, 10_000)), alpha, 1)
    asks: list[Ask] = []
    trials: list[Trial] = []
    try:
        ask = next(steps)
        while True:
            asks.append(ask)
            trials = []
            for profile in ask.profiles:
                genotype = next(g for g in (*differences, incumbent) if made.space.profile(g) == profile)
                mean = differences.get(genotype, 0.0)
                values = tuple(
                    5.0 + mean + (0.0 if genotype == incumbent else random.Random(f"{seed}{genotype}{i}").gauss(0, noise))
                    for i, _ in ask.slice.documents
                )
                trials.append(
                    Trial(profile, ask.slice, values, tuple(n - 1 for _, n in ask.slice.documents), made.space.cost(profile), 0.0)
                )
            ask = steps.send(trials)
    except StopIteration as done:
        return done.value, asks


def distinct(made: Problem, count: int) -> list[Genotype]:
    """So many genotypes with different profiles, feasible or not: a race does not care."""
    found: dict[object, Genotype] = {}
    rng = random.Random(0)
    while len(found) < count:
        genotype = tuple(rng.randrange(len(made.space.choices(gene))) for gene in range(len(made.space.genes)))
        found.setdefault(made.space.profile(genotype), genotype)
    return list(found.values())


def test_false_acceptance_stays_below_alpha_under_optional_stopping() -> None:
    """Four candidates that are no better, two of which duel, 400 races: the share of races that accept one."""
    made = problem()
    incumbent, *others = distinct(made, 5)
    alpha = 0.2
    accepted = sum(answered(dict.fromkeys(others, 0.0), incumbent, made, 1.0, seed, alpha)[0].winner is not None for seed in range(400))
    assert 0 < accepted / 400 <= alpha + 2 * (alpha * (1 - alpha) / 400) ** 0.5


def test_a_clear_winner_is_accepted_early_and_losers_are_left_behind() -> None:
    made = problem()
    incumbent, good, bad, worse = distinct(made, 4)
    found, asks = answered({bad: 0.5, good: -0.5, worse: 1.0}, incumbent, made, 0.05, 0, 0.2)
    assert found.winner == 1
    assert [len(ask.profiles) for ask in asks] == [4, 2]  # the first part of the duel is enough


def test_at_alpha_1_being_ahead_is_enough() -> None:
    """Fixed rungs: of races between equals about half are won, each by who is ahead on the documents of the duel."""
    made = problem()
    incumbent, *others = distinct(made, 5)
    races = [answered(dict.fromkeys(others, 0.0), incumbent, made, 1.0, seed, 1.0, 1) for seed in range(200)]
    won = [found for found, _ in races if found.winner is not None]
    assert 70 < len(won) < 130
    assert all(found.difference < 0 for found in won)
    assert {len(asks) for _, asks in races} <= {1, 2}, "the first part of the duel decides"


def test_a_race_of_losers_ends_at_the_first_look() -> None:
    made = problem()
    incumbent, *others = distinct(made, 4)
    found, asks = answered(dict.fromkeys(others, 0.4), incumbent, made, 0.01, 0, 0.2)
    assert (found.winner, len(asks)) == (None, 1)


def test_what_screening_saw_counts_for_nothing_in_the_duel() -> None:
    """A candidate that is better on the documents of the first look alone is not accepted."""
    made = problem()
    incumbent, other = distinct(made, 2)
    rng = random.Random(0)
    steps = race(made, rng, Deck(made, rng), [other], incumbent, ((1, 2000), (1, 8000)), 0.2, 1)
    asks: list[Ask] = []
    found = Race(0)
    try:
        asks.append(next(steps))
        while True:
            count = len(asks[-1].slice.documents)
            seen = [-1.0] * count if len(asks) == 1 else [(-1.0) ** place * 1e-3 for place in range(count)]
            values = [tuple(5 + difference for difference in seen), (5.0,) * count]
            weights = tuple(tokens - 1 for _, tokens in asks[-1].slice.documents)
            pairs = zip(asks[-1].profiles, values, strict=True)
            asks.append(steps.send([Trial(p, asks[-1].slice, v, weights, made.space.cost(p), 0.0) for p, v in pairs]))
    except StopIteration as ended:
        found = ended.value
    assert found.winner is None
    assert len(asks) > 1, "it was screened, and then duelled"


def test_no_document_is_looked_at_twice_in_a_race() -> None:
    made = problem()
    incumbent, *others = distinct(made, 5)
    for seed in range(20):
        _, asks = answered(dict.fromkeys(others, -0.01), incumbent, made, 1.0, seed, 0.05)
        documents = [index for ask in asks for index, _ in ask.slice.documents]
        assert len(documents) == len(set(documents))
        for number, ask in enumerate(asks):
            longest = max(tokens for _, tokens in ask.slice.documents)
            least = 1000 if number == 0 else 9000 // PARTS
            assert least <= ask.slice.tokens < least + longest


def test_the_deck_deals_every_document_before_any_comes_again() -> None:
    made = problem()
    deck = Deck(made, random.Random(0))
    dealt = [index for _ in range(len(POOL) // 2) for index, _ in deck.deal(1000).documents]
    assert sorted(dealt) == list(range(len(POOL)))


def test_a_deck_that_runs_out_says_so() -> None:
    made = problem()
    deck = Deck(made, random.Random(0))
    rest = deck.deal(10**6, taken=range(10))
    assert sorted(index for index, _ in rest.documents) == list(range(10, len(POOL)))
    with pytest.raises(UsageError, match="has seen all documents of the search set"):
        deck.deal(2, taken=range(len(POOL)))


@pytest.mark.parametrize("looks", [(), ((0, 9),), ((2, 1),), ((2, 9), (3, 20)), ((2, 9), (1, 9)), ("x",), ((1, "y"),)])
def test_looks_that_make_no_sense_are_refused(looks: object) -> None:
    with pytest.raises(UsageError, match="Option looks="):
        check_looks(looks)  # type: ignore[arg-type]
