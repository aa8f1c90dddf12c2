"""KL divergence of a compressed model from the dense one, exact over the whole vocabulary.

Shapes: B documents, T tokens, P positions, D width, V vocabulary. The teacher is kept as final hidden states (T×D a document), and both
sides' logits are recomputed in chunks of positions, so memory grows neither with the text nor with the vocabulary. The teacher's logits of
the documents in use are kept between scores as far as LOGIT_BYTES go.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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

        from evopress.fitness.head import Head, batches, final_hidden, means

        if self._head is None:
            raise RuntimeError("KL.score() before KL.prepare()")
        student_head = Head(model)
        sums: list[list[Tensor]] = [[] for _ in documents]
        self._forget_others(documents)
        for members in batches(documents):
            hidden_BTD = final_hidden(model, torch.stack([documents[i][1] for i in members]))
            for row, i in enumerate(members):
                index, ids = documents[i]
                # A shortened document reads a prefix of the teacher's states: the model is causal.
                sums[i] = [
                    kl_sum(self._teacher_logits(index, chunk), student_head(hidden_BTD[row, chunk]))
                    for chunk in student_head.chunks(len(ids) - 1)
                ]
        positions = [len(ids) - 1 for _, ids in documents]
        return means(sums, positions), positions

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


def kl_sum(teacher_PV: Tensor, student_PV: Tensor) -> Tensor:
    """Σ over positions of Σ_v p (log p - log q), p and q the softmax of the teacher's and the student's logits, of any type.

    Softmaxes in float32, a block of positions at a time; their sum in float64, where the logits are.
    """
    import torch

    from evopress.fitness.head import blocks

    total = torch.zeros((), dtype=torch.float64, device=student_PV.device)
    for rows in blocks(student_PV):
        log_p_PV = teacher_PV[rows].log_softmax(-1, dtype=torch.float32)
        gap_PV = student_PV[rows].log_softmax(-1, dtype=torch.float32).neg_().add_(log_p_PV)
        total += torch.dot(log_p_PV.exp_().view(-1), gap_PV.view(-1))
    return total
