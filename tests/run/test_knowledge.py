"""What is known of the sites of a tiny model: equal to brute force from its inputs, kept on disk, and computed once."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny_study
import torch
from tiny_study import Tiny

from evopress.api import Knowledge
from evopress.events import Progress
from evopress.hooks.registry import Registry
from evopress.knowledge import Known, layer_errors
from evopress.plan import make_plan
from evopress.store import Store
from evopress.texts import Texts
from evopress.workbench import Workbench

FACTS: tuple[Knowledge, ...] = ("energies", "outliers", "spectra", "similarities")


def bench(tiny: Tiny, home: Path, told: list[Progress], **changed: object) -> Workbench:
    registry = Registry.load()
    plan = make_plan(tiny_study.study(tiny, **changed), registry, home)
    store = Store.open(tiny_study.url(home))
    return Workbench(plan, Texts(plan, told.append), registry, store, home, told.append, dtype="float32")


@pytest.fixture(scope="module")
def home_of_facts(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home in which an earlier run asked for every fact."""
    home, told = tmp_path_factory.mktemp("facts"), list[Progress]()
    known = Known(bench(tiny, home, told))
    for need in FACTS:
        assert known(need)
    assert [event.text.split()[1] for event in told if event.text.startswith("reading")] == ["energies", "spectra", "similarities"]
    return home


def test_energies_and_outliers_equal_brute_force(tiny: Tiny, home_of_facts: Path) -> None:
    made = bench(tiny, home_of_facts, [])
    known, sites = Known(made), made.plan.space.sites
    energies, outliers = known("energies"), known("outliers")
    inputs: dict[str, list[torch.Tensor]] = {site.name: [] for site in sites if site.kind == "linear"}
    for name, kept in inputs.items():
        made.model.get_submodule(name).register_forward_pre_hook(
            lambda _, args, kept=kept: kept.append(args[0].reshape(-1, args[0].shape[-1]))
        )
    with torch.no_grad():
        for document in made.tokens("calibration").documents:
            made.model(torch.tensor([document]))
    for position, site in enumerate(sites):
        if site.kind != "linear":
            assert energies[position] == outliers[position] == 0
            continue
        x = torch.cat(inputs[site.name]).double()
        weight = made.model.get_submodule(site.name).weight.double()
        assert energies[position] == pytest.approx(float((x @ weight.T).pow(2).sum(-1).mean()), rel=1e-4)
        scores = weight.abs() * x.norm(dim=0)
        assert outliers[position] == pytest.approx(float((scores > 5 * scores.mean()).double().mean()), abs=1e-9)
    assert 0 < max(outliers) < 0.1


def test_every_fact_has_the_shape_a_problem_wants(tiny: Tiny, home_of_facts: Path) -> None:
    made = bench(tiny, home_of_facts, [])
    made.complete_bank()
    known, space = Known(made), made.plan.space
    assert known("errors") == layer_errors(made)
    assert [len(row) for row in known("errors")] == [len(levels) for levels in space.levels]
    assert [len(row) for row in known("spectra")] == [min(site.shape) for site in space.sites]
    for site, similarity, row in zip(space.sites, known("similarities"), known("spectra"), strict=True):
        assert (similarity == 1) == (site.kind == "linear")
        assert bool(row) == (site.kind == "linear")
        assert list(row) == sorted(row, reverse=True)


def test_a_later_run_reads_what_an_earlier_one_computed(tiny: Tiny, home_of_facts: Path, no_model: None) -> None:
    """And another text, or other weights, would have another key; singular values know no text."""
    told: list[Progress] = []
    made = bench(tiny, home_of_facts, told)
    known, other = Known(made), Known(bench(tiny, home_of_facts, [], calibration_tokens=128))
    for need in FACTS:
        assert known(need)
        assert known.key(need) == Known(made).key(need)
        assert (known.key(need) == other.key(need)) == (need == "spectra")
    assert other("spectra") == known("spectra")
    assert not [event for event in told if "reading" in event.text]
    assert len({known.key(need) for need in FACTS}) == 4
    inputs, spectra = known.seconds(["energies"]), known.seconds(["spectra"])
    assert inputs > 0
    assert spectra > 0
    assert known.seconds(["outliers"]) == known.seconds(["energies", "outliers", "errors"]) == inputs
    assert known.seconds(["outliers", "spectra"]) == pytest.approx(inputs + spectra)
    assert known.seconds(["errors", "known_slopes"]) == 0


def test_slopes_are_no_fact_of_a_site(tiny: Tiny, home_of_facts: Path) -> None:
    with pytest.raises(KeyError):
        Known(bench(tiny, home_of_facts, []))("slopes")


def test_a_run_tells_every_allocator_what_it_needs_and_judges_it(tiny: Tiny, home_of_facts: Path) -> None:
    """One study of them all, each within the budget and measured on held-out text; what they know was on disk already."""
    told: list[Progress] = []
    names = ("uniform", "erk", "owl", "welore", "similarity")
    run = tiny_study.run(tiny, home_of_facts, told.append, searcher="baq", baselines=names, heldout_tokens=64)
    rows = {row.label: row for row in run.rows}
    assert rows.keys() == {"dense", "baq", *names}
    limit = run.plan.budgets[0].limit
    assert all(row.kl.mean > 0 and run.plan.space.cost(row.profile).bytes <= limit for label, row in rows.items() if label != "dense")
    assert len({rows[name].profile for name in ("baq", "erk", "owl", "welore")}) >= 3
    assert "no level has a rank" in run.remarks["welore"]
    assert "without a drop" in run.remarks["similarity"]
    assert not [event for event in told if "reading energies" in event.text or "reading spectra" in event.text]
    assert "ended by: finished" in str(run)
    assert "smaller than its first question" not in str(run)
