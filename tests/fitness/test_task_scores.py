"""lm-eval scores of local tasks against log-likelihoods computed by hand: choices, continuations, limits, examples, white space."""

import math
import random
import statistics
from dataclasses import replace

import pytest
import torch
from task_cases import CONTINUATIONS, QUESTIONS, WORDS, by_metric, expected, loglikelihood
from tiny import build

from evopress.api import UsageError
from evopress.fitness import tasks
from evopress.fitness.tasks import evaluate

pytest.importorskip("lm_eval", reason="lm-eval is not installed (extra: tasks)")


def test_choices_are_scored_as_by_hand(model, tokenizer, write):
    acc, norm = expected(model, tokenizer, QUESTIONS)
    assert 0 < sum(acc) < len(acc), "the questions must not all fall on one side"
    assert acc != norm, "the questions must tell the two metrics apart"
    found = by_metric(evaluate(model, tokenizer, [write(QUESTIONS)]))
    assert set(found) == {"acc", "acc_norm"}
    for metric, values in (("acc", acc), ("acc_norm", norm)):
        score = found[metric]
        assert score.value == pytest.approx(statistics.mean(values))
        assert score.stderr == pytest.approx(statistics.stdev(values) / math.sqrt(len(values)))
        assert (score.task, score.filter, score.samples, score.shots) == ("quiz.jsonl", "none", len(QUESTIONS), 0)
        assert score.version.startswith("sha256:")


def test_continuations_are_scored_as_by_hand(model, tokenizer, write):
    pairs = [loglikelihood(model, tokenizer, row["context"], row["continuation"]) for row in CONTINUATIONS]
    found = by_metric(evaluate(model, tokenizer, [write(CONTINUATIONS)]))
    assert found["perplexity"].value == pytest.approx(math.exp(-statistics.mean(ll for ll, _ in pairs)), rel=1e-4)
    assert found["perplexity"].stderr > 0
    assert found["acc"].value == statistics.mean(greedy for _, greedy in pairs)
    assert found["acc"].samples == 3


def test_the_greedy_continuation_counts_as_right(model, tokenizer, write):
    with torch.no_grad():
        best = int(model(torch.tensor([tokenizer.encode("the cat")])).logits[0, -1].argmax())
    rows = [{"context": "the cat", "continuation": tokenizer.convert_ids_to_tokens(best)}, {"context": "the cat", "continuation": "on"}]
    assert WORDS.index("on") + 3 != best
    assert by_metric(evaluate(model, tokenizer, [write(rows)]))["acc"].value == 0.5


def test_the_live_model_is_scored_not_a_copy_of_its_past(tokenizer, write):
    model, path = build("llama", seed=1, vocab_size=3 + len(WORDS)), write(CONTINUATIONS)
    first = by_metric(evaluate(model, tokenizer, [path]))["perplexity"]
    model.model.layers[1].mlp.down_proj.weight.data.zero_()
    second = by_metric(evaluate(model, tokenizer, [path]))["perplexity"]
    lls = [loglikelihood(model, tokenizer, row["context"], row["continuation"])[0] for row in CONTINUATIONS]
    assert second.value == pytest.approx(math.exp(-statistics.mean(lls)), rel=1e-4) != first.value
    assert second.environment["documents"] == first.environment["documents"]


def test_equal_calls_give_equal_scores_whatever_the_batch(model, tokenizer, write):
    path = write(QUESTIONS)
    one, again, other = (evaluate(model, tokenizer, [path], batch_size=size) for size in (4, 4, 1))
    assert one == again
    assert [(score.value, score.stderr, score.samples) for score in one] == [(score.value, score.stderr, score.samples) for score in other]


def test_limit_takes_the_first_documents(model, tokenizer, write):
    limited = evaluate(model, tokenizer, [write(QUESTIONS)], limit=4)
    acc, _ = expected(model, tokenizer, QUESTIONS[:4])
    assert by_metric(limited)["acc"].value == pytest.approx(statistics.mean(acc))
    assert {score.samples for score in limited} == {4}
    full = evaluate(model, tokenizer, [write(QUESTIONS)])
    alone = evaluate(model, tokenizer, [write(QUESTIONS[:4], "four.jsonl")])
    assert limited[0].environment["documents"] == alone[0].environment["documents"] != full[0].environment["documents"]


def test_examples_in_the_prompt_are_counted_and_change_the_documents(model, tokenizer, write):
    path = write(QUESTIONS)
    none, two, again = (evaluate(model, tokenizer, [path], num_fewshot=shots) for shots in (0, 2, 2))
    assert ({score.shots for score in none}, {score.shots for score in two}) == ({0}, {2})
    assert two == again
    assert two[0].environment["documents"] != none[0].environment["documents"]


def test_no_question_is_an_example_for_itself(model, tokenizer, write, monkeypatch):
    seen = []
    monkeypatch.setattr(tasks, "_check_numbers", lambda task, samples: seen.extend(samples))
    evaluate(model, tokenizer, [write(QUESTIONS[:2])], num_fewshot=1)
    first, second = "the cat sat on the", "what sings"
    answers = ["big red tree", "the bird and the fish"]
    assert seen[0]["arguments"][0] == (f"{second} {answers[1]}\n\n{first} ", "mat")
    assert seen[1]["arguments"][1] == (f"{first} {answers[0]}\n\n{second} ", "fish")
    seen.clear()
    evaluate(model, tokenizer, [write(QUESTIONS)], num_fewshot=5)
    for row, sample in zip(QUESTIONS, seen, strict=True):
        assert [sample["arguments"][0][0].count(other["query"]) for other in QUESTIONS] == [1] * 6, row
    with pytest.raises(UsageError, match=r"Option num_fewshot is 2, and .* has 2 questions\..*at most 1"):
        evaluate(model, tokenizer, [write(QUESTIONS[:2])], num_fewshot=2)


def test_white_space_between_the_parts_is_scored_once(model, write):
    """With a token a character: one space is put in, none where there is white space already, and acc_norm does not count it."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = Tokenizer(models.WordLevel({c: i for i, c in enumerate("? \nabcdefghijklmnopqrst")}, unk_token="?"))
    letters.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    letters.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split("\n", "isolated"), letters.pre_tokenizer])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=letters, unk_token="?", eos_token="?")
    rows = [{"context": "the cat", "continuation": "sat"}, {"context": "a dog\n", "continuation": "ran on"}]
    texts = [("the cat", " sat"), ("a dog", "\nran on")]
    assert tokenizer.encode("a dog\n") == [4 - 1, 1, 6, 17, 9, 2]
    lls = [loglikelihood(model, tokenizer, *pair)[0] for pair in texts]
    found = by_metric(evaluate(model, tokenizer, [write(rows)]))
    assert found["perplexity"].value == pytest.approx(math.exp(-statistics.mean(lls)), rel=1e-4)

    generator = random.Random(0)
    words = ["at", "bold", "crane", "d", "effect", "frost", "go", "hat"]
    questions = [{"query": "is it", "choices": generator.sample(words, 3), "gold": 0} for _ in range(30)]
    norm = []
    for row in questions:
        scores = [loglikelihood(model, tokenizer, row["query"], f" {choice}")[0] / len(choice) for choice in row["choices"]]
        norm.append(scores.index(max(scores)) == 0)
    assert by_metric(evaluate(model, tokenizer, [write(questions)]))["acc_norm"].value == pytest.approx(statistics.mean(norm))


def test_text_that_looks_like_something_else_stays_text(model, tokenizer, write, monkeypatch):
    seen = []
    monkeypatch.setattr(tasks, "_check_numbers", lambda task, samples: seen.extend(sample["arguments"] for sample in samples))
    rows = [{"context": "2008-11-04", "continuation": "2009-01-01"}, {"context": "", "continuation": "42"},
            {"context": "{{cat}} \u2028", "continuation": "[1, 2]"}]  # fmt: skip
    evaluate(model, tokenizer, [write(rows), write([{"query": "1 ", "choices": ["2008-11-04", "2009-01-01"], "gold": 0}], "dates.jsonl")])
    assert seen[:3] == [[("2008-11-04 ", "2009-01-01")], [("", "42")], [("{{cat}} \u2028", "[1, 2]")]]
    assert seen[3] == [("1 ", "2008-11-04"), ("1 ", "2009-01-01")]


def test_a_stitched_profile_is_scored_and_left_as_it_is(tokenizer, write):
    from evopress.api import DENSE, DROP, Profile
    from evopress.models.sites import find_sites
    from evopress.models.stitch import Stitcher

    model = build("llama_tied", vocab_size=3 + len(WORDS))
    sites = [replace(site, parent=None) for site in find_sites(model).of_kind("mlp")]
    stitcher = Stitcher(model, sites)
    stitcher.set(Profile.of({site.name: DROP if i == 1 else DENSE for i, site in enumerate(sites)}), lambda *_: None)
    parameters = {name: (id(each), each.data_ptr()) for name, each in model.named_parameters(remove_duplicate=False)}
    found = by_metric(evaluate(model, tokenizer, [write(CONTINUATIONS)]))
    lls = [loglikelihood(model, tokenizer, row["context"], row["continuation"])[0] for row in CONTINUATIONS]
    assert found["perplexity"].value == pytest.approx(math.exp(-statistics.mean(lls)), rel=1e-4)
    assert {name: (id(each), each.data_ptr()) for name, each in model.named_parameters(remove_duplicate=False)} == parameters
