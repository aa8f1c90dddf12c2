"""The check of the table against whole models: exact where time passes as the table says, off by what is planted where not."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from planted_model import DECODE, FORMATS, PARTS, PREFILL, PlantedModel, measured

from evopress.api import NotFound
from evopress.latency.check import Checked, check_table, estimate
from evopress.latency.clock import Timing
from evopress.latency.mixed import random_profile
from evopress.latency.table import Part


def test_an_error_below_zero_promises_too_much():
    assert Checked(3.0, Timing.of([4.0, 4.0, 9.0])).error == -0.25
    assert Checked(5.0, Timing.of([4.0])).error == 0.25


@pytest.mark.parametrize("workload", [DECODE, PREFILL], ids=str)
def test_the_sum_is_exact_where_time_is_planted(workload):
    planted = PlantedModel(workload)
    found = check_table(planted.model, planted.sites, FORMATS, planted.table, "digest", workload, planted.pick, 4, 3, 2, planted)
    rng = random.Random(3)
    expected = [planted.seconds(random_profile(planted.sites, FORMATS, rng)) for _ in range(4)]
    assert len(set(expected)) == 4
    assert [(one.estimated, one.measured.samples, one.error) for one in found] == [(seconds, (seconds,) * 2, 0.0) for seconds in expected]


def test_a_part_that_is_longer_than_the_table_says_is_found():
    planted = PlantedModel()
    short = replace(planted.table, parts={**planted.table.parts, Part("digest", "model", DECODE): measured(PARTS["model"] - 1)})
    (found,) = check_table(planted.model, planted.sites, FORMATS, short, "digest", DECODE, planted.pick, 1, 0, 1, planted)
    assert found.measured.median - found.estimated == 1.0
    assert found.error < 0


def test_estimates_need_every_cell():
    planted = PlantedModel()
    profile = random_profile(planted.sites, ["int3-g16"], random.Random(0))
    with pytest.raises(NotFound, match="int3-g16"):
        estimate(profile, planted.sites, planted.table, "digest", DECODE)
