"""Exact numbers of zeros: the levels, their split over parts, and the selection of the smallest scores."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evopress.api import Level
from evopress.api.sparsity import shares_of, smallest, sparsity_cost, sparsity_levels, zeros_at


def test_steps_are_worth_the_same_number_of_weights_everywhere() -> None:
    ladders = [sparsity_levels("wanda", shape, (0.6,), 2, 100) for shape in ((40, 50), (64, 576))]
    for shape, ladder in zip(((40, 50), (64, 576)), ladders, strict=True):
        zeros = [zeros_at(shape, level) for level in ladder]
        assert len(zeros) == 5
        assert [high - low for low, high in pairwise(zeros)] == [100] * 4
        assert zeros[2] == round(0.6 * shape[0] * shape[1])
    assert str(ladders[0][0]) == "wanda(sparsity=0.6,step=-2,weights=100)"


def test_levels_that_a_small_site_cannot_hold_are_left_out() -> None:
    steps = [level.option("step") for level in sparsity_levels("wanda", (10, 10), (0.6,), 4, 25)]
    assert steps == [-2, -1, 0, 1]


@settings(max_examples=60, deadline=None)
@given(total=st.integers(0, 5000), parts=st.integers(1, 60))
def test_shares_add_up_and_differ_by_one_at_most(total: int, parts: int) -> None:
    shares = shares_of(total, parts)
    assert len(shares) == parts
    assert sum(shares) == total
    assert max(shares) - min(shares) <= 1


@settings(max_examples=80, deadline=None)
@given(values=st.lists(st.integers(0, 6), min_size=1, max_size=40), data=st.data())
def test_smallest_takes_exactly_that_many_and_the_first_among_equals(values: list[int], data: st.DataObject) -> None:
    count = data.draw(st.integers(0, len(values)))
    mask = smallest(torch.tensor(values, dtype=torch.float32)[:, None], count)
    want = sorted(range(len(values)), key=lambda index: (values[index], index))[:count]
    assert mask.flatten().nonzero().flatten().tolist() == sorted(want)


def test_cost_from_the_shape_alone() -> None:
    level = Level.of("magnitude", sparsity=0.5)
    assert sparsity_cost((3, 9), level).params == 27 - round(13.5)
    assert sparsity_cost((3, 9), level).bytes == 6 + 2 * (27 - round(13.5))


@pytest.mark.parametrize("share", [0.1, 0.35, 0.7])
def test_zeros_are_the_rounded_share(share: float) -> None:
    assert zeros_at((7, 13), Level.of("wanda", sparsity=share)) == round(share * 91)
