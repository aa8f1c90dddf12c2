"""Attention of one new token per sequence on a CPU, as decoding needs it: two small products over keys and values.

torch's fused attention is made for many queries; in bfloat16 one takes it several times as long, which would hide what compression gains in
a whole model (`pytest -m slow -s tests/latency/test_attention.py` prints both). All else is left to torch. Called by latency.runtime.

Shapes: B batch, H heads, K key-value heads, G heads that share one of them, L keys, D columns of a head.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME, STANDARD = "evopress", "sdpa"
SPECIAL = ("softcap", "position_bias", "cache")
"""Arguments of families whose attention is more than softmax(q kᵀ) v."""


def one_query(query_BH1D: Tensor, key_BKLD: Tensor, value_BKLD: Tensor, scaling: float) -> Tensor:
    """softmax(scaling · q kᵀ) v, B×H×1×D; probabilities in float32."""
    B, H, _, D = query_BH1D.shape
    query_BKGD = query_BH1D.reshape(B, key_BKLD.shape[1], -1, D) * scaling
    weight_BKGL = (query_BKGD @ key_BKLD.transpose(2, 3)).softmax(-1, dtype=torch.float32).to(value_BKLD.dtype)
    return (weight_BKGL @ value_BKLD).reshape(B, H, 1, -1)


def attend(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **rest: Any) -> tuple[Tensor, None]:
    """What transformers calls: `one_query` where it may, else torch's fused attention. Gives B×1×H×D or B×queries×H×D."""
    special = attention_mask is not None or any(rest.get(name) is not None for name in SPECIAL)
    if query.shape[2] != 1 or query.device.type != "cpu" or special:
        out: tuple[Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, **rest)
        return out
    scaling = rest.get("scaling")
    return one_query(query, key, value, query.shape[-1] ** -0.5 if scaling is None else scaling).transpose(1, 2), None


@contextmanager
def quick_decoding(model: nn.Module) -> Iterator[None]:
    """Let a model that uses torch's fused attention use `attend` instead; any other is left as it is."""
    config: Any = model.config
    standard = getattr(config, "_attn_implementation", None) == STANDARD
    if standard:
        AttentionInterface.register(NAME, attend)
        AttentionMaskInterface.register(NAME, sdpa_mask)
        model.set_attn_implementation(NAME)  # type: ignore[operator]
    try:
        yield
    finally:
        if standard:
            model.set_attn_implementation(STANDARD)  # type: ignore[operator]
