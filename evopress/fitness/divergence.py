"""KL divergence of a compressed model from the dense one, exact over the whole vocabulary.

Shapes: B documents, T tokens, P positions, D width, V vocabulary. The teacher is kept as final hidden states (T×D a document), and both sides'
logits are recomputed in chunks of positions, so memory does not grow with the vocabulary times the text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from evopress.api import Fitness

if TYPE_CHECKING:
    from torch import Tensor, nn

    from evopress.fitness.head import Head

CHUNK_POSITIONS = 64


class KL(Fitness):
    """Forward KL(dense‖compressed) in nats a token, mean over all positions but the last of each document (EvoPress, 2410.14649, §3)."""

    name = "kl"
    unit = "nats/token"
    zero_when_dense = True

    def __init__(self) -> None:
        self._teacher: dict[int, Tensor] = {}
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
        for members in batches(documents):
            hidden_BTD = final_hidden(model, torch.stack([documents[i][1] for i in members]))
            for row, i in enumerate(members):
                index, ids = documents[i]
                # A shortened document reads a prefix of the teacher's states: the model is causal.
                teacher_PD = self._teacher[index][: len(ids) - 1]
                values[i] = mean_kl(teacher_PD, self._head, hidden_BTD[row, :-1], student_head)
        return values, [len(ids) - 1 for _, ids in documents]


def mean_kl(teacher_PD: Tensor, teacher_head: Head, student_PD: Tensor, student_head: Head) -> float:
    """Mean over positions of Σ_v p (log p - log q), p and q the softmax of the teacher's and the student's logits; chunked over P."""
    import torch

    total = 0.0
    with torch.no_grad():
        for start in range(0, len(teacher_PD), CHUNK_POSITIONS):
            chunk = slice(start, start + CHUNK_POSITIONS)
            total += float(chunk_kl(teacher_head(teacher_PD[chunk]), student_head(student_PD[chunk])))
    return total / len(teacher_PD)


def chunk_kl(teacher_PV: Tensor, student_PV: Tensor) -> Tensor:
    """Σ over positions of KL, from float32 logits, in float64 at the end: Σ_v p (t - s) - log Z_t + log Z_s."""
    log_z_teacher_P = teacher_PV.logsumexp(-1)
    log_z_student_P = student_PV.logsumexp(-1)
    probability_PV = (teacher_PV - log_z_teacher_P[:, None]).exp_()
    gap_P = (probability_PV * (teacher_PV - student_PV)).sum(-1)
    return (gap_P.double() - log_z_teacher_P.double() + log_z_student_P.double()).sum()
