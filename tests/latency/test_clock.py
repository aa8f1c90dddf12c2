"""Intervals of the median against the binomial distribution, stopping rules with a planted clock, and the fingerprint."""

from __future__ import annotations

import json
import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from evopress.api import UsageError
from evopress.latency import clock as module
from evopress.latency.clock import Timing, fingerprint, measure, ratio


class Planted:
    """A clock on which every call takes the next of `durations`; reading it at other times costs nothing."""

    def __init__(self, durations):
        self.now, self.calls, self.durations = 0.0, 0, durations

    def __call__(self):
        return self.now

    def work(self):
        self.now += self.durations[self.calls % len(self.durations)]
        self.calls += 1


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 400))
def test_interval_is_the_narrowest_with_95_percent(n):
    timing = Timing.of([float(i) for i in range(n)])
    low, high = int(timing.low), int(timing.high)
    assert low + high == n - 1
    assert timing.coverage == pytest.approx(max(0, 1 - 2 * binom.cdf(low, n, 0.5)), abs=1e-9)
    if n >= 6:
        assert timing.coverage >= 0.95
    if n >= 6 and 2 * (low + 1) < n - 1:
        assert 1 - 2 * binom.cdf(low + 1, n, 0.5) < 0.95


def test_many_samples_underflow_nothing():
    """Half to the power 2,000 is no float; a fast kernel is timed as often."""
    timing = Timing.of([float(i) for i in range(2000)])
    assert (timing.low, timing.high) == (binom.ppf(0.025, 2000, 0.5) - 1, 2000 - binom.ppf(0.025, 2000, 0.5))
    assert timing.coverage == pytest.approx(1 - 2 * binom.cdf(timing.low, 2000, 0.5), abs=1e-9)
    assert 0.95 <= timing.coverage < 0.955


def test_interval_covers_the_median_of_a_skewed_distribution():
    rng = random.Random(1)
    true = math.log(2)
    hits = 0
    for _ in range(400):
        timing = Timing.of([rng.expovariate(1.0) for _ in range(25)])
        hits += timing.low <= true <= timing.high
    assert hits / 400 > 0.92


def test_measure_stops_when_narrow_enough():
    clock = Planted([1.0])
    timing = measure(clock.work, clock, warmup=3, min_repeats=9, max_seconds=1e9)
    assert (timing.n, clock.calls, timing.median, timing.relative_interval) == (9, 12, 1.0, 0.0)


def test_measure_stops_when_time_is_up():
    clock = Planted([1.0, 3.0])
    timing = measure(clock.work, clock, warmup=0, min_repeats=5, max_seconds=100, target_relative_interval=0.01)
    assert 50 <= timing.n <= 52
    assert timing.low == 1.0
    assert timing.high == 3.0


def test_measure_takes_the_minimum_even_over_time():
    clock = Planted([10.0])
    assert measure(clock.work, clock, min_repeats=4, max_seconds=1).n == 4


def test_ratio_is_paired():
    base = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0]
    result = ratio(Timing.of([2 * value for value in base]), Timing.of(base))
    assert (result.median, result.low, result.high) == (2.0, 2.0, 2.0)
    with pytest.raises(UsageError, match="not paired"):
        ratio(Timing.of([1.0]), Timing.of(base))


@pytest.mark.parametrize("samples", [[], [1.0, math.nan], [math.inf]])
def test_timing_of_nothing_is_an_error(samples):
    with pytest.raises(UsageError, match="no timing"):
        Timing.of(samples)


def test_no_repeats_is_an_error():
    with pytest.raises(UsageError, match="at least one repeat"):
        measure(lambda: None, min_repeats=0)


def test_fingerprint_is_json_and_names_the_machine():
    found = fingerprint()
    assert json.loads(json.dumps(found)) == found
    assert {"cpu", "megahertz", "flags", "cores", "threads", "torch", "python", "capability"} <= found.keys()
    assert found["cpu"]
    assert found["threads"] >= 1


def test_the_clock_is_the_highest_where_that_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "HIGHEST_CLOCK", tmp_path / "cpuinfo_max_freq")
    monkeypatch.setattr(module, "_cpuinfo", lambda: {"cpu MHz": "2596.6"})
    assert fingerprint()["megahertz"] == 2597
    (tmp_path / "cpuinfo_max_freq").write_text("4100000\n")
    assert fingerprint()["megahertz"] == 4100
    (tmp_path / "cpuinfo_max_freq").unlink()
    monkeypatch.setattr(module, "_cpuinfo", dict)
    assert fingerprint()["megahertz"] is None
