"""The inverse factor against an explicit inverse, its damping, and the checks of what comes in."""

from __future__ import annotations

import pytest
import torch

from evopress.api import NumericalError, Site, Statistics, UsageError
from evopress.api.linalg import check_weight, inverse_factor, second_moment

SITE = Site("layers.0.q_proj", "linear", (3, 4), 0, None)


def _moment(columns: int, tokens: int) -> torch.Tensor:
    inputs = torch.randn(tokens, columns, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return inputs.T @ inputs / tokens


def test_factor_is_the_upper_cholesky_factor_of_the_damped_inverse() -> None:
    moment = _moment(20, 50)
    factor = inverse_factor(moment, 0.01, "x")
    damped = moment + 0.01 * moment.diagonal().mean() * torch.eye(20, dtype=torch.float64)
    assert torch.equal(factor, factor.triu())
    assert bool((factor.diagonal() > 0).all())
    torch.testing.assert_close(factor.T @ factor, torch.linalg.inv(damped), rtol=1e-9, atol=1e-9)


def test_dead_columns_stand_apart_and_do_not_change_the_rest() -> None:
    moment = _moment(6, 40)
    alive = [0, 2, 3, 5]
    moment[[1, 4]], moment[:, [1, 4]] = 0, 0
    factor = inverse_factor(moment, 0.01, "x")
    torch.testing.assert_close(factor[alive][:, alive], inverse_factor(moment[alive][:, alive], 0.01, "x"))
    assert factor[1, 2:].abs().sum() == 0
    assert bool(inverse_factor(torch.zeros(3, 3), 0.01, "x").isfinite().all())


def test_singular_moment_is_damped_and_slightly_indefinite_one_is_damped_more() -> None:
    assert bool(inverse_factor(_moment(20, 3).float(), 0.01, "x").isfinite().all())
    moment = _moment(8, 40)
    values, vectors = torch.linalg.eigh(moment)
    values[0] = -0.05
    bent = vectors @ values.diag() @ vectors.T
    factor = inverse_factor(bent, 0.001, "x")
    damped = bent + 0.1 * bent.diagonal().mean() * torch.eye(8, dtype=torch.float64)
    torch.testing.assert_close(factor.T @ factor, torch.linalg.inv(damped), rtol=1e-6, atol=1e-6)


def test_indefinite_moment_names_the_site_and_the_damping_tried() -> None:
    moment = torch.tensor([[1.0, 5.0], [5.0, 1.0]])
    with pytest.raises(NumericalError, match=r"'layers.7.k_proj' is not positive definite, even with 1 of its mean diagonal"):
        inverse_factor(moment, 0.01, "layers.7.k_proj")


def test_input_is_not_changed() -> None:
    moment = _moment(5, 9)
    moment[0], moment[:, 0] = 0, 0
    before = moment.clone()
    inverse_factor(moment, 0.01, "x")
    assert torch.equal(moment, before)


def test_bad_input_is_named() -> None:
    with pytest.raises(UsageError, match=r"'gptq' needs the second moment of the input of 'layers.0.q_proj'"):
        second_moment("gptq", SITE, Statistics())
    with pytest.raises(UsageError, match=r"It must be 4×4"):
        second_moment("gptq", SITE, Statistics(torch.eye(3)))
    with pytest.raises(NumericalError, match=r"'layers.0.q_proj' holds NaN"):
        second_moment("gptq", SITE, Statistics(torch.full((4, 4), float("nan"))))
    with pytest.raises(NumericalError, match=r"weight of 'layers.0.q_proj' holds NaN or infinity"):
        check_weight("rtn", SITE, torch.full((3, 4), float("inf")))
    with pytest.raises(UsageError, match=r"weight of shape \(4, 3\)"):
        check_weight("rtn", SITE, torch.zeros(4, 3))
