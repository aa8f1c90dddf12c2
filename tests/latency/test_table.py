"""The LatencyTable: the fastest kernel of a cell, and what it does not hold."""

from __future__ import annotations

from dataclasses import replace

import pytest
from planted_model import DECODE, PARTS, PREFILL, factors, measured, table

from evopress.api import NotFound
from evopress.latency.table import Cell, Factor, LatencyTable, Part, cell_format

CELL = Cell("int4-g64", (8, 64), 1)


@pytest.mark.parametrize("kernels", [("b", "a"), ("a", "b")])
def test_the_best_is_the_fastest_and_then_the_first_by_name(kernels):
    found = LatencyTable({CELL: [measured(2.0, "slow"), *(measured(1.0, name) for name in kernels)]})
    assert found.best(CELL) == measured(1.0, "a")


@pytest.mark.parametrize("cells", [{}, {CELL: ()}, {Cell("int4-g64", (64, 8), 1): [measured(1.0)]}])
def test_a_missing_cell_is_an_error_that_names_it_and_the_machine(cells):
    with pytest.raises(NotFound) as caught:
        LatencyTable(cells, about="this machine").best(CELL)
    assert caught.value.message == "int4-g64 of 8x64 at 1 tokens was never timed on this machine."
    assert "evopress kernels bench --workload decode --format int4-g64" in caught.value.hint
    assert caught.value.exit_code == 5


def test_missing_names_each_cell_once_in_order_and_the_parts_of_another_workload():
    known = table()
    asked = [Cell("int4-g16", (32, 32), 2), Cell("int9-g16", (32, 32), 2), CELL, CELL, Cell("dense", (32, 32), 8)]
    assert known.missing(asked, ["mlp", "gate"], "digest", DECODE) == (
        [Cell("dense", (32, 32), 8), CELL, Cell("int9-g16", (32, 32), 2)], ["gate"],
    )  # fmt: skip
    for model, workload in (("digest", PREFILL), ("another", DECODE)):
        assert known.missing(asked[:1], ["mlp"], model, workload) == ([], ["mlp", "int4-g16"])
    assert known.missing([], [], "digest", DECODE) == ([], [])
    assert LatencyTable({CELL: ()}).missing([CELL], [], "digest", DECODE) == ([CELL], [])


@pytest.mark.parametrize(
    ("format", "density", "name"),
    [
        ("bitmask", 0.5, "bitmask@0.5"), ("bitmask", 1 / 3, "bitmask@0.3333"), ("bitmask", 1.0, "bitmask@1"), ("bitmask", 0.0, "bitmask@0"),
        ("int4-g64", 1.0, "int4-g64"), ("dense", 0.5, "dense"), ("sparse-2:4", 0.5, "sparse-2:4"),
    ],
)  # fmt: skip
def test_only_a_bitmask_is_named_with_its_share(format, density, name):
    assert cell_format(format, density) == name


WITHIN = Cell("int4-g16", (32, 32), 2)


def test_within_a_model_a_cell_is_multiplied_by_the_factor_of_its_format():
    known = replace(table(), factors=factors({"int4-g16": 1.5}))
    assert known.seconds(WITHIN, "digest", DECODE) == 1.5 * known.best(WITHIN).median
    for model, workload in (("another", DECODE), ("digest", PREFILL)):
        with pytest.raises(NotFound) as caught:
            known.seconds(WITHIN, model, workload)
        what = f"int4-g16 with planted was never timed within the whole model for {workload} on a planted machine."
        assert caught.value.message == what
        assert f"evopress kernels bench --workload {workload} --format int4-g16" in caught.value.hint


@pytest.mark.parametrize(
    "changed",
    [
        factors({"int4-g16": 1.5}, kernel="slow"),
        {Part("digest", "int4-g16", DECODE): Factor(1.5, {(32, 32): ("planted", "another version")})},
        {Part("digest", "int4-g16", DECODE): Factor(1.5, {(48, 32): ("planted", "")})},
    ],
)
def test_a_factor_counts_for_the_kernel_that_ran_within_the_model_alone(changed):
    known = replace(table(), factors=changed)
    assert known.missing([WITHIN], [], "digest", DECODE) == ([], ["int4-g16"])
    with pytest.raises(NotFound, match="int4-g16 with planted was never timed within the whole model"):
        known.seconds(WITHIN, "digest", DECODE)


def test_a_named_kernel_has_its_own_seconds():
    known = replace(table(), factors=factors({"int4-g16": 2.0}, kernel="slow"))
    assert known.seconds(WITHIN, "digest", DECODE, "slow") == 2 * (known.best(WITHIN).median + 100)
    with pytest.raises(NotFound, match="int4-g16 of 32x32 at 2 tokens was never timed with other on a planted machine"):
        known.seconds(WITHIN, "digest", DECODE, "other")


def test_a_sum_is_of_the_model_its_parts_and_its_cells():
    known = table()
    cells = [(WITHIN, None), (WITHIN, "planted"), (Cell("dense", (32, 32), 2), None)]
    expected = PARTS["model"] + 2 * PARTS["block"] + 2 * known.best(WITHIN).median + known.best(cells[2][0]).median
    assert known.sum(["block", "block"], cells, "digest", DECODE) == expected
    with pytest.raises(NotFound, match="gate"):
        known.sum(["gate"], [], "digest", DECODE)
