"""The Pareto front against the definition, and what counts as comparable."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evopress.report.pareto import non_dominated, pareto_rows
from evopress.store import BoardRow

coordinate = st.one_of(st.integers(0, 4).map(float), st.just(math.inf))
clouds = st.integers(1, 4).flatmap(lambda d: st.lists(st.tuples(*[coordinate] * d), max_size=14))


def brute_force(points: list[tuple[float, ...]]) -> list[bool]:
    def beaten(p: tuple[float, ...]) -> bool:
        return any(all(a <= b for a, b in zip(q, p, strict=True)) and any(a < b for a, b in zip(q, p, strict=True)) for q in points)

    return [not beaten(p) for p in points]


@settings(max_examples=300, deadline=None)
@given(clouds)
def test_front_equals_brute_force(points: list[tuple[float, ...]]) -> None:
    assert non_dominated(points) == brute_force(points)


@settings(max_examples=100, deadline=None)
@given(clouds.filter(bool), st.randoms(use_true_random=False))
def test_front_does_not_depend_on_order_and_dominates_the_rest(points: list[tuple[float, ...]], rng) -> None:
    keep = non_dominated(points)
    assert any(keep)
    shuffled = list(range(len(points)))
    rng.shuffle(shuffled)
    again = non_dominated([points[i] for i in shuffled])
    assert [again[shuffled.index(i)] for i in range(len(points))] == keep
    front = {p for p, k in zip(points, keep, strict=True) if k}
    assert all(any(all(a <= b for a, b in zip(q, p, strict=True)) for q in front) for p in points)


def test_equal_points_are_both_kept() -> None:
    assert non_dominated([(1.0, 1.0), (1.0, 1.0), (2.0, 1.0)]) == [True, True, False]


def test_bad_points_are_refused() -> None:
    for points in ([(1.0,), (1.0, 2.0)], [(math.nan,)]):
        with pytest.raises(ValueError, match="equal lengths and no NaN"):
            non_dominated(points)


BASE = BoardRow(0, "p", "m", None, None, None, 100, 10, 3.0, {"kl": 0.5}, {}, {"kl": "s"})


def row(number: int, size: int, kl: float | None, decode: float | None = None, **changes: object) -> BoardRow:
    values = {} if kl is None else {"kl": kl}
    device = None if decode is None else "cpu"
    return replace(BASE, profile_id=number, bytes=size, values=values, **{"decode": decode, "device": device, **changes})


def kept(*rows: BoardRow) -> list[int]:
    return [found.profile_id for found in pareto_rows(rows, "kl")]


def test_worse_in_bytes_and_metric_is_left_out_and_the_order_stays() -> None:
    assert kept(row(1, 300, 0.1), row(2, 200, 0.3), row(3, 250, 0.3), row(4, 100, 0.9)) == [1, 2, 4]


def test_speed_can_save_a_row_only_where_it_was_measured() -> None:
    assert kept(row(1, 100, 0.1, 10.0), row(2, 200, 0.2, 20.0)) == [1, 2]  # larger and worse, but faster
    assert kept(row(1, 100, 0.1), row(2, 200, 0.2, 20.0)) == [1, 2]  # nothing shows that the first is as fast
    assert kept(row(1, 100, 0.1, 10.0), row(2, 200, 0.2)) == [1]  # no speed to set against it
    assert kept(row(1, 100, 0.1, 30.0), row(2, 200, 0.2, 20.0)) == [1]


def test_speeds_of_two_devices_are_not_compared() -> None:
    assert kept(row(1, 100, 0.1, 10.0), row(2, 200, 0.2, 1.0, device="cuda")) == [1, 2]


def test_other_models_and_other_documents_are_not_compared() -> None:
    assert kept(row(1, 100, 0.1), row(2, 200, 0.2, model="other")) == [1, 2]
    assert kept(row(1, 100, 0.1), row(2, 200, 0.2, slices={"kl": "other"})) == [1, 2]


def test_a_row_without_the_metric_is_left_out() -> None:
    assert kept(row(1, 1, None), row(2, 200, 0.2)) == [2]
