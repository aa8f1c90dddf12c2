"""Slopes against central differences: weights moved a little towards a level, outputs faded a little."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from test_prefix import Reads, decode
from tiny import build
from torch import Tensor, nn

from evopress.api import DENSE, DROP, Differentiable, Fitness, Level, Profile, Site
from evopress.fitness import KL, Perplexity
from evopress.models.calls import Call, Returns
from evopress.models.sites import find_sites
from evopress.models.slopes import slopes
from evopress.models.stitch import Stitcher
from evopress.models.weights import module_of, slot_of

A, B = Level.of("a", bits=3), Level.of("a", bits=2)
TEXTS = {index: torch.randint(2, 60, (length,), generator=torch.Generator().manual_seed(index)) for index, length in enumerate((9, 12, 9))}
STEP = 1e-3


def ladder(site: Site) -> tuple[Level, ...]:
    return (B, A, DENSE) if site.kind == "linear" else (DROP, DENSE)


def prepared(fitness: type[Fitness], family: str) -> tuple[nn.Module, tuple[Site, ...], Stitcher, Fitness]:
    """A model in double precision at a mixed profile: the first MLP dropped, every other matrix at level A."""
    model = build(family)
    if family != "mixtral":  # torch's grouped product of experts knows no double precision
        model = model.double()
    sites = find_sites(model).sites
    scorer = fitness()
    scorer.prepare(model, TEXTS)
    stitcher = Stitcher(model, sites)
    levels: dict[str, Level] = {}
    for number, site in enumerate(sites):
        if site.parent is not None and levels[site.parent] in (DROP, Level.of("absent")):
            levels[site.name] = Level.of("absent")
        elif site.kind == "mlp" and site.depth == 0:
            levels[site.name] = DROP
        else:
            levels[site.name] = A if site.kind == "linear" and number % 2 else DENSE
    stitcher.set(Profile.of(levels), decode)
    return model, sites, stitcher, scorer


def loss(scorer: Fitness, model: nn.Module) -> float:
    values, weights = scorer.score(model, list(TEXTS.items()))
    return sum(v * w for v, w in zip(values, weights, strict=True)) / sum(weights)


def central(move: Callable[[float], None], value: Callable[[], float]) -> float:
    found = []
    for step in (STEP, -STEP):
        move(step)
        found.append(value())
    move(0.0)
    return (found[0] - found[1]) / (2 * STEP)


@pytest.mark.parametrize(("fitness", "family"), [(KL, "llama"), (Perplexity, "llama_tied"), (KL, "gpt2"), (KL, "gemma2"), (KL, "mixtral")])
def test_slopes_are_derivatives(fitness: type[Fitness], family: str) -> None:
    model, sites, stitcher, scorer = prepared(fitness, family)
    assert isinstance(scorer, Differentiable)
    documents = list(TEXTS.items())
    answer: list[tuple[list[float], list[int]]] = []
    found = slopes(model, stitcher, sites, [ladder(site) for site in sites], lambda: answer.append(scorer.backward(model, documents)))
    values, weights = scorer.score(model, documents)
    assert answer[0][0] == pytest.approx(values, rel=2e-4, abs=1e-6)
    assert answer[0][1] == weights
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in model.parameters())
    now = dict(stitcher.profile)
    checked = 0
    for site, slope in zip(sites, found, strict=True):
        if now[site.name] == (DENSE if site.kind == "linear" else DROP) or now[site.name] == Level.of("absent"):
            assert slope == 0.0
            continue
        expected = _towards_dense(model, stitcher, site, scorer) if site.kind == "linear" else _fading(model, site, scorer)
        assert slope == pytest.approx(expected, rel=5e-2, abs=1e-4 if family != "mixtral" else 2e-3), site.name
        checked += 1
    assert checked > 10


def _towards_dense(model: nn.Module, stitcher: Stitcher, site: Site, scorer: Fitness) -> float:
    slot = slot_of(model, site)
    kept: Tensor = slot.parameter.data
    here = slot.view(kept).clone()
    step_RC = stitcher.dense(site).double() - here

    def move(share: float) -> None:
        moved = kept.clone()
        slot.view(moved).copy_(here + share * step_RC)
        slot.parameter.data = moved if share else kept

    return central(move, lambda: loss(scorer, model))


def _fading(model: nn.Module, site: Site, scorer: Fitness) -> float:
    share = [0.0]

    def fade(_: nn.Module, args: tuple[object, ...], kwargs: dict[str, object], output: object) -> object:
        out = Returns.first(output)
        instead = Call(args, kwargs).hidden if site.kind == "block" else torch.zeros_like(out)
        return Returns.of(output).wrap(out + share[0] * (instead - out))

    handle = module_of(model, site).register_forward_hook(fade, with_kwargs=True)

    def move(value: float) -> None:
        share[0] = value

    found = central(move, lambda: loss(scorer, model))
    handle.remove()
    return found


def test_a_space_of_drops_alone_has_slopes_too() -> None:
    model = build("llama")
    sites = find_sites(model).sites
    scorer = KL()
    scorer.prepare(model, dict(TEXTS.items()))
    stitcher = Stitcher(model, sites)
    dropped = Profile.of(
        {s.name: DROP if s.kind == "mlp" and s.depth == 1 else Level.of("absent") if ".1.mlp." in s.name else DENSE for s in sites}
    )
    stitcher.set(dropped, decode)
    own = [(DROP, DENSE) if site.kind in ("attention", "mlp") else (DENSE,) for site in sites]
    found = slopes(model, stitcher, sites, own, lambda: scorer.backward(model, list(TEXTS.items())))
    told = {site.name: slope for site, slope in zip(sites, found, strict=True) if site.kind in ("attention", "mlp")}
    assert told.pop("model.layers.1.mlp") == 0.0
    assert all(change != 0.0 for change in told.values())


def test_a_dense_model_has_no_slopes_and_no_error() -> None:
    model = build("llama")
    sites = find_sites(model).sites
    scorer = KL()
    scorer.prepare(model, TEXTS)
    found = slopes(model, Stitcher(model, sites), sites, [(DENSE,)] * len(sites), lambda: scorer.backward(model, list(TEXTS.items())))
    assert found == (0.0,) * len(sites)


def test_no_site_makes_the_host_read_a_value() -> None:
    """As many reads as with nothing to take: those of the forward passes, in transformers."""
    model, sites, stitcher, scorer = prepared(KL, "llama")
    assert isinstance(scorer, Differentiable)
    counts = []
    for levels in ([ladder(site) for site in sites], [(DENSE,)] * len(sites)):
        with Reads() as reads:
            found = slopes(model, stitcher, sites, levels, lambda: scorer.backward(model, list(TEXTS.items())))
        counts.append(reads.count)
        assert any(found) == (len(counts) == 1)
        stitcher.restore()
    assert counts[0] == counts[1]
