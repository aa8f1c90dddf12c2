"""What a later search starts from: slopes of earlier ones on the same sites, and nothing that saw a held-out document."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import tiny_study
from sqlalchemy import text as sql
from tiny_study import Tiny

from evopress.api import Profile
from evopress.gate import dense_profile
from evopress.hooks.registry import Registry
from evopress.memory import Memory
from evopress.plan import make_plan
from evopress.report.result import result_json
from evopress.store import Store
from evopress.store.catalog import alike
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


def test_nothing_of_a_search_that_saw_a_held_out_document_is_remembered(tiny: Tiny, home: Path) -> None:
    """Not even what it measured on other documents: its profiles were chosen by all of them."""
    first, other = bench(tiny, home, name="first"), bench(tiny, home, name="fourth", seed=1)
    assert Memory(first, first.store, LATER).trials()
    searched, withheld = first.tokens("search"), other.tokens("heldout")
    shared = set(searched.origins) & set(withheld.origins)
    assert shared, "the roles are dealt anew by another seed"
    assert set(searched.origins) - shared
    memory = Memory(other, other.store, LATER)
    assert memory.slopes() == ()
    assert memory.trials() == ()


def test_a_text_under_another_name_is_known_again(tiny: Tiny, home: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.jsonl"
    copy.write_text(tiny.text.read_text(encoding="utf-8"), encoding="utf-8")
    same, mixed = bench(tiny, home, name="fifth", text=str(copy)), bench(tiny, home, name="sixth", text=str(copy), seed=1)
    assert Memory(same, same.store, LATER).slopes()
    assert Memory(mixed, mixed.store, LATER).slopes() == ()


def test_what_a_token_set_was_drawn_from_must_be_known(tiny: Tiny, home: Path) -> None:
    made = bench(tiny, home, name="second")
    assert Memory(made, made.store, LATER).slopes()
    known = made.store.token_sets("search")
    made.store.database.write(lambda conn: conn.execute(sql("UPDATE evo_token_sets SET texts = '[]'")))
    try:
        assert Memory(made, made.store, LATER).slopes() == ()
    finally:
        for row in known:
            made.store.save_token_set(row)
    assert Memory(made, made.store, LATER).slopes()


def test_a_sibling_starts_from_what_the_model_told_and_another_shape_does_not(tiny: Tiny, home: Path, tmp_path: Path) -> None:
    sibling = tiny_study.make(tmp_path / "sibling", seed=1)
    made = bench(tiny, home, name="sibling", model=str(sibling.model))
    own = bench(tiny, home, name="second")
    assert made.model_digest != own.model_digest
    told, known = (Memory(one, one.store, LATER) for one in (made, own))
    assert told.slopes() == known.slopes()
    assert {trial.genotype for trial in told.trials()} == {trial.genotype for trial in known.trials()}
    assert all(trial.slice.startswith(f"{own.model_digest}:") for trial in told.trials()), "their values do not compare"
    store, sites = own.store, own.plan.sitemap.sites
    wider = [replace(site, shape=(2 * site.shape[0], site.shape[1])) for site in sites]
    counts = [len(store.database.read(lambda conn, asked=asked: alike(conn, asked))) for asked in (sites, wider)]
    assert counts[0] >= 1
    assert counts[1] == 0


def test_usable_trials_are_found_behind_many_of_other_methods(tiny: Tiny, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = bench(tiny, home, name="second")
    whole = Memory(made, made.store, LATER).trials()
    monkeypatch.setattr("evopress.store.remembered.PAGE", 3)
    assert Memory(made, made.store, LATER).trials() == whole
    monkeypatch.setattr("evopress.memory.NEWEST_TRIALS", 5)
    assert Memory(made, made.store, LATER).trials() == whole[:5]


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
    warm = tiny_study.run(tiny, home, name="second", budgets=("bits=3.2",), listen=lambda event: told.append(event.text), **GUIDED)
    assert any("backward passes of earlier searches" in text for text in told)
    assert result_json(warm)["known"] == dict(warm.known)
    assert f"from what {warm.known['known_slopes']} backward passes of earlier searches told, beside the search" in str(warm)
    again: list[str] = []
    cold = tiny_study.run(
        tiny, home, name="alone", fresh=True, budgets=("bits=3.2",), listen=lambda event: again.append(event.text), **GUIDED
    )
    assert not any("earlier searches" in text for text in again)
    assert cold.known == {}
    assert "earlier searches" not in str(cold)
    assert f"calibrated on {cold.study.calibration_tokens} tokens" in str(cold)
