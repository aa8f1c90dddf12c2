"""The last step of a language model, taken apart: final hidden states, then logits in chunks of positions.

Shapes: B documents, T tokens, P positions (B·T flattened), D width, V vocabulary. Used by the fitnesses so that memory does not grow with
V times the text, nor with V: of a large vocabulary fewer positions are taken at once. What the chunks add up to stays on the device until
all documents are through, since the host waits for all that a GPU was asked whenever it reads a value. Not a fitness itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from evopress.api import UsageError

BATCH_TOKENS = 4096
"""Most tokens in one forward pass."""
BACKWARD_TOKENS = 1024
"""Most tokens in one backward pass, which keeps the activations of all blocks."""
PULL_POSITIONS = 128
"""Most positions whose logits are differentiated at once, in float32."""
CHUNK_POSITIONS = 512
"""Most positions whose logits exist at once: enough rows for the matrix product to run at speed."""
CHUNK_BYTES = 128 * 2**20
"""Most memory of one tensor of logits. It binds from 65,537 tokens in float32 on: 128 MiB are 512 positions of 65,536."""
CACHE_POSITIONS = 8
"""Positions a softmax works on at once on a CPU: few enough for float32 rows of a large vocabulary to stay in its second-level cache."""


def batches(documents: Sequence[tuple[int, Tensor]], tokens: int = BATCH_TOKENS) -> Iterator[list[int]]:
    """Positions (in `documents`) of documents of equal length, at most so many tokens together: no padding, no masks."""
    by_length: dict[int, list[int]] = {}
    for position, (_, ids) in enumerate(documents):
        by_length.setdefault(len(ids), []).append(position)
    for length, members in by_length.items():
        size = max(1, tokens // length)
        for start in range(0, len(members), size):
            yield members[start : start + size]


def final_hidden(model: nn.Module, ids_BT: Tensor) -> Tensor:
    """Hidden states behind the final norm, B×T×D, in the model's type."""
    body: Any = model.base_model
    with torch.no_grad():
        output = body(input_ids=ids_BT, use_cache=False)
        return output.last_hidden_state  # type: ignore[no-any-return]


def pull(model: nn.Module, documents: Sequence[tuple[int, Tensor]], loss: Callable[[int, Tensor, Tensor], Tensor]) -> list[float]:
    """Backward passes of a loss on the logits, so that nothing grows with the vocabulary times the text; the loss per document.

    loss: (index, positions as an index vector, P×V logits) -> the sum over those positions. What is differentiated is the sum over all
    documents and positions divided by the number of positions. Gradients are added to `.grad` of every parameter that requires one.
    """
    head = Head(model)
    sums_B = torch.zeros(len(documents), dtype=torch.float64, device=head.weight_VD.device)
    positions = sum(len(ids) - 1 for _, ids in documents)
    body: Any = model.base_model
    for members in batches(documents, BACKWARD_TOKENS):
        hidden_BTD = body(input_ids=torch.stack([documents[i][1] for i in members]), use_cache=False).last_hidden_state
        # The graph is cut at the hidden states: logits come and go chunk by chunk, and only their pull on the hidden states stays.
        leaf_BTD = hidden_BTD.detach().requires_grad_()
        for row, i in enumerate(members):
            index, ids = documents[i]
            for chunk in chunks(len(ids) - 1, fitting(PULL_POSITIONS, len(head.weight_VD), torch.float32)):
                here = loss(index, torch.arange(chunk.start, chunk.stop, device=ids.device), head.logits(leaf_BTD[row, chunk]))
                (here / positions).backward()  # type: ignore[no-untyped-call]
                sums_B[i].add_(here.detach())
        hidden_BTD.backward(leaf_BTD.grad)
    return [value / (len(ids) - 1) for value, (_, ids) in zip(sums_B.tolist(), documents, strict=True)]


def means(sums: Sequence[Sequence[Tensor]], counts: Sequence[int]) -> list[float]:
    """Per document, what its chunks add up to over its positions. All sums are brought over at once: the only wait for the device.

    sums: scalars of float64, any number a document. They are added on the host, in their order.
    """
    parts = [part for own in sums for part in own]
    values = iter(torch.stack(parts).tolist() if parts else [])
    return [sum(islice(values, len(own))) / count for own, count in zip(sums, counts, strict=True)]


def chunks(count: int, size: int) -> Iterator[slice]:
    """Slices of `size` that cover `count` positions; the last one ends there."""
    return (slice(start, min(start + size, count)) for start in range(0, count, size))


def fitting(positions: int, vocabulary: int, dtype: torch.dtype) -> int:
    """At most so many positions, and no more than CHUNK_BYTES of their logits in this type; at least one."""
    return max(1, min(positions, CHUNK_BYTES // (vocabulary * dtype.itemsize)))


def blocks(logits_PV: Tensor) -> Iterator[slice]:
    """Slices of positions whose float32 softmaxes exist at once: what a CPU's cache holds; elsewhere more, since a launch costs more."""
    most = CACHE_POSITIONS if logits_PV.device.type == "cpu" else CHUNK_POSITIONS
    return chunks(len(logits_PV), fitting(most, logits_PV.shape[1], torch.float32))


class Head:
    """Logits of hidden states, as the model itself would compute them: output embedding, scale and soft cap.

    In a bfloat16 model the logits are rounded to bfloat16; the softmaxes behind them are float32. Against a float32 head on the same hidden
    states that moves the KL of a document of the demo model by, mean (largest) absolute difference in nats a token:

        4 bits, KL 0.31: 4.6e-4 (1.2e-3) on one thread, 7.6e-4 (1.7e-3) on two      n = 16 documents of 512 tokens,
        3 bits, KL 1.22: 6.5e-4 (2.0e-3) on one thread, 8.0e-4 (2.0e-3) on two      round-to-nearest in groups of 64

    `pytest -m slow tests/demo_model/test_head_precision.py -s` measures it again and fails above 4e-3.
    """

    def __init__(self, model: nn.Module) -> None:
        projection: Any = model.get_output_embeddings()  # type: ignore[operator]
        config: Any = model.config
        # Detached: swapping a parameter's data later must not change the head of the dense model.
        self.weight_VD: Tensor = projection.weight.detach()
        self.bias_V: Tensor | None = None if projection.bias is None else projection.bias.detach()
        self.scale = float(getattr(config, "logit_scale", None) or 1.0) / float(getattr(config, "logits_scaling", None) or 1.0)
        self.softcap = float(getattr(config, "final_logit_softcapping", None) or 0.0)

    @property
    def dtype(self) -> torch.dtype:
        """Type of the logits."""
        return torch.float32 if self.scale != 1.0 or self.softcap else self.weight_VD.dtype

    def chunks(self, count: int) -> Iterator[slice]:
        """Slices that cover `count` positions; the logits of one may exist at once."""
        return chunks(count, fitting(CHUNK_POSITIONS, len(self.weight_VD), self.dtype))

    @torch.no_grad()
    def __call__(self, hidden_PD: Tensor) -> Tensor:
        """P×V logits, in the model's type where they come straight from the output embedding, else in float32; no gradient."""
        return self.logits(hidden_PD)

    def logits(self, hidden_PD: Tensor) -> Tensor:
        """As a call, with the gradient of the hidden states."""
        logits_PV = F.linear(hidden_PD, self.weight_VD, self.bias_V)
        if self.scale != 1.0:
            logits_PV = logits_PV.float() * self.scale
        if self.softcap:
            logits_PV = torch.tanh(logits_PV.float() / self.softcap) * self.softcap
        return logits_PV

    def check(self, model: nn.Module, ids_T: Tensor) -> None:
        """Compare with the logits of the whole model on a few tokens. Raises UsageError for heads this class does not know."""
        ids_BT = ids_T[None, :16]
        with torch.no_grad():
            expected_PV = model(input_ids=ids_BT, use_cache=False).logits[0].float()
        got_PV = self(final_hidden(model, ids_BT)[0]).float()
        tolerance = 0.05 if self.weight_VD.dtype == torch.bfloat16 else 1e-3
        if not torch.allclose(got_PV, expected_PV, atol=tolerance * float(expected_PV.abs().max()), rtol=tolerance):
            raise UsageError(
                f"The head of {type(model).__name__} is not a plain output embedding, so its logits cannot be recomputed in chunks.",
                "Use a model whose logits are output_embeddings(final hidden states), optionally scaled or soft-capped.",
            )
