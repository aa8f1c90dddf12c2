import random

import pytest

from evopress.report.statistics import interval, paired


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
