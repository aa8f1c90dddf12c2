"""GPTQ against a float64 brute force that forms every inverse explicitly; act-order; published ordering; refusals."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from evopress_gptq import Gptq
from evopress_gptq.solver import quantise
from evopress_rtn import Rtn
from torch import Tensor

from evopress.api import Level, NumericalError, Site, Statistics, UsageError, Variant
from evopress.api.formats import decode
from evopress.testing.methods import layer_error


def _case(rows: int, columns: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Random weight and correlated second moment whose columns differ a lot in size, one of them dead."""
    rng = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=rng, dtype=torch.float64)
    mixing = torch.randn(columns, columns, generator=rng, dtype=torch.float64)
    sizes = torch.rand(columns, generator=rng, dtype=torch.float64) * 3 + 0.1
    inputs = torch.randn(4 * columns, columns, generator=rng, dtype=torch.float64) @ mixing * sizes
    inputs[:, columns // 2] = 0
    return weight, inputs.T @ inputs / len(inputs)


def _grid(values: Sequence[float], bits: int) -> tuple[float, int]:
    low, high = min(*values, 0.0), max(*values, 0.0)
    scale = float(torch.tensor((high - low) / (2**bits - 1), dtype=torch.float64).half()) if high > low else 1.0
    return scale, min(max(round(-low / scale), 0), 2**bits - 1)


def _brute_force(weight: Tensor, moment: Tensor, bits: int, group: int, damp: float, act_order: bool) -> Tensor:
    """Optimal brain quantisation in a fixed column order: the inverse of what is left of H is formed anew for every column."""
    weight = weight.clone()
    rows, columns = weight.shape
    alive = [column for column in range(columns) if moment[column, column] > 0]
    weight[:, [column for column in range(columns) if column not in alive]] = 0
    moment = moment + damp * moment[alive, alive].mean() * torch.eye(columns, dtype=torch.float64)
    order = list(range(columns))
    if act_order:
        order.sort(key=lambda column: -float(moment[column, column]))
    grids = {
        (row, start): _grid(weight[row, start : start + group].tolist(), bits) for row in range(rows) for start in range(0, columns, group)
    }
    for position, column in enumerate(order):
        start = column // group * group
        if not act_order and column == start:
            grids |= {(row, start): _grid(weight[row, start : start + group].tolist(), bits) for row in range(rows)}
        left = order[position:]
        inverse = torch.linalg.inv(moment[left][:, left])
        for row in range(rows):
            scale, zero = grids[row, start]
            code = min(max(round(float(weight[row, column]) / scale) + zero, 0), 2**bits - 1)
            value = (code - zero) * scale
            weight[row, left] -= (weight[row, column] - value) / inverse[0, 0] * inverse[0]
            weight[row, column] = value
    return weight


def _decoded(codes: Tensor, scales: Tensor, zeros: Tensor) -> Tensor:
    group = codes.shape[1] // scales.shape[1]
    return (codes.double() - zeros.double().repeat_interleave(group, 1)) * scales.double().repeat_interleave(group, 1)


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize(("columns", "group"), [(48, 16), (96, 48), (80, 80), (66, 6), (72, 1), (129, 43)])
def test_solver_equals_brute_force(columns: int, group: int, act_order: bool) -> None:
    weight, moment = _case(5, columns)
    solved = quantise(weight, moment, (2, 4), group, 0.01, act_order, "site")
    for bits, *parts in zip((2, 4), *solved, strict=True):
        want = _brute_force(weight, moment, bits, group, 0.01, act_order)
        torch.testing.assert_close(_decoded(*parts), want, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("act_order", [False, True])
def test_float32_solver_is_as_good_as_float64_brute_force(act_order: bool) -> None:
    weight, moment = _case(12, 96, seed=3)
    codes, scales, zeros = quantise(weight.float(), moment.float(), (3,), 32, 0.01, act_order, "site")
    got, want = _decoded(codes[0], scales[0], zeros[0]), _brute_force(weight, moment, 3, 32, 0.01, act_order)
    # A rounding that falls the other way changes the rest of its row; nearly all must agree, and the error must not be worse.
    assert float((got - want).abs().lt(1e-4).double().mean()) > 0.98

    def energy(delta: Tensor) -> float:
        return float(((delta @ moment) * delta).sum())

    assert energy(got - weight) == pytest.approx(energy(want - weight), rel=0.02)


def test_rows_in_chunks_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, moment = _case(11, 32)
    whole = quantise(weight, moment, (2, 3), 16, 0.01, False, "site")
    monkeypatch.setattr("evopress_gptq.solver.MAX_ELEMENTS", 4 * 32)
    for left, right in zip(whole, quantise(weight, moment, (2, 3), 16, 0.01, False, "site"), strict=True):
        assert torch.equal(left, right)


def _run(method: Gptq | Rtn, weight: Tensor, stats: Statistics) -> list[Variant]:
    site = Site("layers.3.down_proj", "linear", (weight.shape[0], weight.shape[1]), 3, None)
    return list(method.compress(site, weight, stats, method.levels(site)))


def test_b3_act_order_stores_codes_in_original_column_order() -> None:
    # Column i of the weight has its own magnitude, and large inputs stand at scattered places: codes left in the order of the solve would
    # decode to columns of the wrong magnitude.
    columns = 64
    rng = torch.Generator().manual_seed(0)
    weight = torch.randn(8, columns, generator=rng) * torch.logspace(-2, 1, columns)
    sizes = torch.rand(columns, generator=rng) * 3 + 1
    inputs = torch.randn(2000, columns, generator=rng) * sizes
    stats = Statistics(inputs.T @ inputs / 2000, 2000)
    assert sizes.argsort(descending=True).tolist() != list(range(columns))
    for group in (8, 64):
        (variant,) = _run(Gptq(bits=8, group=group, act_order=True), weight, stats)
        decoded = decode(variant.format, variant.tensors, (8, columns))
        assert float((decoded - weight).norm() / weight.norm()) < 0.01
        (rounded,) = _run(Rtn(bits=8, group=group), weight, stats)
        assert layer_error(weight, variant, stats) < layer_error(weight, rounded, stats)
        shuffled = decoded[:, sizes.argsort(descending=True)]
        assert float((shuffled - weight).norm()) > 10 * float((decoded - weight).norm())


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("group", [32, -1])
def test_gptq_is_better_than_rounding(act_order: bool, group: int) -> None:
    bits = (2, 3, 4, 5, 6)
    for seed in range(3):
        weight, moment = (item.float() for item in _case(48, 96, seed))
        stats = Statistics(moment)
        solved, rounded = (
            [layer_error(weight, variant, stats) for variant in _run(method, weight, stats)]
            for method in (Gptq(bits=bits, group=group, act_order=act_order), Rtn(bits=bits, group=group))
        )
        assert all(left < right for left, right in zip(solved, rounded, strict=True)), (solved, rounded)


def test_levels_name_only_what_is_not_the_default() -> None:
    site = Site("q", "linear", (4, 128), 0, None)
    assert [str(level) for level in Gptq(bits=(2, 3)).levels(site)] == ["gptq(bits=2,group=64)", "gptq(bits=3,group=64)"]
    full = Gptq(bits=3, group=-1, damp=0.05, act_order=True)
    assert [str(level) for level in full.levels(site)] == ["gptq(bits=3,group=-1,damp=0.05,act_order=true)"]
    assert Gptq(group=48).levels(site) == []
    assert Gptq(bits=(3, 3)) == Gptq(bits=3)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"bits": 1}, r"Option bits=1 of method 'gptq' is not allowed. Give a whole number from 2 to 8"),
        ({"bits": (2, 9)}, r"Option bits=9"),
        ({"bits": "three"}, r"Option bits=three"),
        ({"bits": True}, r"Option bits=[Tt]rue"),
        ({"group": 0}, r"Option group=0 of method 'gptq' is not allowed. Give a whole number of at least 1, or -1"),
        ({"group": 6.5}, r"Option group=6.5"),
        ({"damp": 0}, r"Option damp=0 of method 'gptq' is not allowed. Give a number above 0 and below 1"),
        ({"damp": float("nan")}, r"Option damp=nan"),
        ({"act_order": 1}, r"Option act_order=1 of method 'gptq' is not allowed. Give true or false"),
    ],
)
def test_bad_options_name_the_allowed_range(options: dict[str, object], text: str) -> None:
    with pytest.raises(UsageError, match=text):
        Gptq(**options)  # type: ignore[arg-type]


def test_refusals_name_the_site() -> None:
    site = Site("layers.3.down_proj", "linear", (2, 64), 3, None)
    weight, method = torch.ones(2, 64), Gptq(bits=3)
    moment = torch.full((64, 64), 5.0).fill_diagonal_(1.0)
    with pytest.raises(NumericalError, match=r"'layers.3.down_proj' is not positive definite"):
        list(method.compress(site, weight, Statistics(moment), method.levels(site)))
    with pytest.raises(UsageError, match=r"Unknown level 'gptq\(bits=4,group=64\)' in method 'gptq' at 'layers.3.down_proj'"):
        list(method.compress(site, weight, Statistics(torch.eye(64)), [Level.of("gptq", bits=4, group=64)]))
    with pytest.raises(UsageError, match=r"Unknown level"):
        method.cost(site, Level("drop"))
