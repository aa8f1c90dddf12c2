"""Planted overfits: levels that are perfect on the words of 64 tokens and wrong on all others. The held-out gate must stop them.

As happened to EvoPress with little text: the search, or the layer errors of the calibration, see a gain that is not there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import pytest
import tiny_study
import torch
from evopress_rtn import Rtn
from safetensors.torch import load_file
from tiny_study import Tiny

from evopress.api import Level, QualityGateFailed, Site, Statistics, Variant
from evopress.api.trial import weighted_mean
from evopress.data.tokens import Role
from evopress.events import silent
from evopress.hooks.registry import Registry
from evopress.plan import make_plan
from evopress.texts import Texts

TOKENS = 64
NOISE = 0.05


@dataclass(frozen=True)
class Parrot(Rtn):
    """8 bits, twice: whole with weak noise on what the first block reads, else without noise but deaf to all words it never heard."""

    name: ClassVar[str] = "parrot"
    heard: ClassVar[torch.Tensor]
    """Their embeddings, one a row."""

    bits: int | tuple[int, ...] = 8
    group: int = 32

    def levels(self, site: Site) -> Sequence[Level]:
        """Two of equal cost."""
        return [Level.of(self.name, bits=8, group=self.group, whole=whole) for whole in (0, 1)]

    def compress(self, site: Site, weight: torch.Tensor, stats: Statistics, levels: Sequence[Level]) -> Iterator[Variant]:
        """The first block reads bare words, so that a projection on their span is deafness to the rest."""
        inputs = site.depth == 0 and site.role in ("q_proj", "k_proj", "v_proj")
        for level in levels:
            bent = weight
            if inputs and not level.option("whole"):
                bent = weight @ torch.linalg.pinv(self.heard) @ self.heard
            elif inputs:
                noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
                bent = weight + NOISE * weight.std() * noise
            (plain,) = Rtn(bits=8, group=self.group).levels(site)
            (variant,) = Rtn(bits=8, group=self.group).compress(site, bent, stats, [plain])
            yield replace(variant, level=level)


Keys = dict[str, object]


@pytest.fixture
def parrot(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> Callable[[Role, str], Keys]:
    """Makes the keys of a study with the method `parrot`, which a registry now knows and which has heard 64 tokens of one role."""
    known = Registry.load()
    classes = {kind: dict(found) for kind, found in known.classes.items()}
    classes["method"]["parrot"] = Parrot
    monkeypatch.setattr(Registry, "load", staticmethod(lambda *_: Registry(classes, known.plugins)))

    def make(role: Role, searcher: str) -> Keys:
        keys: Keys = {
            "methods": ("parrot",), "budgets": ("size=parrot(bits=8,group=32,whole=1)",), "baselines": ("uniform",),
            "searcher": searcher, f"{role}_tokens": TOKENS, "heldout_tokens": 480,
        }  # fmt: skip
        plan = make_plan(tiny_study.study(tiny, **keys), Registry.load(), tiny.model.parent)
        words = sorted({token for document in Texts(plan, silent).tokens(role).documents for token in document})
        embeddings = load_file(tiny.model / "model.safetensors")["model.embed_tokens.weight"]
        monkeypatch.setattr(Parrot, "heard", embeddings[words], raising=False)
        return keys

    return make


def test_the_gate_stops_a_winner_of_64_search_tokens(tiny: Tiny, tmp_path: Path, parrot: Callable[[Role, str], Keys]) -> None:
    run = tiny_study.run(tiny, tmp_path, **parrot("search", f"evolve(generations=20,offspring=8,rungs=1x{TOKENS})"))
    found = tiny_study.contents(tiny_study.url(tmp_path))
    searched = [weighted_mean(*found.trials[key][:2]) for _, (_, _, key) in sorted(found.steps.items())]
    assert min(searched) < 0.5 * searched[0], "the search saw no gain, so there is nothing for a gate to stop"
    assert run.gain is not None
    assert run.gain.difference > 0
    with pytest.raises(QualityGateFailed, match="evolve does not beat uniform on held-out documents"):
        run.require_gain()


GUIDED = "guided(slope_tokens=64,looks=4x64|1x160,local_looks=4x64|1x160,start_tokens=64,probe_tokens=32,rounds=5)"


def test_the_gate_stops_an_answer_of_64_calibration_tokens_and_guided_does_not_take_it(
    tiny: Tiny, tmp_path: Path, parrot: Callable[[Role, str], Keys]
) -> None:
    """Layer errors are of the calibration: by them deafness is better than noise. A search measures, and sees that it is not."""
    blind = tiny_study.run(tiny, tmp_path, name="blind", **parrot("calibration", "knapsack"))
    chosen = {str(level) for _, level in blind.best.profile if "whole=0" in str(level)}
    assert chosen, "the layer errors saw no gain, so there is nothing for a gate to stop"
    assert blind.gain is not None
    assert blind.gain.difference > 0
    with pytest.raises(QualityGateFailed, match="knapsack does not beat uniform on held-out documents"):
        blind.require_gain()
    seeing = tiny_study.run(tiny, tmp_path, name="seeing", **parrot("calibration", GUIDED))
    assert seeing.gain is not None
    assert seeing.gain.difference <= 0
