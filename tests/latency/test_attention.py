"""Decoding attention against its definition in float64, and where it stands back for torch's."""

from __future__ import annotations

import contextlib

import pytest
import torch
from tiny import build as tiny
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from evopress.latency.attention import attend, one_query, quick_decoding
from evopress.latency.clock import measure


def drawn(queries=1, heads=6, shared=2, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(2, count, length, 8, generator=generator) for count, length in ((heads, queries), (shared, 5), (shared, 5))
    )
    return query.to(dtype), key.to(dtype), value.to(dtype)


def by_definition(query, key, value, scaling):
    out = torch.empty(query.shape, dtype=torch.float64)
    shared = query.shape[1] // key.shape[1]
    for b in range(query.shape[0]):
        for h in range(query.shape[1]):
            scores = scaling * query[b, h, 0].double() @ key[b, h // shared].double().T
            out[b, h, 0] = scores.softmax(0) @ value[b, h // shared].double()
    return out


@pytest.mark.parametrize("shared", [1, 2, 6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_query(shared, dtype):
    query, key, value = drawn(shared=shared, dtype=dtype)
    expected = by_definition(query, key, value, 0.3)
    result = one_query(query, key, value, 0.3)
    assert result.dtype == dtype
    assert (result.double() - expected).abs().max() < 8 * torch.finfo(dtype).eps


class Module(torch.nn.Module):
    num_key_value_groups, is_causal = 3, True


@pytest.mark.parametrize("scaling", [None, 0.7])
def test_one_query_is_attended_as_torch_does(scaling):
    query, key, value = drawn()
    expected = sdpa_attention_forward(Module(), query, key, value, None, scaling=scaling)[0]
    result, weights = attend(Module(), query, key, value, None, scaling=scaling)
    assert weights is None
    assert result.shape == expected.shape == (2, 1, 6, 8)
    assert torch.allclose(result, expected, atol=1e-6)


@pytest.mark.parametrize("case", ["prompt", "mask", "bias"])
def test_everything_else_is_torchs_own(case):
    query, key, value = drawn(queries=5 if case == "prompt" else 1)
    mask = torch.tensor([True, False, True, True, False]).view(1, 1, 1, 5) if case == "mask" else None
    rest = {"position_bias": torch.full((1, 6, 1, 5), 0.25)} if case == "bias" else {}
    expected = sdpa_attention_forward(Module(), query, key, value, mask, **rest)[0]
    assert torch.equal(attend(Module(), query, key, value, mask, **rest)[0], expected)


def test_only_torchs_attention_is_replaced_and_comes_back():
    model = tiny("llama", num_hidden_layers=1)
    for name, inside in (("sdpa", "evopress"), ("eager", "eager")):
        model.set_attn_implementation(name)
        with contextlib.suppress(RuntimeError), quick_decoding(model):
            assert model.config._attn_implementation == inside
            raise RuntimeError
        assert model.config._attn_implementation == name


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_what_one_query_takes(dtype):
    """A measurement, not a verdict: microseconds of both, nine heads on three of keys and values, 512 keys of 64 columns."""
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, heads, length, 64, generator=generator).to(dtype) for heads, length in ((9, 1), (3, 512), (3, 512)))
    ours = measure(lambda: one_query(query, key, value, 0.125), min_repeats=50)
    theirs = measure(lambda: sdpa_attention_forward(Module(), query, key, value, None), min_repeats=50)
    print(f"{dtype}: {1e6 * ours.median:.0f} µs, torch's fused attention {1e6 * theirs.median:.0f} µs")
