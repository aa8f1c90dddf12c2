"""Parts of a model and formats within it: from numbers worked out by hand, and from a whole tiny model on a planted clock."""

from __future__ import annotations

import pytest
from planted_model import DECODE, FORMATS, PARTS, PREFILL, PlantedModel, table

from evopress.api import DENSE, NotFound, Site
from evopress.latency.mixed import cells_of, run_profiles
from evopress.latency.parts import part_profiles, parts_of, subtract
from evopress.latency.table import Cell

TREE = [
    site
    for depth in range(2)
    for site in (
        Site(f"{depth}", "block", (0, 0), depth, None),
        Site(f"{depth}.a", "attention", (0, 0), depth, f"{depth}"),
        Site(f"{depth}.a.q", "linear", (8, 8), depth, f"{depth}.a"),
        Site(f"{depth}.m", "mlp", (0, 0), depth, f"{depth}"),
        Site(f"{depth}.m.up", "linear", (8, 8), depth, f"{depth}.m"),
        Site(f"{depth}.gate", "linear", (8, 8), depth, f"{depth}"),
    )
]
LINEAR = {"0.a.q": 1.0, "1.a.q": 2.0, "0.m.up": 4.0, "1.m.up": 8.0, "0.gate": 16.0, "1.gate": 32.0}


def test_parts_by_hand():
    """Attention takes 10 a site, mlp 100, a block 1000 beside its own matrix, the rest 7."""
    model, attention, mlp, block = 7.0, 2 * 10.0 + 3, 2 * 100.0 + 12, 2 * 1000.0 + 48
    whole = model + attention + mlp + block
    passes = {"": [whole], "block": [model], "attention": [whole - attention], "mlp": [whole - mlp]}
    parts = subtract(TREE, passes, LINEAR)
    assert {kind: timing.samples for kind, timing in parts.items()} == {
        "attention": (10.0,),
        "mlp": (100.0,),
        "block": (1000.0,),
        "model": (7.0,),
    }


def test_differences_are_of_one_round_and_never_below_zero():
    passes = {"": [100.0, 200.0, 110.0], "attention": [90.0, 190.0, 120.0], "block": [20.0, 30.0, 10.0]}
    found = subtract([site for site in TREE if not site.name.endswith(("m", "up", "gate"))], passes, {"0.a.q": 1.0, "1.a.q": 3.0})
    assert found["attention"].samples == (3.0, 3.0, 0.0)
    assert found["block"].samples == (35.0, 80.0, 48.0)  # (80 - 4 - 6) / 2, (170 - 4 - 6) / 2, (100 - 4 - 0) / 2
    assert found["model"].samples == (20.0, 30.0, 10.0)
    slow = subtract(TREE, {"": [1.0], "block": [1.0], "attention": [1.0], "mlp": [1.0]}, LINEAR)
    assert {kind: timing.median for kind, timing in slow.items()} == {"attention": 0.0, "mlp": 0.0, "block": 0.0, "model": 1.0}


def test_rounds_of_unequal_number_are_refused():
    with pytest.raises(ValueError):
        subtract(TREE, {"": [1.0, 2.0], "block": [1.0], "attention": [1.0], "mlp": [1.0]}, LINEAR)


def test_the_models_that_are_run():
    sites = PlantedModel().sites
    profiles = part_profiles(sites, (*FORMATS, "int4-g7"))
    assert list(profiles) == ["everything", "block", "attention", "mlp", *FORMATS]  # no site has columns in sevens
    for format in FORMATS:
        assert {cell.format for cell in cells_of(profiles[format], sites, 1).values()} == {format, "dense"} - (
            {"dense"} if format not in ("dense", "int8-g32") else set()
        )
        assert all(profiles[format][site.name] == DENSE for site in sites if site.kind != "linear")
    assert list(part_profiles(sites, ("int4-g16",))) == ["everything", "block", "attention", "mlp", "dense", "int4-g16"]


def taken(planted, workload, formats=FORMATS, repeats=3):
    """Parts, and formats within the model, of a planted one."""
    profiles = part_profiles(planted.sites, formats)
    passes = run_profiles(planted.model, planted.sites, profiles, planted.pick, workload, 0, repeats, planted)
    return parts_of(planted.sites, profiles, passes, planted.table, workload)


@pytest.mark.parametrize("workload", [DECODE, PREFILL], ids=str)
def test_parts_of_a_whole_model_on_a_planted_clock(workload):
    parts, within = taken(PlantedModel(workload), workload)
    assert {kind: timing.samples for kind, timing in parts.items()} == {kind: (seconds,) * 3 for kind, seconds in PARTS.items()}
    assert {format: one.taken.samples for format, one in within.items()} == {format: (one.cells,) * 3 for format, one in within.items()}
    assert list(within) == list(FORMATS)


def test_formats_that_take_a_multiple_of_their_cells_within_the_model():
    """The mix takes what its cells do not say, and parts take that; so all uniform models still sum up to what they took."""
    factors = {"dense": 1.25, "int4-g16": 0.75, "int8-g32": 1.5}
    planted = PlantedModel(factors=factors)
    parts, within = taken(planted, DECODE)
    profiles = part_profiles(planted.sites, FORMATS)
    rest = parts["model"].median + sum(parts[site.kind].median for site in planted.sites if site.kind != "linear")
    for format in FORMATS:
        own = [within[cell.format] for cell in planted.cells(profiles[format])]
        cells = [planted.table.best(cell).median for cell in planted.cells(profiles[format])]
        summed = sum(one.taken.median / one.cells * seconds for one, seconds in zip(own, cells, strict=True))
        assert rest + summed == pytest.approx(planted.seconds(profiles[format]))


def test_one_format_that_takes_a_multiple_is_found_to_do_so():
    """Where the mix holds nothing but dense layers, parts are exact, and the factor of the other is what is planted."""
    planted = PlantedModel(factors={"int4-g16": 1.5, "int8-g32": 0.5})
    profiles = part_profiles(planted.sites, FORMATS)
    profiles |= {name: part_profiles(planted.sites, ("dense",))[name] for name in ("everything", "block", "attention", "mlp")}
    passes = {name: [planted.seconds(profile)] * 3 for name, profile in profiles.items()}
    parts, within = parts_of(planted.sites, profiles, passes, planted.table, DECODE)
    assert {kind: timing.median for kind, timing in parts.items()} == PARTS
    found = {format: one.taken.median / one.cells for format, one in within.items()}
    assert found == pytest.approx({"dense": 1.0, "int4-g16": 1.5, "int8-g32": 0.5, "bitmask@0.5": 1.0})
    fitting = [site.shape for site in planted.sites if site.kind == "linear" and site.shape[1] == 32]
    assert within["int8-g32"].cells == sum(table().best(Cell("int8-g32", shape, DECODE.tokens)).median for shape in fitting)


def test_a_format_takes_no_less_than_nothing():
    planted = PlantedModel(factors={"int4-g16": -9.0})
    assert taken(planted, DECODE)[1]["int4-g16"].taken.median == 0.0


def test_a_table_without_a_cell_is_an_error():
    planted = PlantedModel()
    profiles = part_profiles(planted.sites, ("int2-g16",))
    with pytest.raises(NotFound, match="int2-g16 of 32x32 at 2 tokens was never timed on a planted machine"):
        parts_of(planted.sites, profiles, {name: [1.0] for name in profiles}, planted.table, DECODE)
