"""lm-eval scores against log-likelihoods computed by hand, where tasks come from, what errors say, and what must be left untouched."""

import json
import logging
import math
import os
import random
import socket
import statistics
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("lm_eval", reason="lm-eval is not installed (extra: tasks)")

from tiny import build

from evopress.api import MissingDependency, NotFound, NumericalError, UsageError
from evopress.fitness import tasks
from evopress.fitness.tasks import evaluate

WORDS = "the a cat dog sat ran on under mat tree big small red blue fish bird sings swims and then who what is it".split()  # noqa: SIM905
QUESTIONS = [
    {"query": "the cat sat on the", "choices": ["mat", "big red tree", "a"], "gold": 1},
    {"query": "what sings", "choices": ["the bird and the fish", "fish"], "gold": 0},
    {"query": "who swims ", "choices": ["a fish", "a small blue bird", "it", "dog"], "gold": 3},
    {"query": "is it big", "choices": ["it is", "then"], "gold": 1},
    {"query": "the dog ran under a tree and", "choices": ["sat", "sings the red cat"], "gold": 0},
    {"query": "blue\n", "choices": ["bird", "fish swims and swims"], "gold": 1},
]
CONTINUATIONS = [
    {"context": "the cat sat on the", "continuation": "mat"},
    {"context": "a bird ", "continuation": "sings"},
    {"context": "the dog and the cat", "continuation": "ran under"},
]


@pytest.fixture(scope="module")
def tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<s>", "<unk>"]
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate([*special, *WORDS])}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<s>", unk_token="<unk>")


@pytest.fixture(scope="module")
def model():
    return build("llama", vocab_size=3 + len(WORDS))


@pytest.fixture
def write(tmp_path):
    def write(rows, name="quiz.jsonl"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8")
        return str(path)

    return write


def yaml_task(folder: Path, rows, name="quiz", **changes):
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    config = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / f"{name}.data.jsonl")}, "cache_dir": str(folder / "cache")},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{query}}",
        "doc_to_choice": "choices",
        "doc_to_target": "gold",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        "metadata": {"version": 3.0},
    } | changes
    (folder / f"{name}.yaml").write_text(json.dumps(config))
    return folder


def loglikelihood(model, tokenizer, context, continuation):
    """(sum of log-probabilities, is it the greedy answer), one text at a time, in float64."""
    before, after = (tokenizer.encode(text, add_special_tokens=False) for text in (context, continuation))
    with torch.no_grad():
        log_p = model(torch.tensor([before + after])).logits[0].double().log_softmax(-1)
    rows = log_p[len(before) - 1 : len(before) + len(after) - 1]
    return float(sum(row[token] for row, token in zip(rows, after, strict=True))), rows.argmax(-1).tolist() == after


def expected(model, tokenizer, questions):
    acc, norm = [], []
    for row in questions:
        lls = [loglikelihood(model, tokenizer, row["query"], choice)[0] for choice in row["choices"]]
        per_character = [ll / len(choice) for ll, choice in zip(lls, row["choices"], strict=True)]
        acc.append(float(lls.index(max(lls)) == row["gold"]))
        norm.append(float(per_character.index(max(per_character)) == row["gold"]))
    return acc, norm


def by_metric(scores):
    return {score.metric: score for score in scores}


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


def test_a_task_folder_gives_name_version_and_filter(model, tokenizer, tmp_path):
    rows = [row for row in QUESTIONS if not row["query"].endswith((" ", "\n"))]
    folder = yaml_task(tmp_path / "mine", rows)
    (score,) = evaluate(model, tokenizer, ["quiz"], [folder])
    acc, _ = expected(model, tokenizer, rows)
    assert (score.task, score.metric, score.version, score.samples) == ("quiz", "acc", "3.0", len(rows))
    assert score.value == pytest.approx(statistics.mean(acc))


def test_a_task_that_fixes_its_examples_at_zero_keeps_them_and_says_so(model, tokenizer, tmp_path, caplog):
    folder = yaml_task(tmp_path / "mine", QUESTIONS, num_fewshot=0)
    (score,) = evaluate(model, tokenizer, ["quiz"], [folder], num_fewshot=2)
    assert score.shots == 0
    assert "task quiz fixes its examples in the prompt at 0, so num_fewshot=2 does not apply" in caplog.text


def test_several_tasks_from_several_places_in_one_call(model, tokenizer, tmp_path, write):
    folder = yaml_task(tmp_path / "mine", QUESTIONS)
    scores = evaluate(model, tokenizer, ["quiz", write(CONTINUATIONS, "next/test.jsonl"), "quiz"], [folder])
    assert sorted((score.task, score.metric) for score in scores) == [
        ("next/test.jsonl", "acc"),
        ("next/test.jsonl", "perplexity"),
        ("quiz", "acc"),
    ]


def test_a_group_of_local_tasks_has_a_score_over_all_documents(model, tokenizer, tmp_path, small_hub):
    folder = yaml_task(tmp_path / "mine", QUESTIONS[:2], "one")
    yaml_task(folder, QUESTIONS[2:], "two")
    group = {"group": "both", "task": ["one", "two"], "aggregate_metric_list": [{"metric": "acc", "weight_by_size": True}]}
    (folder / "both.yaml").write_text(json.dumps(group))
    found = {score.task: score for score in evaluate(model, tokenizer, ["both"], [folder])}
    assert set(found) == {"one", "two", "both"}
    assert found["both"].value == pytest.approx((2 * found["one"].value + 4 * found["two"].value) / 6)
    assert found["both"].samples == 6


@pytest.fixture
def small_hub(monkeypatch):
    """lm-eval's own tasks, but only its folder `arc`: indexing all of them takes half a minute."""
    import lm_eval.tasks

    arc, whole = Path(lm_eval.tasks.__file__).parent / "arc", tasks._index

    def index(harness, folders, hub):
        return whole(harness, [*([arc] if hub else []), *folders], hub=False)

    monkeypatch.setattr(tasks, "_index", index)


def test_a_hub_task_by_name(model, tokenizer, monkeypatch, small_hub):
    import datasets

    asked = []

    def load_dataset(path, name=None, **_):
        asked.append((path, name))
        rows = [
            {"question": row["query"], "choices": {"text": row["choices"], "label": list("ABCD"[: len(row["choices"])])},
             "answerKey": "ABCD"[row["gold"]]}
            for row in QUESTIONS
        ]  # fmt: skip
        return datasets.DatasetDict({split: datasets.Dataset.from_list(rows) for split in ("train", "validation", "test")})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    scores = evaluate(model, tokenizer, ["arc_easy"], num_fewshot=1)
    assert asked == [("allenai/ai2_arc", "ARC-Easy")]
    assert [(score.task, score.metric, score.samples, score.shots, score.version) for score in scores] == [
        ("arc_easy", "acc", 6, 1, "1.0"),
        ("arc_easy", "acc_norm", 6, 1, "1.0"),
    ]


def test_a_hub_task_without_network_says_what_to_do(model, tokenizer, monkeypatch, small_hub):
    import datasets

    def load_dataset(*_, **__):
        raise ConnectionError("Couldn't reach 'allenai/ai2_arc' on the Hub")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(NotFound, match=r"The data of task 'arc_easy' could not be fetched: ConnectionError: Couldn't reach") as caught:
        evaluate(model, tokenizer, ["arc_easy"])
    assert "HF_HUB_OFFLINE" in str(caught.value)
    assert "--tasks FILE.jsonl or --task-dir" in str(caught.value)


def test_an_unknown_task_lists_close_and_local_ones(model, tokenizer, tmp_path, small_hub):
    folder = yaml_task(tmp_path / "mine", QUESTIONS)
    with pytest.raises(UsageError, match=r"Unknown task 'arc_esay'\. Did you mean 'arc_easy'.*Local tasks: quiz\."):
        evaluate(model, tokenizer, ["arc_esay"], [folder])
    (folder / "broken.yaml").write_text("task: [")
    with pytest.raises(UsageError, match=r"Files without a readable task of their own: .*mine/broken\.yaml\."):
        evaluate(model, tokenizer, ["broken"], [folder])
    with pytest.raises(UsageError, match=r"Unknown task 'zzz'\. There are no local tasks \(--task-dir\)\."):
        evaluate(model, tokenizer, ["zzz"])


def test_a_yaml_file_without_its_data_is_not_found(model, tokenizer, tmp_path):
    folder = yaml_task(tmp_path / "mine", QUESTIONS)
    (folder / "quiz.data.jsonl").unlink()
    with pytest.raises(NotFound, match=r"The data of task 'quiz' could not be fetched: FileNotFoundError"):
        evaluate(model, tokenizer, ["quiz"], [folder])


def test_a_malformed_yaml_file_is_named(model, tokenizer, tmp_path):
    folder = yaml_task(tmp_path / "mine", QUESTIONS, output_type="nonsense")
    with pytest.raises(UsageError, match=r"Task 'quiz' cannot be loaded: .*lm-eval validate"):
        evaluate(model, tokenizer, ["quiz"], [folder])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], r"is empty: line 1 holds no object\. Write one object a line"),
        ([" ", ""], r"is empty"),
        ([QUESTIONS[0], "{'query': 1}"], r"Line 2 of .*quiz\.jsonl is not JSON"),
        ([QUESTIONS[0], "", "[1]"], r"Line 3 of .*quiz\.jsonl is not a question: it holds a list"),
        ([QUESTIONS[0], CONTINUATIONS[0]], r"Line 2 of .* is of another kind than the first"),
        ([{"query": "x", "choices": ["a", "b"]}], r"Line 1 of .* it holds the fields query, choices\. Write \{\"query\""),
        ([{"query": "x", "choices": ["a"], "gold": 0}], r"Line 1 of .* at least two choices"),
        ([{"query": "x", "choices": ["a", ""], "gold": 0}], r"Line 1 of .* has a choice that is empty"),
        ([{"query": "x", "choices": ["a", "b"], "gold": 2}], r"Line 1 of .* has gold 2 and 2 choices\. Allowed: 0 to 1\."),
        ([{"query": "x", "choices": ["a", "b"], "gold": -1}], r"Line 1 of .* has gold -1"),
        ([{"query": "x", "choices": ["a", "b"], "gold": True}], r"Line 1 of .* is not a question"),
        ([{"context": "x", "continuation": ""}], r"Line 1 of .* with a continuation"),
    ],
)
def test_a_malformed_jsonl_names_the_line(model, tokenizer, write, rows, message):
    with pytest.raises(UsageError, match=message):
        evaluate(model, tokenizer, [write(rows)])


def test_absent_files_folders_and_bad_options(model, tokenizer, tmp_path, write):
    with pytest.raises(NotFound, match=r"Task file .*none\.jsonl does not exist"):
        evaluate(model, tokenizer, [str(tmp_path / "none.jsonl")])
    with pytest.raises(UsageError, match=r"Task 'a/b\.yaml' is a YAML file\. Give its folder with --task-dir"):
        evaluate(model, tokenizer, ["a/b.yaml"])
    with pytest.raises(NotFound, match=r"Task folder .*none does not exist"):
        evaluate(model, tokenizer, ["quiz"], [tmp_path / "none"])
    with pytest.raises(UsageError, match="No task was given"):
        evaluate(model, tokenizer, [])
    with pytest.raises(UsageError, match="Option limit is 0; it must be a whole number of at least 1"):
        evaluate(model, tokenizer, [write(QUESTIONS)], limit=0)
    with pytest.raises(UsageError, match=r"Two task files are called a/test\.jsonl"):
        evaluate(model, tokenizer, [write(QUESTIONS, "x/a/test.jsonl"), write(QUESTIONS, "y/a/test.jsonl")])
    (tmp_path / "latin.jsonl").write_bytes(b'{"query": "\xff"}')
    with pytest.raises(UsageError, match="is not UTF-8 text"):
        evaluate(model, tokenizer, [str(tmp_path / "latin.jsonl")])


def test_without_lm_eval_the_error_names_the_extra(model, tokenizer, monkeypatch, write):
    for name in [name for name in sys.modules if name.partition(".")[0] == "lm_eval"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(MissingDependency, match=r"Install it: pip install 'evopress\[tasks\]'"):
        evaluate(model, tokenizer, [write(QUESTIONS)])


def test_nan_is_an_error_and_not_an_accuracy(tokenizer, write):
    model = build("llama")
    model.lm_head.weight.data[5] = math.nan
    with pytest.raises(NumericalError, match=r"log-likelihood of NaN on document 0 of task 'quiz\.jsonl'"):
        evaluate(model, tokenizer, [write(QUESTIONS)])


def test_a_perplexity_beyond_numbers_is_an_error(tokenizer, write):
    model = build("llama")
    model.lm_head.weight.data *= 100
    with pytest.raises(NumericalError, match=r"quiz\.jsonl"):
        evaluate(model, tokenizer, [write([{"context": "the", "continuation": " ".join(WORDS)}] * 2)])


def state_of_the_process(tokenizer):
    import datasets

    logger = logging.getLogger("lm_eval")
    return {
        "environment": dict(os.environ),
        "random": random.getstate(),
        "numpy": np.random.get_state()[1].tolist(),
        "torch": torch.get_rng_state().tolist(),
        "tokenizer": (tokenizer.pad_token, tokenizer("the cat")["input_ids"]),
        "log": (logger.level, logger.propagate, list(logger.handlers)),
        "counting": datasets.config.HF_UPDATE_DOWNLOAD_COUNTS,
    }


def test_nothing_global_changes_and_nothing_is_printed(model, tokenizer, write, capfd, caplog):
    before = state_of_the_process(tokenizer)
    assert tokenizer.pad_token is None
    evaluate(model, tokenizer, [write(QUESTIONS), write(CONTINUATIONS, "next.jsonl")], num_fewshot=1)
    assert state_of_the_process(tokenizer) == before
    assert capfd.readouterr() == ("", "")
    assert caplog.text == ""


def test_a_fresh_import_of_lm_eval_sets_no_environment_variable(monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "lm_eval"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delenv("HF_XET_HIGH_PERFORMANCE", raising=False)
    monkeypatch.setattr(tasks.importlib, "import_module", lambda name: __import__("lm_eval") and Everything())
    before = dict(os.environ)
    tasks._harness()
    assert dict(os.environ) == before


class Everything:
    """Stands in for the modules of lm-eval that cost seconds and set nothing."""

    evaluate = HFLM = TaskManager = None


def test_local_tasks_do_not_touch_the_network(model, tokenizer, tmp_path, write, monkeypatch):
    import datasets
    import huggingface_hub.constants

    asked = []

    def refuse(*address, **_):
        asked.append(address)
        raise OSError("no network in this test")

    for module in (datasets.config, huggingface_hub.constants):  # the tests run offline; a user does not
        monkeypatch.setattr(module, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    folder = yaml_task(tmp_path / "mine", QUESTIONS)
    assert len(evaluate(model, tokenizer, ["quiz", write(QUESTIONS), write(CONTINUATIONS, "next.jsonl")], [folder])) == 5
    assert asked == []


def test_a_real_task_file(model, tokenizer, shared_data):
    path = shared_data / "arc_easy" / "test.jsonl"
    found = by_metric(evaluate(model, tokenizer, [str(path)], limit=20))
    rows = [json.loads(line) for line in path.read_text().splitlines()[:20]]
    acc, norm = expected(model, tokenizer, rows)
    assert (found["acc"].task, found["acc"].samples) == ("arc_easy/test.jsonl", 20)
    assert found["acc"].value == pytest.approx(statistics.mean(acc))
    assert found["acc_norm"].value == pytest.approx(statistics.mean(norm))
