"""Profiles of random weights whose levels are just formats, and their times as whole models. Called by `evopress kernels bench`."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from evopress.api import ABSENT, DENSE, DROP, Cost, Level, Profile, Site, Variant
from evopress.api.formats import fits_format
from evopress.api.workload import Workload
from evopress.latency.bench import split_cell
from evopress.latency.clock import Clock
from evopress.latency.runtime import Pick, build, workload_seconds
from evopress.latency.sample import random_variant
from evopress.latency.table import Cell

DROPPED = 0.1
"""Share of the sublayers and blocks that a random profile drops."""


def level_of(format: str) -> Level:
    """The level that stands for a format as a table names it."""
    return DENSE if format == "dense" else Level.of("random", format=format)


class RandomVariants:
    """Random weights of the formats that levels name; the same object for the same site and level."""

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)
        self._known: dict[tuple[str, Level], Variant] = {}

    def __call__(self, site: Site, level: Level) -> Variant:
        """The variant of a linear site."""
        if (site.name, level) not in self._known:
            format, density = split_cell(str(level.option("format")))
            made = random_variant(format, site.shape, self._generator, density)
            # A random mask keeps its share up to a few weights; the table names the share it was asked for.
            cost = Cost(made.cost.bytes, round(density * site.weights)) if format == "bitmask" else made.cost
            self._known[site.name, level] = Variant(site, level, made.format, made.tensors, cost)
        return self._known[site.name, level]


def random_profile(sites: Sequence[Site], formats: Sequence[str], rng: random.Random) -> Profile:
    """A format that fits drawn for every linear site, and every sublayer and block dropped with one chance."""
    levels: dict[str, Level] = {}
    for site in sites:
        if site.parent is not None and levels[site.parent] in (DROP, ABSENT):
            levels[site.name] = ABSENT
        elif site.kind != "linear":
            levels[site.name] = DROP if rng.random() < DROPPED else DENSE
        else:
            levels[site.name] = level_of(rng.choice(fitting(formats, site)))
    return Profile.of(levels)


def uniform(sites: Sequence[Site], format: str) -> Profile:
    """One format wherever it fits, nothing dropped."""
    return without(sites, [format], "")


def without(sites: Sequence[Site], formats: Sequence[str], kind: str) -> Profile:
    """The formats that fit in turn over the linear sites, and every sublayer of a kind dropped with all below it."""
    levels: dict[str, Level] = {}
    for number, site in enumerate(sites):
        if site.parent is not None and levels[site.parent] in (DROP, ABSENT):
            levels[site.name] = ABSENT
        elif site.kind == "linear":
            own = fitting(formats, site)
            levels[site.name] = level_of(own[number % len(own)])
        else:
            levels[site.name] = DROP if site.kind == kind else DENSE
    return Profile.of(levels)


def fitting(formats: Sequence[str], site: Site) -> list[str]:
    """Those of the formats that a linear site can be written in; dense where there is none."""
    return [text for text in formats if fits_format(split_cell(text)[0], site.shape)] or ["dense"]


def cells_of(profile: Profile, sites: Sequence[Site], tokens: int) -> Mapping[str, Cell]:
    """By name of every linear site that runs, what such a profile multiplies there."""
    found = {}
    for site in sites:
        level = profile[site.name]
        if site.kind == "linear" and level != ABSENT:
            found[site.name] = Cell("dense" if level == DENSE else str(level.option("format")), site.shape, tokens)
    return found


def run_profiles(
    model: nn.Module, sites: Sequence[Site], profiles: Mapping[str, Profile], pick: Pick, workload: Workload, seed: int = 0,
    repeats: int | None = None, clock: Clock = time.perf_counter,
) -> dict[str, list[float]]:  # fmt: skip
    """Seconds of passes of the workload with such profiles, all in turns with each other."""
    variants = RandomVariants(seed)
    models = {name: build(model, sites, profile, variants, pick) for name, profile in profiles.items()}
    return workload_seconds(models, workload, repeats, clock)
