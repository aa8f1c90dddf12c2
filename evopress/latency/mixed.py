"""Profiles of random weights whose levels are just formats: material to time whole models with. Called by parts.py and check.py."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

import torch

from evopress.api import ABSENT, DENSE, DROP, Cost, Level, Profile, Site, Variant
from evopress.api.formats import fits_format
from evopress.latency.bench import split_cell
from evopress.latency.sample import random_variant
from evopress.latency.table import Cell, LatencyTable

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


def linear_seconds(profile: Profile, sites: Sequence[Site], table: LatencyTable, tokens: int) -> Mapping[str, float]:
    """Seconds by the table of every linear site of such a profile that runs. Raises NotFound for a missing cell."""
    found = {}
    for site in sites:
        level = profile[site.name]
        if site.kind == "linear" and level != ABSENT:
            format = "dense" if level == DENSE else str(level.option("format"))
            found[site.name] = table.best(Cell(format, site.shape, tokens)).median
    return found
