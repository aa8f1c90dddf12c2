"""Exact numbers of zeros: the levels, their split over parts, and the selection of the smallest scores."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evopress.api import Level, Site, Statistics, UsageError, Variant
from evopress.api.level import Scalar
from evopress.api.options import check_int
from evopress.api.sparsity import SparsityMethod, shares_of, smallest, sparsity_cost, sparsity_levels, zeros_at


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


@dataclass(frozen=True)
class Planted(SparsityMethod):
    """A sparsity method with one option of its own."""

    name: ClassVar[str] = "planted"

    seed: int = 0

    def own_options(self) -> Mapping[str, Scalar]:
        return {"seed": check_int(self.name, "seed", self.seed, 0)} if self.seed != 0 else {}

    def compress(self, site: Site, weight: torch.Tensor, stats: Statistics, levels: Sequence[Level]) -> Iterator[Variant]:
        yield from ()


def test_a_sparsity_method_has_the_shared_options_and_its_own() -> None:
    site = Site("w", "linear", (8, 32), 0, None)
    assert [field.name for field in fields(Planted)] == ["sparsity", "steps", "step_weights", "seed"]
    assert [str(level) for level in Planted(0.5).levels(site)] == ["planted(sparsity=0.5)"]
    assert [str(level) for level in Planted((0.5, 0.6), seed=3).levels(site)] == [
        "planted(sparsity=0.5,seed=3)",
        "planted(sparsity=0.6,seed=3)",
    ]
    assert [dict(level.options)["step"] for level in Planted(0.5, steps=1, step_weights=8).levels(site)] == [-1, 0, 1]
    assert Planted(0.5).cost(site, Level.of("planted", sparsity=0.5)).params == 128


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sparsity": 1.0}, "Option sparsity=1.0 of method 'planted' is not allowed"),
        ({"steps": -1}, "Option steps=-1"),
        ({"step_weights": 0}, "Option step_weights=0"),
        ({"seed": -1}, "Option seed=-1 of method 'planted' is not allowed"),
    ],
)
def test_options_are_checked_when_the_method_is_made(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Planted(**options)
    with pytest.raises(UsageError, match="Unknown level"):
        Planted(0.5).cost(Site("w", "linear", (8, 32), 0, None), Level.of("planted", sparsity=0.6))
