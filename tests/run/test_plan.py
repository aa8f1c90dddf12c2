"""The plan of a study: how much of the model the methods reach, and what is said where they miss most of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import tiny_study
from evopress_magnitude import Magnitude
from tiny_study import Answer, Tiny

from evopress.api import Level, Site, UsageError
from evopress.hooks.registry import Registry
from evopress.plan import Plan, make_plan, missed_roles
from evopress.run import facts

# Of a block of the tiny model, in weights: q and o 64×64 each, k and v 64×32 each, gate, up and down 64×96 each.
ATTENTION, MLP = 2 * 64 * 64 + 2 * 64 * 32, 3 * 64 * 96
OUTSIDE = 576
"""Norms, which no method reaches."""


def plan(tiny: Tiny, tmp_path: Path, *methods: str, **changed: object) -> Plan:
    return make_plan(tiny_study.study(tiny, methods=methods, budgets=("params=1x",), **changed), Registry.load(), tmp_path)


def test_coverage_counts_what_has_a_level_and_what_can_be_dropped(tiny: Tiny, tmp_path: Path) -> None:
    total = 4 * (ATTENTION + MLP) + OUTSIDE
    assert plan(tiny, tmp_path, "rtn(bits=3,group=32)").coverage == pytest.approx(4 * (ATTENTION + MLP) / total)
    assert plan(tiny, tmp_path, "drop(kinds=mlp)").coverage == pytest.approx(4 * MLP / total)
    assert plan(tiny, tmp_path, "drop(kinds=block)").coverage == pytest.approx(4 * (ATTENTION + MLP) / total)
    # Groups of 64 divide the inputs of all but down_proj, whose rows have 96 columns.
    most = plan(tiny, tmp_path, "rtn(bits=3,group=64)")
    assert most.coverage == pytest.approx((4 * (ATTENTION + MLP) - 4 * 64 * 96) / total)
    assert missed_roles(most.space) == [("down_proj", 4 * 64 * 96)]
    assert "no level to choose at: down_proj" in facts(most)
    assert f"{most.coverage:.1%} of the parameters" in facts(most)


def test_a_space_that_misses_most_of_the_model_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        plan(tiny, tmp_path, "rtn(bits=3,group=96)")  # reaches down_proj alone
    assert "reach 19.9% of the parameters outside embeddings and head; at least 50% is needed." in str(caught.value)
    assert "Without a level to choose (parameters): gate_proj (24,576), up_proj (24,576), q_proj (16,384), o_proj (16,384)" in str(
        caught.value
    )
    assert "least_coverage" in caught.value.hint
    assert plan(tiny, tmp_path, "rtn(bits=3,group=96)", least_coverage=0.1).coverage < 0.5


@dataclass(frozen=True)
class Careless(Magnitude):
    """Divides by an option that it takes as it comes."""

    name: ClassVar[str] = "careless"
    group: Any = 32

    def levels(self, site: Site) -> Sequence[Level]:
        """Fails for a list of groups."""
        return [Level.of(self.name, group=self.group)] if site.shape[1] % self.group == 0 else []


def test_what_a_plugin_does_not_check_is_an_error_that_names_it(tiny: Tiny, tmp_path: Path) -> None:
    known = Registry.load()
    classes = {kind: dict(found) for kind, found in known.classes.items()}
    classes["method"]["careless"] = Careless
    study = tiny_study.study(tiny, methods=("careless(group=32|64)",), budgets=("params=1x",))
    with pytest.raises(UsageError, match=r"Careless.* fails to offer levels at model\.layers\.0\..*: TypeError: .*evopress plugins check"):
        make_plan(study, Registry(classes, known.plugins), tmp_path)


def test_least_coverage_is_no_part_of_a_study(tiny: Tiny) -> None:
    assert tiny_study.study(tiny, least_coverage=0.1).digest == tiny_study.study(tiny).digest


def test_a_start_prints_the_coverage(tiny: Tiny, evopress_command: object) -> None:
    answer: Answer = evopress_command("search", "start", *tiny_study.arguments(tiny, searcher="uniform", baselines=("greedy",)))  # type: ignore[operator]
    assert answer.code == 0, answer.err
    assert "28 linear sites, 99.5% of the parameters outside embeddings and head; budget bits=3.8 = at most 98,432 bytes" in answer.err


@pytest.mark.parametrize("text", ["latency=0", "latency=-1ms", "latency=0x", "latency=20"])
def test_a_slip_in_a_latency_budget_is_told_before_times_are_asked_for(text: str, tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=text.removesuffix("20")):
        make_plan(tiny_study.study(tiny, budgets=(text,)), Registry.load(), tmp_path, lambda: pytest.fail("times were asked for"))
