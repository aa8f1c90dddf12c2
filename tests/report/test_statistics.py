import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evopress.report.statistics import interval, merge, paired


def test_interval_covers_the_mean_about_95_percent_of_the_time():
    rng = random.Random(1)
    hits = 0
    for trial in range(200):
        values = [rng.gauss(3.0, 1.0) for _ in range(40)]
        found = interval(values, [1] * 40, seed=trial)
        hits += found.low <= 3.0 <= found.high
    assert 180 <= hits <= 199


def test_interval_weights_documents_by_their_positions():
    assert interval([1.0, 3.0], [3, 1]).mean == pytest.approx(1.5)


def test_paired_finds_a_small_difference_that_an_unpaired_look_would_miss():
    rng = random.Random(2)
    level = [rng.gauss(5, 2) for _ in range(30)]
    lower = [value - 0.05 + rng.gauss(0, 0.02) for value in level]
    found = paired(lower, level, [1] * 30)
    assert found.p < 0.001
    assert found.high < 0
    assert paired(level, lower, [1] * 30).p > 0.99


def test_paired_keeps_its_error_rate_under_the_null():
    rng = random.Random(3)
    p_values = [paired([rng.gauss(0, 1) for _ in range(20)], [rng.gauss(0, 1) for _ in range(20)], [1] * 20).p for _ in range(300)]
    assert sum(p < 0.05 for p in p_values) <= 30


def test_equal_values_are_no_evidence():
    assert paired([1.0, 2.0], [1.0, 2.0], [1, 1]).p == 1.0


def test_unequal_documents_are_refused():
    with pytest.raises(ValueError, match="same documents"):
        paired([1.0], [1.0, 2.0], [1])


def clustered(rng, documents, windows):
    """Differences of windows that share what their document has in common; no difference on the whole."""
    shared = [rng.gauss(0, 1) for _ in range(documents)]
    return [common + rng.gauss(0, 0.2) for common in shared for _ in range(windows)]


def test_windows_of_one_document_are_one_piece_of_evidence():
    """Under the null, with 8 documents of 12 windows: the test over windows is wrong far more than 5 % of the time, over documents not."""
    rng = random.Random(4)
    groups = [document for document in range(8) for _ in range(12)]
    zeros, ones = [0.0] * 96, [1] * 96
    wrong = {"windows": 0, "documents": 0}
    covered = {"windows": 0, "documents": 0}
    for trial in range(80):
        values = clustered(rng, 8, 12)
        for name, own in (("windows", None), ("documents", groups)):
            wrong[name] += paired(values, zeros, ones, trial, groups=own).p < 0.05
            found = interval(values, ones, trial, groups=own)
            covered[name] += found.low <= 0 <= found.high
    assert wrong["windows"] > 16
    assert wrong["documents"] <= 9
    assert covered["windows"] < 52
    assert covered["documents"] > 60


def test_groups_are_merged_by_positions_and_counted():
    values, weights, groups = [1.0, 4.0, 10.0], [3, 1, 4], ["x", "y", "x"]
    alone = interval([43 / 7, 4.0], [7, 1], seed=3)
    assert interval(values, weights, seed=3, groups=groups) == alone
    assert alone.mean == pytest.approx(interval(values, weights).mean)
    assert alone.n == 2
    found = paired(values, [0.0, 1.0, 2.0], weights, groups=groups)
    assert found.n == 2
    assert found.difference == pytest.approx((1 * 3 + 3 * 1 + 8 * 4) / 8)


@given(st.lists(st.tuples(st.floats(-1e6, 1e6), st.integers(1, 10**6)), min_size=1, max_size=30))
def test_documents_with_one_window_each_change_nothing(rows):
    values, weights = [value for value, _ in rows], [weight for _, weight in rows]
    assert merge(values, weights, range(100, 100 + len(rows))) == merge(values, weights, None) == (values, weights)


def test_without_groups_numbers_are_those_of_groups_of_one():
    rng = random.Random(5)
    a, b, weights = ([rng.gauss(0, 1) for _ in range(20)] for _ in range(3))
    positions = [1 + int(abs(weight) * 500) for weight in weights]
    assert interval(a, positions, 1, "abcdefghijklmnopqrst") == interval(a, positions, 1)
    assert paired(a, b, positions, 1, "abcdefghijklmnopqrst") == paired(a, b, positions, 1)


def test_groups_of_another_number_are_refused():
    with pytest.raises(ValueError):
        interval([1.0, 2.0], [1, 1], groups=[0])
    with pytest.raises(ValueError, match="as many weights"):
        interval([1.0, 2.0], [1])
