"""What a later search starts from: slopes of earlier ones on the same sites, and nothing that saw a held-out document."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny_study
from tiny_study import Tiny

from evopress.hooks.registry import Registry
from evopress.memory import remember
from evopress.plan import make_plan
from evopress.store import Store
from evopress.texts import Texts
from evopress.workbench import Workbench

GUIDED = {
    "methods": ("gptq(bits=2..4,group=32)",),
    "searcher": "guided(slope_tokens=64,looks=3x32|1x224,local_looks=4x32|1x224,start_tokens=64,alpha=0.5,rounds=2)",
    "stop_tokens": 4000,
    "baselines": ("uniform",),
}
LATER = 4e9
"""A time that no trial is younger than."""


def bench(tiny: Tiny, home: Path, **changed: object) -> Workbench:
    registry = Registry.load()
    plan = make_plan(tiny_study.study(tiny, **{**GUIDED, **changed}), registry, home)
    return Workbench(plan, Texts(plan, lambda _: None), registry, Store.open(tiny_study.url(home)), home, lambda _: None, dtype="float32")


@pytest.fixture(scope="module")
def home(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home in which a guided search has been."""
    made = tmp_path_factory.mktemp("memory")
    tiny_study.run(tiny, made, name="first", **GUIDED)
    return made


def test_another_budget_remembers_what_the_first_search_measured(tiny: Tiny, home: Path) -> None:
    made = bench(tiny, home, name="second", budgets=("bits=3.2",))
    remembered = remember(made, made.store, LATER)
    space = made.plan.space
    assert remembered
    for genotype, slopes in remembered:
        assert len(genotype) == len(space.genes)
        assert len(slopes) == len(space.sites)
        assert any(slopes)
    assert remember(made, made.store, 0.0) == (), "nothing is older than the first trial"


def test_profiles_of_other_methods_are_left_out(tiny: Tiny, home: Path) -> None:
    made = bench(tiny, home, name="third", methods=("rtn(bits=2..4,group=32)",))
    assert remember(made, made.store, LATER) == ()


def test_nothing_that_saw_a_held_out_document_is_remembered(tiny: Tiny, home: Path) -> None:
    other = bench(tiny, home, name="fourth", seed=1)
    first = bench(tiny, home, name="first")
    searched = set(first.tokens("search").origins)
    assert searched & set(other.tokens("heldout").origins), "the roles are dealt anew by another seed"
    seen = [set(row.origins) for row in other.store.slopes_before([site.name for site in other.plan.space.sites], "kl", LATER)]
    kept = remember(other, other.store, LATER)
    assert len(kept) == sum(not origins & set(other.tokens("heldout").origins) for origins in seen)
    assert len(kept) < len(seen)


def test_a_search_says_that_it_remembers_and_one_that_is_fresh_does_not(tiny: Tiny, home: Path) -> None:
    told: list[str] = []
    tiny_study.run(tiny, home, name="second", budgets=("bits=3.2",), listen=lambda event: told.append(event.text), **GUIDED)
    assert any("backward passes of earlier searches" in text for text in told)
    again: list[str] = []
    tiny_study.run(tiny, home, name="alone", fresh=True, budgets=("bits=3.2",), listen=lambda event: again.append(event.text), **GUIDED)
    assert not any("earlier searches" in text for text in again)
