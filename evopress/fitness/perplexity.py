"""Negative log-likelihood of the text itself. Its exponential is the perplexity; the mean NLL is what is averaged and stored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from evopress.api import Differentiable, Fitness

if TYPE_CHECKING:
    from torch import Tensor, nn

    from evopress.fitness.head import Head


class Perplexity(Fitness, Differentiable):
    """Next-token negative log-likelihood in nats a token; exp of its token-weighted mean is the perplexity (EvoPress `ppl`)."""

    name = "perplexity"
    unit = "nats/token"
    version = 2

    def prepare(self, model: nn.Module, documents: Mapping[int, Tensor]) -> None:
        """Check that the head can be recomputed; nothing is kept of the dense model."""
        from evopress.fitness.head import Head

        Head(model).check(model, next(iter(documents.values())))

    def score(self, model: nn.Module, documents: Sequence[tuple[int, Tensor]]) -> tuple[list[float], list[int]]:
        """Mean NLL a document and its number of predicted tokens."""
        import torch

        from evopress.fitness.head import Head, batches, final_hidden, means

        head = Head(model)
        sums: list[list[Tensor]] = [[] for _ in documents]
        for members in batches(documents):
            hidden_BTD = final_hidden(model, torch.stack([documents[i][1] for i in members]))
            for row, i in enumerate(members):
                sums[i] = [nll_sum(hidden_BTD[row, :-1], documents[i][1][1:], head)]
        positions = [len(ids) - 1 for _, ids in documents]
        return means(sums, positions), positions

    def backward(self, model: nn.Module, documents: Sequence[tuple[int, Tensor]]) -> tuple[list[float], list[int]]:
        """As `score`, with gradients."""
        from evopress.fitness.head import pull

        texts = dict(documents)

        def loss(index: int, positions_P: Tensor, logits_PV: Tensor) -> Tensor:
            return -logits_PV.float().log_softmax(-1).gather(-1, texts[index][positions_P + 1, None]).sum()

        return pull(model, documents, loss), [len(ids) - 1 for _, ids in documents]


def nll_sum(hidden_PD: Tensor, targets_P: Tensor, head: Head) -> Tensor:
    """Σ over positions of log Z - logit of the next token; chunked over P, softmaxes in float32, their sum in float64 on the device."""
    import torch

    from evopress.fitness.head import blocks

    total = torch.zeros((), dtype=torch.float64, device=hidden_PD.device)
    for chunk in head.chunks(len(hidden_PD)):
        logits_PV, wanted_P = head(hidden_PD[chunk]), targets_P[chunk]
        for rows in blocks(logits_PV):
            log_p_PV = logits_PV[rows].log_softmax(-1, dtype=torch.float32)
            total -= log_p_PV.gather(-1, wanted_P[rows, None]).double().sum()
    return total
