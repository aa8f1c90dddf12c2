"""KL divergence of a compressed model from the dense one, exact over the whole vocabulary.

Shapes: B documents, T tokens, P positions, D width, V vocabulary. The teacher is kept as final hidden states (T×D a document), and both
sides' logits are recomputed in chunks of positions, so memory does not grow with the vocabulary times the text. The teacher's logits of the
documents in use are kept between scores as far as LOGIT_BYTES go.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from evopress.api import Differentiable, Fitness

if TYPE_CHECKING:
    from torch import Tensor, nn

    from evopress.fitness.head import Head


LOGIT_BYTES = 512 * 2**20
"""Memory for the teacher's logits: a fixed amount, whatever the vocabulary."""


class KL(Fitness, Differentiable):
    """Forward KL(dense‖compressed) in nats a token, mean over all positions but the last of each document (EvoPress, 2410.14649, §3)."""

    name = "kl"
    unit = "nats/token"
    version = 2
    zero_when_dense = True

    def __init__(self) -> None:
        self._teacher: dict[int, Tensor] = {}
        self._logits: dict[tuple[int, int, int], Tensor] = {}
        self._head: Head | None = None

    def prepare(self, model: nn.Module, documents: Mapping[int, Tensor]) -> None:
        """Keep the dense model's final hidden states of every document, in the model's own type (no rounding)."""
        import torch

        from evopress.fitness.head import Head, batches, final_hidden

        self._head = Head(model)
        items = list(documents.items())
        self._head.check(model, items[0][1])
        for members in batches(items):
            hidden_BTD = final_hidden(model, torch.stack([items[i][1] for i in members]))
            for row, i in enumerate(members):
                self._teacher[items[i][0]] = hidden_BTD[row].clone()

    def score(self, model: nn.Module, documents: Sequence[tuple[int, Tensor]]) -> tuple[list[float], list[int]]:
        """Mean KL a document and its number of positions (its tokens less one)."""
        import torch

        from evopress.fitness.head import Head, batches, final_hidden

        if self._head is None:
            raise RuntimeError("KL.score() before KL.prepare()")
        values, student_head = [0.0] * len(documents), Head(model)
        self._forget_others(documents)
        for members in batches(documents):
            hidden_BTD = final_hidden(model, torch.stack([documents[i][1] for i in members]))
            for row, i in enumerate(members):
                index, _ids = documents[i]
                # A shortened document reads a prefix of the teacher's states: the model is causal.
                values[i] = mean_kl(partial(self._teacher_logits, index), hidden_BTD[row, :-1], student_head)
        return values, [len(ids) - 1 for _, ids in documents]

    def backward(self, model: nn.Module, documents: Sequence[tuple[int, Tensor]]) -> tuple[list[float], list[int]]:
        """As `score`, with gradients."""
        from evopress.fitness.head import pull

        if self._head is None:
            raise RuntimeError("KL.backward() before KL.prepare()")
        self._forget_others(documents)
        teacher = self._teacher

        def loss(index: int, positions_P: Tensor, student_PV: Tensor) -> Tensor:
            assert self._head is not None
            log_p_PV = self._head(teacher[index][positions_P]).float().log_softmax(-1)
            return (log_p_PV.exp() * (log_p_PV - student_PV.float().log_softmax(-1))).sum()

        return pull(model, documents, loss), [len(ids) - 1 for _, ids in documents]

    def _teacher_logits(self, index: int, chunk: slice) -> Tensor:
        """P×V logits of some positions of a document; kept where they fit."""
        assert self._head is not None
        key = (index, chunk.start, chunk.stop)
        if key in self._logits:
            return self._logits[key]
        logits_PV = self._head(self._teacher[index][chunk])
        if logits_PV.nbytes + sum(kept.nbytes for kept in self._logits.values()) <= LOGIT_BYTES:
            self._logits[key] = logits_PV
        return logits_PV

    def _forget_others(self, documents: Sequence[tuple[int, Tensor]]) -> None:
        """Free the logits of documents that are not in use."""
        used = {index for index, _ in documents}
        self._logits = {key: kept for key, kept in self._logits.items() if key[0] in used}


def mean_kl(teacher: Callable[[slice], Tensor], student_PD: Tensor, student_head: Head) -> float:
    """Mean over positions of Σ_v p (log p - log q), p and q the softmax of the teacher's and the student's logits; chunked over P.

    teacher: P×V logits of a slice of positions.
    """
    import torch

    from evopress.fitness.head import CHUNK_POSITIONS, chunks

    with torch.no_grad():
        parts = [chunk_kl(teacher(chunk), student_head(student_PD[chunk])) for chunk in chunks(len(student_PD), CHUNK_POSITIONS)]
    return sum(parts) / len(student_PD)


def chunk_kl(teacher_PV: Tensor, student_PV: Tensor) -> float:
    """Σ over positions of KL from logits of any type; softmaxes in float32, a few rows at a time so that they stay in the cache."""
    import torch

    from evopress.fitness.head import CACHE_POSITIONS, chunks

    total = 0.0
    for rows in chunks(len(teacher_PV), CACHE_POSITIONS):
        log_p_PV = teacher_PV[rows].log_softmax(-1, dtype=torch.float32)
        gap_PV = student_PV[rows].log_softmax(-1, dtype=torch.float32).neg_().add_(log_p_PV)
        total += float(torch.dot(log_p_PV.exp_().view(-1), gap_PV.view(-1)))
    return total
