"""What a later search starts from: slopes of earlier ones on the same sites, and nothing that saw a held-out document."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny_study
from tiny_study import Tiny

from evopress.api import Profile
from evopress.gate import dense_profile
from evopress.hooks.registry import Registry
from evopress.memory import Memory
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


def dense(made: Workbench) -> Profile:
    """The profile that is the same whatever the bank."""
    return dense_profile(made.plan.space)


@pytest.fixture(scope="module")
def home(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home in which a guided search has been."""
    made = tmp_path_factory.mktemp("memory")
    tiny_study.run(tiny, made, name="first", **GUIDED)
    return made


def test_another_budget_remembers_what_the_first_search_measured(tiny: Tiny, home: Path) -> None:
    made = bench(tiny, home, name="second", budgets=("bits=3.2",))
    remembered = Memory(made, made.store, LATER).slopes()
    space = made.plan.space
    assert remembered
    for genotype, slopes in remembered:
        assert len(genotype) == len(space.genes)
        assert len(slopes) == len(space.sites)
        assert any(slopes)
    assert Memory(made, made.store, 0.0).slopes() == (), "nothing is older than the first trial"


def test_profiles_of_other_methods_are_left_out(tiny: Tiny, home: Path) -> None:
    made = bench(tiny, home, name="third", methods=("rtn(bits=2..4,group=32)",))
    memory = Memory(made, made.store, LATER)
    assert memory.slopes() == ()
    space = made.plan.space
    assert {str(level) for trial in memory.trials() for _, level in space.profile(trial.genotype)} == {"dense"}, "which both have"


def test_nothing_that_saw_a_held_out_document_is_remembered(tiny: Tiny, home: Path) -> None:
    other = bench(tiny, home, name="fourth", seed=1)
    first = bench(tiny, home, name="first")
    searched = set(first.tokens("search").origins)
    assert searched & set(other.tokens("heldout").origins), "the roles are dealt anew by another seed"
    memory, asked = Memory(other, other.store, LATER), ([site.name for site in other.plan.space.sites], "kl", LATER)
    for stored, kept in ((other.store.slopes_before(*asked), memory.slopes()), (other.store.trials_before(*asked), memory.trials())):
        assert len(kept) == sum(not row.text.origins & set(other.tokens("heldout").origins) for row in stored)
        assert len(kept) < len(stored)


def test_trials_are_remembered_as_they_were_measured(tiny: Tiny, home: Path) -> None:
    made = bench(tiny, home, name="second", budgets=("bits=3.2",))
    study = made.store.find_study("first")
    asked = {(row.profile, row.slice): row.mean for row in made.store.trajectory(study.id)}
    kept = Memory(made, made.store, LATER).trials()
    space = made.plan.space
    told = {(space.profile(trial.genotype).digest, trial.slice): trial.fitness for trial in kept}
    compared = asked.keys() & told.keys()
    assert len(compared) > len(asked) // 2, "all but those with slopes, which are measured in other batches"
    assert all(asked[key] == told[key] for key in compared)
    assert any(space.cost_of(trial.genotype).bytes > made.plan.budgets[0].limit for trial in kept), "of a wider budget too"


def test_what_another_bank_scored_is_told_apart(tiny: Tiny, home: Path) -> None:
    same, another = bench(tiny, home, name="second"), bench(tiny, home, name="fifth", calibration_tokens=128)
    own, other = (
        {trial.slice for trial in Memory(made, made.store, LATER).trials() if trial.genotype != made.plan.space.genotype(dense(made))}
        for made in (same, another)
    )
    slices = {row.slice for row in same.store.trajectory(same.store.find_study("first").id)}
    assert own & slices
    assert other
    assert not other & slices


def test_a_search_says_that_it_remembers_and_one_that_is_fresh_does_not(tiny: Tiny, home: Path) -> None:
    told: list[str] = []
    tiny_study.run(tiny, home, name="second", budgets=("bits=3.2",), listen=lambda event: told.append(event.text), **GUIDED)
    assert any("backward passes of earlier searches" in text for text in told)
    again: list[str] = []
    tiny_study.run(tiny, home, name="alone", fresh=True, budgets=("bits=3.2",), listen=lambda event: again.append(event.text), **GUIDED)
    assert not any("earlier searches" in text for text in again)
