"""SparseGPT against a float64 brute force that forms every inverse explicitly; exact zeros; published ordering."""

from __future__ import annotations

import pytest
import torch
from evopress_magnitude import Magnitude
from evopress_sparsegpt import SparseGpt
from evopress_sparsegpt.solver import prune
from evopress_wanda import Wanda
from torch import Tensor

from evopress.api import Method, Site, Statistics, UsageError
from evopress.api.formats import unpack_bits
from evopress.testing.methods import layer_error


def _case(rows: int, columns: int, seed: int = 0, dead: bool = True) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=rng, dtype=torch.float64)
    mixing = torch.randn(columns, columns, generator=rng, dtype=torch.float64)
    sizes = torch.rand(columns, generator=rng, dtype=torch.float64) * 3 + 0.1
    inputs = torch.randn(4 * columns, columns, generator=rng, dtype=torch.float64) @ mixing * sizes
    if dead:
        inputs[:, columns // 2] = 0
    return weight, inputs.T @ inputs / len(inputs)


def _brute_force(weight: Tensor, moment: Tensor, zeros: int, damp: float, block: int) -> tuple[Tensor, Tensor]:
    """Optimal brain surgeon in column order, with the inverse of what is left of H formed anew for every column."""
    weight, keep = weight.clone(), torch.ones(weight.shape, dtype=torch.bool)
    rows, columns = weight.shape
    alive = moment.diagonal() > 0
    weight[:, ~alive] = 0
    moment = moment + damp * moment.diagonal()[alive].mean() * torch.eye(columns, dtype=torch.float64)
    inverses = [torch.linalg.inv(moment[column:, column:]) for column in range(columns)]
    for column in range(columns):
        if column % block == 0:
            end = min(column + block, columns)
            count = zeros * end // columns - zeros * column // columns
            saliency = {(at, row): float(weight[row, at] ** 2 / inverses[at][0, 0]) for at in range(column, end) for row in range(rows)}
            for at, row in sorted(saliency, key=lambda place: (saliency[place], place))[:count]:
                keep[row, at] = False
        for row in range(rows):
            if not keep[row, column]:
                weight[row, column:] -= weight[row, column] / inverses[column][0, 0] * inverses[column][0]
                weight[row, column] = 0
    return weight, keep


@pytest.mark.parametrize(("columns", "block"), [(48, 16), (70, 32), (66, 128), (90, 40), (40, 1)])
def test_solver_equals_brute_force(columns: int, block: int) -> None:
    weight, moment = _case(6, columns)
    zeros = [round(share * weight.numel()) for share in (0.3, 0.5, 0.8)]
    for count, (pruned, keep) in zip(zeros, prune(weight, moment, zeros, 0.01, block, "site"), strict=True):
        want, want_keep = _brute_force(weight, moment, count, 0.01, block)
        assert torch.equal(keep, want_keep)
        assert int((~keep).sum()) == count
        torch.testing.assert_close(pruned, want, rtol=1e-6, atol=1e-9)


def test_float32_solver_is_as_good_as_float64_brute_force() -> None:
    weight, moment = _case(16, 96, seed=2)
    want, _ = _brute_force(weight, moment, 900, 0.01, 32)
    ((got, keep),) = prune(weight.float(), moment.float(), [900], 0.01, 32, "site")

    def energy(delta: Tensor) -> float:
        return float(((delta @ moment) * delta).sum())

    assert int((~keep).sum()) == 900
    assert energy(got.double() - weight) == pytest.approx(energy(want - weight), rel=0.02)


def test_levels_in_chunks_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, moment = _case(6, 40)
    whole = list(prune(weight, moment, [50, 100, 150], 0.01, 16, "site"))
    monkeypatch.setattr("evopress_sparsegpt.solver.MAX_ELEMENTS", 1)
    for left, right in zip(whole, prune(weight, moment, [50, 100, 150], 0.01, 16, "site"), strict=True):
        assert torch.equal(left[0], right[0])
        assert torch.equal(left[1], right[1])


def _errors(method: Method, weight: Tensor, stats: Statistics) -> list[float]:
    site = Site("layers.0.up_proj", "linear", (weight.shape[0], weight.shape[1]), 0, None)
    return [layer_error(weight, variant, stats) for variant in method.compress(site, weight, stats, method.levels(site))]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_published_ordering_in_layer_error(seed: int) -> None:
    weight, moment = _case(64, 96, seed, dead=False)
    stats, shares = Statistics(moment.float()), (0.4, 0.5, 0.6, 0.7)
    magnitude, wanda, sparsegpt = (
        _errors(method, weight.float(), stats)
        for method in (Magnitude(sparsity=shares), Wanda(sparsity=shares), SparseGpt(sparsity=shares))
    )
    assert all(best < middle < worst for best, middle, worst in zip(sparsegpt, wanda, magnitude, strict=True)), (
        sparsegpt,
        wanda,
        magnitude,
    )


@pytest.mark.parametrize("cls", [Magnitude, Wanda, SparseGpt])
@pytest.mark.parametrize("shape", [(7, 37), (16, 64), (1, 50), (50, 1)])
def test_number_of_zeros_is_exact_even_where_weights_are_equal(cls: type[Magnitude | Wanda | SparseGpt], shape: tuple[int, int]) -> None:
    site = Site("q", "linear", shape, 0, None)
    method = cls(sparsity=(0.33, 0.5), steps=2, step_weights=3)
    moment = torch.eye(shape[1])
    for weight in (torch.zeros(shape), torch.ones(shape), torch.arange(shape[0] * shape[1]).view(shape).float() % 5):
        for variant in method.compress(site, weight, Statistics(moment), method.levels(site)):
            share, step = variant.level.option("sparsity"), variant.level.option("step")
            kept = int(unpack_bits(variant.tensors["mask"], 1, shape[1]).sum())
            assert kept == weight.numel() - round(share * weight.numel()) - 3 * step == variant.cost.params


def test_wanda_compares_within_rows_by_weight_times_input_norm() -> None:
    site = Site("q", "linear", (2, 4), 0, None)
    weight = torch.tensor([[1.0, 2.0, 3.0, 4.0], [0.1, 0.2, 0.3, 0.4]])
    stats = Statistics(torch.diag(torch.tensor([100.0, 1.0, 4.0, 0.0])))
    method = Wanda(sparsity=0.5)
    (variant,) = method.compress(site, weight, stats, method.levels(site))
    # Scores of row 0: 10, 2, 6, 0.
    assert unpack_bits(variant.tensors["mask"], 1, 4).tolist() == [[1, 0, 1, 0]] * 2


def test_magnitude_compares_over_the_whole_site() -> None:
    site = Site("q", "linear", (2, 4), 0, None)
    weight = torch.tensor([[1.0, -2.0, 3.0, -4.0], [0.1, 0.2, -0.3, 0.4]])
    method = Magnitude(sparsity=0.5)
    (variant,) = method.compress(site, weight, Statistics(), method.levels(site))
    assert unpack_bits(variant.tensors["mask"], 1, 4).tolist() == [[1, 1, 1, 1], [0, 0, 0, 0]]


def test_level_text_of_sparsegpt() -> None:
    site = Site("q", "linear", (64, 64), 0, None)
    assert str(SparseGpt(sparsity=0.6).levels(site)[0]) == "sparsegpt(sparsity=0.6)"
    ladder = SparseGpt(sparsity=0.6, steps=1, step_weights=100, damp=0.1, block=64).levels(site)
    assert str(ladder[0]) == "sparsegpt(sparsity=0.6,step=-1,weights=100,damp=0.1,block=64)"


@pytest.mark.parametrize("cls", [Magnitude, Wanda, SparseGpt])
def test_bad_options_name_the_allowed_range(cls: type[Magnitude | Wanda | SparseGpt]) -> None:
    for options, text in (
        ({"sparsity": 1}, r"Option sparsity=1 of method .* Give a number above 0 and below 1"),
        ({"sparsity": (0.5, -0.1)}, r"Option sparsity=-0.1"),
        ({"sparsity": "half"}, r"Option sparsity=half"),
        ({"steps": -1}, r"Option steps=-1 of method .* at least 0"),
        ({"step_weights": 0}, r"Option step_weights=0 of method .* at least 1"),
    ):
        with pytest.raises(UsageError, match=text):
            cls(**options)  # type: ignore[arg-type]
