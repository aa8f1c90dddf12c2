"""What a finished run says is true: bytes are those of the tensors, values those of the winner, and text is what was asked for."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_study
import torch
from tiny_study import Answer, Tiny, Whole

from evopress.api import ABSENT, DENSE, DROP, NumericalError, Profile, QualityGateFailed, Site
from evopress.api.formats import decode
from evopress.fitness import KL, Perplexity
from evopress.found import Run
from evopress.models.load import load
from evopress.models.stitch import Stitcher
from evopress.models.weights import Slot
from evopress.report.statistics import Paired, paired
from evopress.store import Store


def fresh_model(run: Run) -> torch.nn.Module:
    """The dense model, read again from disk."""
    return load(run.plan.ref, torch.float32)[0]


@pytest.fixture(scope="module")
def dropping(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run whose budget cannot be met without dropping sublayers."""
    home = tmp_path_factory.mktemp("dropping")
    run: Run = tiny_study.run(tiny, home, methods=("rtn(bits=4,group=32)", "drop"), budgets=("bits=3",), baselines=("uniform",))
    assert any(level == DROP for _, level in run.best.profile)
    return run


def bytes_of(run: Run, profile: Profile) -> int:
    """Bytes of a profile from the bank's tensors and the dense model's parameters, without the space."""
    model = fresh_model(run)
    dense = {name: 2 * parameter.numel() for name, parameter in model.named_parameters()}
    for site in run.plan.sitemap.sites:
        level = profile[site.name]
        inside = [name for name in dense if name.startswith(f"{site.name}.")]
        if level in (DROP, ABSENT):
            dense.update(dict.fromkeys(inside, 0))
        elif level != DENSE:
            (name,) = inside
            dense[name] = sum(tensor.numel() * tensor.element_size() for tensor in run.best._bench.variant(site, level).tensors.values())
    return sum(dense.values())


@pytest.mark.parametrize("which", ["whole", "dropping"])
def test_every_profile_of_the_search_is_within_the_budget_in_stored_bytes(which: str, whole: Whole, request: pytest.FixtureRequest) -> None:
    run: Run = whole.run if which == "whole" else request.getfixturevalue("dropping")
    (budget,) = run.plan.budgets
    base = 2 * (2 * 152 * 64 + 9 * 64)
    assert budget.limit == base + int((3.8 if which == "whole" else 3) * 4 * (384 * 64 + 64 * 96)) // 8
    with Store.open(run.storage) as store:
        steps = store.trajectory(store.find_study("tiny").id)
        profiles = {store.find_profile(digest).profile for digest in {step.profile for step in steps}}
    stored = {step.profile: step.bytes for step in steps}
    assert len(profiles) > 20
    for profile in profiles:
        assert bytes_of(run, profile) == stored[profile.digest] <= budget.limit
    for row in run.rows:
        assert bytes_of(run, row.profile) == row.cost.bytes


def test_b1_the_reported_values_are_those_of_the_winner(whole: Whole) -> None:
    run: Run = whole.run
    model = fresh_model(run)
    heldout = run.best._bench.tokens("heldout")
    documents = [(number, torch.tensor(ids)) for number, ids in enumerate(heldout.documents)]
    kl, nll = KL(), Perplexity()
    for fitness in (kl, nll):
        fitness.prepare(model, dict(documents))
    stitcher = Stitcher(model, run.plan.sitemap.sites)
    for row in run.rows:
        stitcher.set(row.profile, lambda site, level: weight_of(run, site, level))
        for fitness, said in ((kl, row.kl), (nll, row.nll)):
            values, weights = fitness.score(model, documents)
            assert said.mean == pytest.approx(sum(v * w for v, w in zip(values, weights, strict=True)) / sum(weights), rel=1e-6, abs=1e-7)
    means = {row.label: row.kl.mean for row in run.rows}
    assert len({round(mean, 4) for mean in means.values()}) >= 4, "profiles too alike to tell the winner from another"
    assert run.best.profile == run.rows[-1].profile


def weight_of(run: Run, site: Site, level: Any) -> torch.Tensor:
    """A variant of the bank as a dense weight."""
    variant = run.best._bench.variant(site, level)
    return decode(variant.format, variant.tensors, site.shape)


def test_b2_the_winner_applied_to_a_model_has_the_winner_weights(whole: Whole) -> None:
    run: Run = whole.run
    model, dense = fresh_model(run), fresh_model(run)
    assert run.best.apply(model) is model
    changed = 0
    for site in run.plan.sitemap.of_kind("linear"):
        weight, level = model.get_submodule(site.name).weight, run.best.profile[site.name]
        if level == DENSE:
            assert torch.equal(weight, dense.get_submodule(site.name).weight)
        elif level != ABSENT:
            assert torch.equal(weight, weight_of(run, site, level))
            changed += 1
    assert changed > 10


def test_b2_a_winner_with_dropped_sublayers_generates(dropping: Run) -> None:
    model: Any = dropping.best.apply(fresh_model(dropping))
    prompt = torch.tensor([[5, 9, 17, 3]])
    texts = [model.generate(prompt, max_new_tokens=12, do_sample=False, use_cache=cache, pad_token_id=1) for cache in (True, False)]
    assert texts[0].shape == (1, 16)
    assert torch.equal(texts[0], texts[1])
    own: Any = dropping.best.apply()
    assert torch.equal(own.generate(prompt, max_new_tokens=12, do_sample=False, pad_token_id=1), texts[0])
    assert dropping.best._bench.tokenizer.decode(texts[0][0])


def test_b5_calibration_tokens_are_tokens(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("evopress.models.calibrate")  # the package also has the function under that name
    given: list[torch.Tensor] = []
    calibrate = module.calibrate

    def spy(model: Any, sitemap: Any, batches: Iterable[torch.Tensor], wanted: Any) -> Any:
        given.extend(batches)
        return calibrate(model, sitemap, list(given), wanted)

    monkeypatch.setattr(module, "calibrate", spy)
    short = {"searcher": "evolve(generations=1,offspring=2,rungs=1x32)", "baselines": ("uniform",)}
    run = tiny_study.run(tiny, tmp_path, calibration_tokens=251, **short)
    assert sum(batch.numel() for batch in given) == 251
    sets = {role: run.best._bench.tokens(role) for role in ("calibration", "search", "heldout")}
    assert [sum(map(len, made.documents)) for made in sets.values()] == [251, 320, 320]
    rows = sorted(tuple(row) for batch in given for row in batch.tolist())
    assert rows == sorted(sets["calibration"].documents)
    assert sum(len(set(made.origins)) for made in sets.values()) == len(set().union(*(made.origins for made in sets.values())))


# Gates ----------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fitness", ["kl", "perplexity"])
def test_a_broken_stitch_is_found_before_the_search(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fitness: str) -> None:
    put = Stitcher._put

    def broken(self: Stitcher, slot: Slot, weight_RC: torch.Tensor | None) -> None:
        """One matrix keeps its compressed weight when the dense one should come back."""
        if not (weight_RC is None and slot is self._slots["model.layers.1.mlp.down_proj"]):
            put(self, slot, weight_RC)

    monkeypatch.setattr(Stitcher, "_put", broken)
    monkeypatch.setattr(Stitcher, "restore", lambda self: self.set(Profile.of(dict.fromkeys(self._sites, DENSE)), pytest.fail))
    with pytest.raises(NumericalError, match=r"The all-dense profile scores .* kl against the dense model; at most 1e-04 is rounding"):
        tiny_study.run(tiny, tmp_path, fitness=fitness)
    found = tiny_study.contents(tiny_study.url(tmp_path))
    assert not found.steps
    assert len(found.trials) == 1


def test_an_honest_dense_model_scores_zero(whole: Whole) -> None:
    assert whole.run.rows[0].label == "dense"
    assert abs(whole.run.rows[0].kl.mean) < 1e-6


ONLY_UNIFORM = {"methods": ("rtn(bits=3,group=32)",), "budgets": ("size=rtn(bits=3,group=32)",), "baselines": ("uniform",)}


@pytest.mark.parametrize("as_json", [False, True])
def test_require_gain_exits_6_and_keeps_everything(tiny: Tiny, home: Path, evopress_command: Callable[..., Answer], as_json: bool) -> None:
    options = ["--require-gain", *(["--json"] if as_json else [])]
    answer = evopress_command("search", "start", *tiny_study.arguments(tiny, **ONLY_UNIFORM), *options)
    assert answer.code == 6
    message = "The profile of evolve does not beat uniform on held-out documents (+0.0000, p = 1, asked for p < 0.01)."
    if as_json:
        document = json.loads(answer.out)
        assert document["error"] == {
            "code": "quality-gate",
            "message": message,
            "hint": "Search longer, or judge on more text: with few documents no p can be small enough (raise --heldout-tokens).",
        }
        assert [row["label"] for row in document["rows"]] == ["dense", "uniform", "evolve"]
    else:
        assert message in answer.err
        assert "verdict: evolve is not shown to beat uniform" in answer.out
    found = tiny_study.contents(tiny_study.url(home))
    assert {label: row[0] for (_, label), row in found.results.items()} == {"dense": "reference", "uniform": "baseline", "evolve": "winner"}
    with Store.open(tiny_study.url(home)) as store:
        assert store.find_study("tiny").state == "finished"


def test_without_a_uniform_row_no_gain_can_be_claimed(whole: Whole) -> None:
    rows = tuple(replace(row, against_uniform=None) for row in whole.run.rows)
    with pytest.raises(QualityGateFailed, match="no uniform profile to compare with"):
        replace(whole.run, rows=rows).require_gain()


@pytest.mark.parametrize(
    ("difference", "p", "wins"), [(-0.1, 0.001, True), (-0.1, 0.01, False), (-0.1, 0.5, False), (0.1, 0.001, False), (0.0, 1.0, False)]
)
def test_the_gate_and_the_verdict_agree(whole: Whole, difference: float, p: float, wins: bool) -> None:
    planted = Paired(difference, difference - 0.05, difference + 0.05, p, 20)
    run = replace(whole.run, rows=tuple(replace(row, against_uniform=planted) for row in whole.run.rows))
    assert ("evolve beats uniform" in str(run)) == wins
    assert ("evolve is not shown to beat uniform" in str(run)) == (not wins)
    if wins:
        run.require_gain()
    else:
        with pytest.raises(QualityGateFailed):
            run.require_gain()


@pytest.mark.parametrize("label", ["greedy", "knapsack", "random"])
def test_a_winner_that_greedy_or_knapsack_is_better_than_is_no_winner(whole: Whole, label: str) -> None:
    """Random profiles took a search, so one of them may be luckier."""
    rows = {row.label: row for row in whole.run.rows}
    best = rows.pop(whole.run.best.label)
    paired = {best.label: Paired(-0.1, -0.15, -0.05, 0.001, 20), label: Paired(-0.13, -0.2, -0.1, 0.001, 20)}
    run = replace(whole.run, rows=(rows["uniform"], *(replace(best, label=name, against_uniform=own) for name, own in paired.items())))
    assert (f"but {label}, which takes no search, is lower by 0.0300" in str(run)) == (label != "random")
    if label == "random":
        run.require_gain()
    else:
        with pytest.raises(QualityGateFailed, match=rf"worse than that of {label} on held-out documents, by 0\.0300"):
            run.require_gain()


def test_a_search_on_a_handful_of_tokens_is_judged_by_held_out_text(tiny: Tiny, whole: Whole, tmp_path: Path) -> None:
    """The perplexity of 16 tokens says little, so a winner there need not be one: held-out text decides, and the verdict follows it."""
    few = {"calibration_tokens": 16, "search_tokens": 16, "searcher": "evolve(generations=12,offspring=4,rungs=1x16)"}
    verdicts = []
    for seed in range(3):
        run: Run = tiny_study.run(tiny, tmp_path / str(seed), seed=seed, fitness="perplexity", baselines=("uniform",), **few)
        rows = {row.label: row for row in run.rows}
        whole_slice = run.best._bench.texts.whole("heldout")
        with Store.open(run.storage) as store:
            trials = {label: run.best._bench.stored(row.profile, whole_slice, "perplexity").id for label, row in rows.items()}
            found = store.document_values(trials.values())
        (evolve, weights), (uniform, _) = found[trials["evolve"]], found[trials["uniform"]]
        again = paired(evolve, uniform, weights, seed, run.best._bench.tokens("heldout").origins)
        assert run.gain == again
        assert again.n == len(whole_slice.documents) == len(evolve)
        assert again.difference == pytest.approx(rows["evolve"].nll.mean - rows["uniform"].nll.mean)
        wins = again.p < 0.01 and again.difference < 0
        assert (f"verdict: evolve {'beats' if wins else 'is not shown to beat'} uniform: {again.difference:+.4f}") in str(run)
        assert f"p = {again.p:.1e}, asked for p < 0.01)" in str(run)
        verdicts.append(wins)
    assert not all(verdicts), "no search over-fitted its 16 tokens"
    assert "verdict: evolve beats uniform: -" in str(whole.run)


def test_it_says_when_a_searcher_ends_where_it_started(tiny: Tiny, tmp_path: Path) -> None:
    """Greedy and knapsack are computed before every search, so the note needs no such baseline in the table."""
    run = tiny_study.run(tiny, tmp_path, searcher="evolve(generations=0,rungs=1x64)", baselines=("uniform",))
    taken = [name for name in ("greedy", "knapsack") if name in run.remarks["evolve"]]
    assert taken
    assert f"note: evolve: it ended at the profile of {' and '.join(taken)}, found without a search" in str(run)


def test_it_says_what_the_next_questions_take(tiny: Tiny, tmp_path: Path) -> None:
    """Of a rival that had no tokens for its first one, and of the search itself."""
    searcher = "guided(slope_tokens=32,looks=2x32|1x96,local_looks=2x32|1x96,start_tokens=32,probe_tokens=32)"
    keys = {"searcher": searcher, "baselines": ("uniform", "random(candidates=8,rungs=1x64)"), "fresh": True}
    run = tiny_study.run(tiny, tmp_path, **keys, stop_tokens=300)
    spent = run.outcome.totals.tokens
    assert run.remarks["random"] == f"measured nothing: its first question takes 512 tokens, and the search took {spent}"
    wanted = run.outcome.next_tokens
    assert wanted is not None
    assert wanted > 300
    assert f"raise --max-tokens to {wanted} or more" in str(run)
    assert tiny_study.run(tiny, tmp_path, **keys, stop_tokens=wanted).outcome.totals.tokens == wanted
    nothing = tiny_study.run(tiny, tmp_path, **keys, name="nothing", stop_tokens=10)
    assert nothing.outcome.totals.evaluations == 0
    first = f"its stop is smaller than its first question; raise --max-tokens to {nothing.outcome.next_tokens} or more"
    assert first in str(nothing)
    assert "{" not in str(nothing)
