"""Builders of tiny random causal language models, one per family; for tests only.

`build("llama")` is a real model of a few thousand weights. Tests write `from tiny import FAMILIES, build, skeleton, tokens`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

VOCAB = 61
_COMMON: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": None,
    "pad_token_id": 0,
    "initializer_range": 0.3,
}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", _COMMON),
    "llama_tied": ("LlamaConfig", _COMMON | {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True}),
    "mistral": ("MistralConfig", _COMMON | {"sliding_window": 8, "head_dim": 8}),
    "qwen3": ("Qwen3Config", _COMMON | {"head_dim": 16}),
    "gemma": ("GemmaConfig", _COMMON | {"head_dim": 8}),
    "gemma2": ("Gemma2Config", _COMMON | {"head_dim": 8, "sliding_window": 8, "query_pre_attn_scalar": 8, "num_hidden_layers": 4}),
    "gemma3": (
        "Gemma3TextConfig",
        _COMMON
        | {
            "head_dim": 8,
            "sliding_window": 8,
            "num_hidden_layers": 4,
            "query_pre_attn_scalar": 8,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
        },
    ),
    "phi3": ("Phi3Config", _COMMON),
    "opt": (
        "OPTConfig",
        {
            "vocab_size": VOCAB,
            "hidden_size": 32,
            "word_embed_proj_dim": 32,
            "ffn_dim": 48,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "max_position_embeddings": 128,
            "dropout": 0.0,
            "init_std": 0.3,
            "bos_token_id": 1,
            "eos_token_id": None,
            "pad_token_id": 0,
        },
    ),
    "gpt2": (
        "GPT2Config",
        {
            "vocab_size": VOCAB,
            "n_embd": 32,
            "n_layer": 3,
            "n_head": 4,
            "n_positions": 128,
            "initializer_range": 0.3,
            "resid_pdrop": 0.0,
            "embd_pdrop": 0.0,
            "attn_pdrop": 0.0,
            "bos_token_id": 1,
            "eos_token_id": None,
            "pad_token_id": 0,
        },
    ),
    "gpt_neox": ("GPTNeoXConfig", {key: value for key, value in _COMMON.items() if key != "num_key_value_heads"}),
    "mixtral": ("MixtralConfig", _COMMON | {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 8}),
    "qwen3_moe": (
        "Qwen3MoeConfig",
        _COMMON
        | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "head_dim": 8, "mlp_only_layers": [1]},
    ),
}  # fmt: skip


def config(family: str, **overrides: Any) -> Any:
    """Configuration of a family, with single values overridden."""
    import transformers

    kind, values = FAMILIES[family]
    return getattr(transformers, kind)(**(values | overrides))


def build(family: str, seed: int = 0, **overrides: Any) -> nn.Module:
    """A tiny random float32 model on the CPU, in evaluation mode, without gradients; equal seeds give equal weights."""
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model: nn.Module = AutoModelForCausalLM.from_config(config(family, **overrides))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.ndim == 1:  # biases start at zero and norms at one, which would hide a lost or misplaced one
                    parameter.add_(0.1 * torch.randn_like(parameter))
                elif "expert" in name or "gate.weight" in name:
                    parameter.copy_(0.3 * torch.randn_like(parameter))
    return model.eval().requires_grad_(False)


def skeleton(family: str, **overrides: Any) -> nn.Module:
    """The same model on the meta device, without weights."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model: nn.Module = AutoModelForCausalLM.from_config(config(family, **overrides))
    return model


def tokens(batch: int = 2, length: int = 16, seed: int = 0) -> torch.Tensor:
    """Random token ids (batch, length), never the padding id."""
    return torch.randint(2, VOCAB, (batch, length), generator=torch.Generator().manual_seed(seed))
