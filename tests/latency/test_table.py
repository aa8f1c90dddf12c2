"""The LatencyTable: the fastest kernel of a cell, and what it does not hold."""

from __future__ import annotations

import pytest
from planted_model import DECODE, PREFILL, measured, table

from evopress.api import NotFound
from evopress.latency.table import Cell, LatencyTable, Part, cell_format

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
    parts = [Part("digest", "mlp", DECODE), Part("digest", "mlp", PREFILL), Part("another", "mlp", DECODE)]
    assert known.missing(asked, parts) == ([Cell("dense", (32, 32), 8), CELL, Cell("int9-g16", (32, 32), 2)], parts[1:])
    assert known.missing([], []) == ([], [])
    factors = [Part("digest", "int4-g16", DECODE), Part("digest", "int4-g16", PREFILL)]
    assert known.missing([], factors) == ([], factors[1:])
    assert LatencyTable({CELL: ()}).missing([CELL], []) == ([CELL], [])


@pytest.mark.parametrize(
    ("format", "density", "name"),
    [
        ("bitmask", 0.5, "bitmask@0.5"), ("bitmask", 1 / 3, "bitmask@0.3333"), ("bitmask", 1.0, "bitmask@1"), ("bitmask", 0.0, "bitmask@0"),
        ("int4-g64", 1.0, "int4-g64"), ("dense", 0.5, "dense"), ("sparse-2:4", 0.5, "sparse-2:4"),
    ],
)  # fmt: skip
def test_only_a_bitmask_is_named_with_its_share(format, density, name):
    assert cell_format(format, density) == name


def test_within_a_model_a_cell_is_multiplied_by_the_factor_of_its_format():
    cell = Cell("int4-g16", (32, 32), 2)
    known = LatencyTable(table().cells, {}, {Part("digest", "int4-g16", DECODE): 1.5}, "this machine")
    assert known.seconds(cell, "digest", DECODE) == 1.5 * known.best(cell).median
    for model, workload in (("another", DECODE), ("digest", PREFILL)):
        with pytest.raises(NotFound) as caught:
            known.seconds(cell, model, workload)
        assert caught.value.message == f"int4-g16 was never timed within the whole model for {workload} on this machine."
        assert f"evopress kernels bench --workload {workload} --format int4-g16" in caught.value.hint
