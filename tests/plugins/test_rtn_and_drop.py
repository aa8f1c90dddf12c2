"""Rounding to nearest weight by weight, extreme weights, and dropping."""

from __future__ import annotations

import pytest
import torch
from evopress_drop import Drop
from evopress_rtn import Rtn
from torch import Tensor

from evopress.api import DROP, ZERO, NumericalError, Site, Statistics, UsageError
from evopress.api.formats import decode, unpack_int


def _decoded(weight: Tensor, bits: int, group: int) -> tuple[Tensor, Tensor]:
    site = Site("q", "linear", (weight.shape[0], weight.shape[1]), 0, None)
    method = Rtn(bits=bits, group=group)
    (variant,) = method.compress(site, weight, Statistics(), method.levels(site))
    scales = unpack_int(variant.tensors, site.shape, bits, group)[1]
    return decode(variant.format, variant.tensors, site.shape), scales.repeat_interleave(group, 1)


@pytest.mark.parametrize("bits", [2, 3, 5, 8])
@pytest.mark.parametrize("factor", [1e-3, 1.0, 1e3])
def test_every_weight_goes_to_the_nearest_point_of_its_grid(bits: int, factor: float) -> None:
    weight = torch.randn(6, 64, generator=torch.Generator().manual_seed(bits)) * factor
    decoded, scales = _decoded(weight, bits, 16)
    errors = (decoded - weight).abs() / scales
    # Half a step, and at the ends of the grid up to one more half, as the zero point is rounded too.
    assert float(errors.max()) <= 1.01 + 2**bits / 2**11
    assert float((errors <= 0.5001).double().mean()) > 0.9


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_extreme_weights_stay_finite_and_zeros_stay_zero(bits: int) -> None:
    weight = torch.zeros(6, 32)
    weight[1] = 3e-9
    weight[2] = 1e8
    weight[3] = torch.linspace(-1e-6, 1e-6, 32)
    weight[4] = 0.7
    weight[5] = -0.7
    decoded, _ = _decoded(weight, bits, 16)
    assert bool(decoded.isfinite().all())
    assert bool((decoded[0] == 0).all())
    assert float((decoded[1] - weight[1]).abs().max()) < 1e-7
    assert float((decoded[3] - weight[3]).abs().max()) <= 2e-6 / 3
    torch.testing.assert_close(decoded[4:], weight[4:], rtol=1e-3, atol=0)
    assert float(decoded[2].min()) == 65504.0 * (2**bits - 1)


def test_rtn_needs_no_statistics_and_refuses_nan() -> None:
    assert not Rtn.needs
    site = Site("layers.1.q_proj", "linear", (1, 64), 1, None)
    with pytest.raises(NumericalError, match=r"'layers.1.q_proj' holds NaN"):
        list(Rtn().compress(site, torch.full((1, 64), float("nan")), Statistics(), Rtn().levels(site)))


def test_drop_offers_itself_only_at_the_kinds_asked_for() -> None:
    sites = {kind: Site(f"layers.0.{kind}", kind, (0, 0), 0, None) for kind in ("attention", "mlp", "block")}
    for method, kinds in (
        (Drop(), ("attention", "mlp", "block")),
        (Drop(kinds=("mlp", "block")), ("mlp", "block")),
        (Drop(kinds="mlp"), ("mlp",)),
    ):
        assert [kind for kind, site in sites.items() if method.levels(site)] == list(kinds)
        assert [kind for kind in sites if kind in method.kinds] == list(kinds)
    (variant,) = Drop().compress(sites["mlp"], torch.empty(0, 0), Statistics(), [DROP])
    assert (variant.format, dict(variant.tensors), variant.cost) == ("absent", {}, ZERO)
    assert Drop().levels(Site("q", "linear", (2, 2), 0, None)) == []


def test_drop_refuses_other_kinds() -> None:
    with pytest.raises(UsageError, match=r"Unknown kind 'atention' in option kinds of method 'drop'. Did you mean 'attention'\?"):
        Drop(kinds=("mlp", "atention"))  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"Unknown kind 'linear'"):
        Drop(kinds="linear")
    with pytest.raises(UsageError, match=r"Unknown level"):
        Drop(kinds="mlp").cost(Site("layers.0", "block", (0, 0), 0, None), DROP)
