"""Profiles of random formats, and the random weights behind them."""

from __future__ import annotations

import random

import pytest
from planted_model import DECODE, FORMATS, SHAPES, PlantedModel
from tiny import build

from evopress.api import ABSENT, DENSE, DROP, Site
from evopress.latency.mixed import RandomVariants, cells_of, level_of, random_profile, run_profiles, uniform, without
from evopress.latency.table import Cell, cell_format
from evopress.models.sites import find_sites

SITES = find_sites(build("llama", num_hidden_layers=4)).sites
LINEAR = [site for site in SITES if site.kind == "linear"]


def formats_of(profile):
    return {site.name: "dense" if profile[site.name] == DENSE else str(profile[site.name].option("format")) for site in LINEAR
            if profile[site.name] != ABSENT}  # fmt: skip


def test_levels_stand_for_formats():
    assert level_of("dense") == DENSE
    assert str(level_of("int4-g64").option("format")) == "int4-g64"
    assert {site.shape for site in LINEAR} == set(SHAPES)


def test_a_profile_keeps_to_the_tree_and_to_formats_that_fit():
    seen = set()
    for seed in range(60):
        profile = random_profile(SITES, FORMATS, random.Random(seed))
        assert profile == random_profile(SITES, FORMATS, random.Random(seed))
        for site in SITES:
            hidden = site.parent is not None and profile[site.parent] in (DROP, ABSENT)
            assert (profile[site.name] == ABSENT) == hidden
        for name, format in formats_of(profile).items():
            site = next(site for site in LINEAR if site.name == name)
            seen.add((format, site.shape))
        seen |= {(site.kind, profile[site.name]) for site in SITES if site.kind != "linear"}
    fitting = {(format, shape) for format in FORMATS for shape in SHAPES if format != "int8-g32" or shape[1] == 32}
    kinds = {("block", DENSE), ("block", DROP), *((kind, level) for kind in ("attention", "mlp") for level in (DENSE, DROP, ABSENT))}
    assert seen == fitting | kinds


def test_a_site_that_no_format_fits_stays_dense():
    site = Site("x", "linear", (3, 7), 0, None)
    assert random_profile([site], ["int4-g16"], random.Random(0))["x"] == DENSE
    assert without([site], ["int4-g16"], "")["x"] == DENSE


@pytest.mark.parametrize("kind", ["", "attention", "mlp", "block"])
def test_without_drops_all_of_a_kind_and_leaves_the_formats_of_the_others(kind):
    everything, profile = without(SITES, FORMATS, ""), without(SITES, FORMATS, kind)
    for site in SITES:
        if site.kind != "linear" and profile[site.name] != ABSENT:
            assert profile[site.name] == (DROP if site.kind == kind else DENSE)
    left = formats_of(profile)
    assert left.items() <= formats_of(everything).items()
    assert len(left) == {"": 28, "attention": 12, "mlp": 16, "block": 0}[kind]
    assert set(formats_of(everything).values()) == set(FORMATS)


def test_random_variants_are_kept_and_named_as_the_table_names_them():
    variants, site = RandomVariants(0), Site("x", "linear", (64, 48), 0, None)
    for format in ("int4-g16", "bitmask@0.5", "bitmask@0.25", "lowrank-r3"):
        variant = variants(site, level_of(format))
        assert variants(site, level_of(format)) is variant
        assert cell_format(variant.format, variant.cost.params / site.weights) == format
    assert RandomVariants(0)(site, level_of("int4-g16")).tensors["codes"].equal(variants(site, level_of("int4-g16")).tensors["codes"])


def test_cells_are_of_what_runs():
    sites = [Site("b", "block", (0, 0), 0, None), Site("b.x", "linear", (32, 48), 0, "b"), Site("b.y", "linear", (48, 32), 0, "b")]
    assert cells_of(without(sites, ["dense", "int4-g16"], ""), sites, 2) == {
        "b.x": Cell("int4-g16", (32, 48), 2), "b.y": Cell("dense", (48, 32), 2),
    }  # fmt: skip
    assert cells_of(without(sites, ["dense"], "block"), sites, 2) == {}
    assert cells_of(uniform(sites, "int8-g32"), sites, 3) == {"b.x": Cell("dense", (32, 48), 3), "b.y": Cell("int8-g32", (48, 32), 3)}


def test_profiles_run_in_turns_with_each_other():
    planted = PlantedModel()
    profiles = {"mix": random_profile(planted.sites, FORMATS, random.Random(1)), "dense": uniform(planted.sites, "dense")}
    found = run_profiles(planted.model, planted.sites, profiles, planted.pick, DECODE, 5, 3, planted)
    assert found == {name: [planted.seconds(profile)] * 3 for name, profile in profiles.items()}
