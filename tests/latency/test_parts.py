"""Parts of a model: subtracted from numbers worked out by hand, and taken from a whole tiny model on a planted clock."""

from __future__ import annotations

import pytest
from planted_model import DECODE, FORMATS, PARTS, PREFILL, PlantedModel

from evopress.api import NotFound, Site
from evopress.latency.parts import measure_parts, subtract

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


@pytest.mark.parametrize("workload", [DECODE, PREFILL], ids=str)
def test_parts_of_a_whole_model_on_a_planted_clock(workload):
    planted = PlantedModel(workload)
    parts = measure_parts(planted.model, planted.sites, FORMATS, planted.table, planted.pick, workload, repeats=3, clock=planted)
    assert {kind: timing.samples for kind, timing in parts.items()} == {kind: (seconds,) * 3 for kind, seconds in PARTS.items()}


def test_a_table_without_a_cell_is_an_error():
    planted = PlantedModel()
    with pytest.raises(NotFound, match="int2-g16 of 32x32 at 2 tokens was never timed on a planted machine"):
        measure_parts(planted.model, planted.sites, ("int2-g16",), planted.table, planted.pick, DECODE, repeats=1, clock=planted)
