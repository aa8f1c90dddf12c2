"""The check of the table against whole models: exact where time passes as the table says, off by what is planted where not."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from planted_model import DECODE, FORMATS, PARTS, PREFILL, PlantedModel, factors, measured

from evopress.api import NotFound
from evopress.latency.check import Checked, check_profiles, check_table, estimate
from evopress.latency.clock import Timing
from evopress.latency.mixed import random_profile, run_profiles
from evopress.latency.table import Part


def test_an_error_below_zero_promises_too_much():
    assert Checked(3.0, Timing.of([4.0, 4.0, 9.0])).error == -0.25
    assert Checked(5.0, Timing.of([4.0])).error == 0.25


def checked(planted, workload, table, count, seed, repeats):
    profiles = check_profiles(planted.sites, FORMATS, count, seed)
    passes = run_profiles(planted.model, planted.sites, profiles, planted.pick, workload, seed, repeats, planted)
    return check_table(profiles, passes, planted.sites, table, "digest", workload)


@pytest.mark.parametrize("workload", [DECODE, PREFILL], ids=str)
def test_the_sum_is_exact_where_time_is_planted(workload):
    planted = PlantedModel(workload)
    found = checked(planted, workload, planted.table, 4, 3, 2)
    rng = random.Random(3)
    expected = [planted.seconds(random_profile(planted.sites, FORMATS, rng)) for _ in range(4)]
    assert len(set(expected)) == 4
    assert [(one.estimated, one.measured.samples, one.error) for one in found] == [(seconds, (seconds,) * 2, 0.0) for seconds in expected]


def test_a_part_that_is_longer_than_the_table_says_is_found():
    planted = PlantedModel()
    short = replace(planted.table, parts={**planted.table.parts, Part("digest", "model", DECODE): measured(PARTS["model"] - 1)})
    (found,) = checked(planted, DECODE, short, 1, 0, 1)
    assert found.measured.median - found.estimated == 1.0
    assert found.error < 0


def test_estimates_need_every_cell():
    planted = PlantedModel()
    profile = random_profile(planted.sites, ["int3-g16"], random.Random(0))
    with pytest.raises(NotFound, match="int3-g16"):
        estimate(profile, planted.sites, planted.table, "digest", DECODE)


def test_estimates_take_the_factors_of_formats():
    planted = PlantedModel(factors={"int4-g16": 2.0, "dense": 0.5})
    found = factors({format: planted.factors.get(format, 1.0) for format in FORMATS})
    table = replace(planted.table, factors=found)
    for one in checked(planted, DECODE, table, 3, 1, 1):
        assert one.estimated == pytest.approx(one.measured.median)
    with pytest.raises(NotFound, match="dense with planted was never timed within the whole model for decode,batch=2,context=8"):
        checked(planted, DECODE, replace(table, factors={part: one for part, one in found.items() if part.kind != "dense"}), 3, 1, 1)
