"""KL and perplexity against a naive float64 implementation, and how they hold memory down."""

import math

import pytest
import torch
from transformers import Gemma2Config, Gemma2ForCausalLM, LlamaConfig, LlamaForCausalLM

from evopress.api import UsageError
from evopress.fitness import KL, Perplexity
from evopress.fitness.head import CHUNK_POSITIONS, Head, batches, final_hidden


def llama(seed=0, dtype=torch.float32):
    torch.manual_seed(seed)
    config = LlamaConfig(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
                         vocab_size=97, initializer_range=0.2)  # fmt: skip
    return LlamaForCausalLM(config).eval().to(dtype)


def documents(lengths, vocabulary=97):
    generator = torch.Generator().manual_seed(7)
    return {index: torch.randint(0, vocabulary, (length,), generator=generator) for index, length in enumerate(lengths)}


def naive_kl(teacher, student, ids):
    with torch.no_grad():
        log_p = teacher(ids[None]).logits[0, :-1].double().log_softmax(-1)
        log_q = student(ids[None]).logits[0, :-1].double().log_softmax(-1)
    return float((log_p.exp() * (log_p - log_q)).sum(-1).mean())


def naive_nll(model, ids):
    with torch.no_grad():
        log_p = model(ids[None]).logits[0].double().log_softmax(-1)
    return float(-sum(log_p[i, ids[i + 1]] for i in range(len(ids) - 1)) / (len(ids) - 1))


def test_kl_equals_the_naive_float64_answer():
    teacher, student = llama(0), llama(1)
    texts = documents([70, 130, 70, 9])
    fitness = KL()
    fitness.prepare(teacher, texts)
    values, weights = fitness.score(student, list(texts.items()))
    assert weights == [69, 129, 69, 8]
    assert values == pytest.approx([naive_kl(teacher, student, ids) for ids in texts.values()], rel=1e-5)


def test_kl_of_a_shortened_document_uses_its_prefix():
    teacher, student = llama(0), llama(1)
    texts = documents([70, 70])
    fitness = KL()
    fitness.prepare(teacher, texts)
    values, _ = fitness.score(student, [(1, texts[1][:33])])
    assert values == pytest.approx([naive_kl(teacher, student, texts[1][:33])], rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_dense_model_scores_zero_to_rounding(dtype):
    teacher = llama(0, dtype)
    texts = documents([64] * 5 + [40])
    fitness = KL()
    fitness.prepare(teacher, texts)
    values, _ = fitness.score(teacher, list(texts.items())[1:])
    assert max(map(abs, values)) < (1e-6 if dtype == torch.float32 else 2e-3)


def test_kl_is_never_below_zero_and_grows_with_damage():
    teacher, student = llama(0), llama(0)
    texts = documents([64, 64])
    fitness = KL()
    fitness.prepare(teacher, texts)
    scores = []
    for noise in (0.01, 0.1, 0.5):
        with torch.no_grad():
            student.model.layers[0].mlp.up_proj.weight.add_(noise * torch.randn(48, 32, generator=torch.Generator().manual_seed(1)))
        scores.append(sum(fitness.score(student, list(texts.items()))[0]))
    assert 0 < scores[0] < scores[1] < scores[2]


def test_perplexity_equals_the_naive_float64_answer():
    model = llama(3)
    texts = documents([70, 130, 9])
    fitness = Perplexity()
    fitness.prepare(model, texts)
    values, weights = fitness.score(model, list(texts.items()))
    assert weights == [69, 129, 8]
    assert values == pytest.approx([naive_nll(model, ids) for ids in texts.values()], rel=1e-5)
    assert math.exp(values[0]) > 1


def test_soft_capped_heads_are_recomputed():
    torch.manual_seed(0)
    config = Gemma2Config(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
                          head_dim=8, vocab_size=97, initializer_range=0.5, final_logit_softcapping=3.0)  # fmt: skip
    model = Gemma2ForCausalLM(config).eval()
    ids = documents([20])[0]
    Head(model).check(model, ids)
    with torch.no_grad():
        expected = model(ids[None]).logits[0]
    assert torch.allclose(Head(model)(final_hidden(model, ids[None])[0]), expected, atol=1e-5)


def test_a_head_we_do_not_know_is_refused():
    model = llama(0)
    model.lm_head.register_forward_hook(lambda *args: args[-1] * 2 + 1)
    with pytest.raises(UsageError, match="not a plain output embedding"):
        KL().prepare(model, documents([20]))


def test_batches_hold_equal_lengths_and_keep_every_document():
    texts = list(documents([512] * 20 + [100, 100, 7]).items())
    found = list(batches(texts))
    assert sorted(position for batch in found for position in batch) == list(range(23))
    for batch in found:
        assert len({len(texts[position][1]) for position in batch}) == 1
        assert sum(len(texts[position][1]) for position in batch) <= 4096


def test_largest_tensor_does_not_grow_with_the_text(monkeypatch):
    largest = []
    original = Head.__call__

    def spy(self, hidden):
        logits = original(self, hidden)
        largest.append(logits.numel())
        return logits

    monkeypatch.setattr(Head, "__call__", spy)
    teacher = llama(0)
    for length in (600, 2400):
        texts = documents([length])
        fitness = KL()
        fitness.prepare(teacher, texts)
        largest.clear()
        fitness.score(teacher, list(texts.items()))
        assert max(largest) <= CHUNK_POSITIONS * 97


def test_kept_logits_change_nothing_and_stay_within_their_memory(monkeypatch):
    teacher, texts = llama(0), documents([70, 70, 33])
    whole, calls = {}, []
    for limit in (0, 97 * 4 * 100, 2**30):
        monkeypatch.setattr("evopress.fitness.divergence.LOGIT_BYTES", limit)
        fitness = KL()
        fitness.prepare(teacher, texts)
        calls.append(0)
        head = fitness._head
        monkeypatch.setattr(fitness, "_head", lambda hidden, head=head: (calls.__setitem__(-1, calls[-1] + 1), head(hidden))[1])
        for chosen in ([0, 1, 2], [0, 1, 2], [2], [2, 1]):
            for seed in (1, 2):
                values = fitness.score(llama(seed), [(index, texts[index]) for index in chosen])
                assert whole.setdefault((tuple(chosen), seed), values) == values
            assert sum(kept.nbytes for kept in fitness._logits.values()) <= limit
            assert {index for index, _, _ in fitness._logits} <= set(chosen)
    assert calls[0] > calls[1] > calls[2] == 4
