"""KL and perplexity against a naive float64 implementation, and how they hold memory and waits for the device down."""

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import Gemma2Config, Gemma2ForCausalLM, LlamaConfig, LlamaForCausalLM

from evopress.api import UsageError
from evopress.fitness import KL, Perplexity
from evopress.fitness.head import (
    BACKWARD_TOKENS,
    BATCH_TOKENS,
    CACHE_POSITIONS,
    CHUNK_BYTES,
    CHUNK_POSITIONS,
    PULL_POSITIONS,
    Head,
    batches,
    blocks,
    final_hidden,
    fitting,
)


def llama(seed=0, dtype=torch.float32, width=32, vocabulary=97):
    torch.manual_seed(seed)
    config = LlamaConfig(hidden_size=width, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
                         vocab_size=vocabulary, initializer_range=0.2, max_position_embeddings=4096)  # fmt: skip
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


# Waits for the device -------------------------------------------------------------------------------------------------------------------


def summed_on_the_host(teacher, student, ids):
    """KL and NLL of a document as sums of Python numbers, eight positions at a time: what every stored measurement was made with."""
    head, other = Head(teacher), Head(student)
    states, moved = final_hidden(teacher, ids[None])[0], final_hidden(student, ids[None])[0]
    kl, nll = [], 0.0
    for start in range(0, len(ids) - 1, 512):
        chunk = slice(start, min(start + 512, len(ids) - 1))
        p, q, wanted = head(states[chunk]), other(moved[chunk]), ids[1:][chunk]
        kl.append(0.0)
        for row in range(0, len(p), 8):
            log_p = p[row : row + 8].log_softmax(-1, dtype=torch.float32)
            log_q = q[row : row + 8].log_softmax(-1, dtype=torch.float32)
            nll -= float(log_q.gather(-1, wanted[row : row + 8, None]).double().sum())
            gap = log_q.neg_().add_(log_p)
            kl[-1] += float(torch.dot(log_p.exp_().view(-1), gap.view(-1)))
    return sum(kl) / (len(ids) - 1), nll / (len(ids) - 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sums_kept_on_the_device_are_those_of_the_host_to_the_last_bit(dtype):
    teacher, student = llama(0, dtype), llama(1, dtype)
    texts = documents([1300, 70, 9, 514])
    expected = [summed_on_the_host(teacher, student, ids) for ids in texts.values()]
    for place, fitness in enumerate((KL(), Perplexity())):
        fitness.prepare(teacher, texts)
        values, _ = fitness.score(student, list(texts.items()))
        assert values == [found[place] for found in expected]


class Counted(TorchDispatchMode):
    """Counts how often a single value of a tensor is read, or two tensors are compared on the spot."""

    def __init__(self):
        super().__init__()
        self.reads = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.reads += func.overloadpacket in (torch.ops.aten._local_scalar_dense, torch.ops.aten.equal)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("fitness", [KL, Perplexity])
@pytest.mark.parametrize(("way", "tokens"), [("score", BATCH_TOKENS), ("backward", BACKWARD_TOKENS)])
def test_values_are_brought_over_once_however_long_the_text(fitness, way, tokens, monkeypatch):
    """transformers reads one value in every pass, to see whether texts are packed; the fitnesses add a single list at the end."""
    model, brought = llama(0), []
    tolist = torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda self: (brought.append(self.shape), tolist(self))[1])
    for lengths in ([20], [600, 600, 70, 9]):
        texts = documents(lengths)
        made = fitness()
        made.prepare(model, texts)
        with Counted() as passes:
            for members in batches(list(texts.items()), tokens):
                final_hidden(model, torch.stack([texts[i] for i in members]))
        brought.clear()
        with Counted() as counted:
            getattr(made, way)(model, list(texts.items()))
        assert (counted.reads, len(brought)) == (passes.reads, 1)


def test_nothing_to_score_is_no_values():
    fitness = KL()
    fitness.prepare(llama(0), documents([20]))
    assert fitness.score(llama(1), []) == fitness.backward(llama(1), []) == ([], [])


class Elsewhere(torch.Tensor):
    """A tensor that says it is on a GPU."""

    @property
    def device(self):
        return torch.device("cuda")


def test_softmaxes_take_few_positions_on_a_cpu_and_a_whole_chunk_elsewhere(monkeypatch):
    logits = torch.zeros(600, 97)
    assert [rows.stop - rows.start for rows in blocks(logits)] == [CACHE_POSITIONS] * 75
    assert list(blocks(logits.as_subclass(Elsewhere))) == [slice(0, 512), slice(512, 600)]
    teacher, student, texts = llama(0), llama(1), documents([600])
    monkeypatch.setattr("evopress.fitness.head.CACHE_POSITIONS", CHUNK_POSITIONS)
    fitness = KL()
    fitness.prepare(teacher, texts)
    assert fitness.score(student, list(texts.items()))[0] == pytest.approx([naive_kl(teacher, student, texts[0])], rel=1e-5)


# Large vocabularies ---------------------------------------------------------------------------------------------------------------------


def test_a_large_vocabulary_takes_fewer_positions_at_once():
    for dtype in (torch.float32, torch.bfloat16):
        assert fitting(CHUNK_POSITIONS, 49_152, dtype) == CHUNK_POSITIONS
        assert fitting(PULL_POSITIONS, 49_152, dtype) == PULL_POSITIONS
    assert fitting(CHUNK_POSITIONS, 65_536, torch.float32) == CHUNK_POSITIONS
    assert fitting(CHUNK_POSITIONS, 65_537, torch.float32) == 511
    assert fitting(CHUNK_POSITIONS, 1_000_000, torch.float32) == 33
    assert fitting(CHUNK_POSITIONS, 1_000_000, torch.bfloat16) == 67
    assert fitting(CHUNK_POSITIONS, 1_000_000_000, torch.float32) == 1
    assert CHUNK_BYTES >= 128 * 2**20


class Largest(TorchDispatchMode):
    """Bytes of the largest tensor whose rows are as long as the vocabulary, output embeddings left out."""

    def __init__(self, *heads):
        super().__init__()
        self.vocabulary, self.bytes = len(heads[0].weight_VD), 0
        self.weights = {head.weight_VD.untyped_storage().data_ptr() for head in heads}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for made in out if isinstance(out, tuple | list) else (out,):
            rows = isinstance(made, torch.Tensor) and made.ndim and made.shape[-1] == self.vocabulary
            if rows and made.untyped_storage().data_ptr() not in self.weights:
                self.bytes = max(self.bytes, made.nbytes)
        return out


@pytest.mark.parametrize(("vocabulary", "length"), [(1_000, 1_400), (1_000_000, 8)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_largest_tensor_of_logits_does_not_grow_with_the_vocabulary(vocabulary, length, dtype, monkeypatch):
    limit = 10**7  # of a million tokens two positions in float32, five in bfloat16; of a thousand more than a chunk
    monkeypatch.setattr("evopress.fitness.head.CHUNK_BYTES", limit)
    teacher, student = (llama(seed, dtype, 8, vocabulary) for seed in (0, 1))
    texts = documents([length, length // 2], vocabulary)
    exact = {KL: lambda ids: naive_kl(teacher, student, ids), Perplexity: lambda ids: naive_nll(student, ids)}
    for fitness, expected in exact.items():
        made = fitness()
        made.prepare(teacher, texts)
        wanted = [expected(ids) for ids in texts.values()]
        for way in ("score", "backward"):
            with Largest(Head(teacher), Head(student)) as largest:
                values, _ = getattr(made, way)(student, list(texts.items()))
            assert 0 < largest.bytes <= limit
            assert values == pytest.approx(wanted, rel=1e-4 if dtype == torch.float32 else 2e-2, abs=1e-5)
