"""Where tasks come from: .jsonl files, folders of YAML files, groups, and lm-eval's own list with its data on the hub."""

import json
import statistics
from pathlib import Path

import pytest
from task_cases import CONTINUATIONS, QUESTIONS, by_metric, expected, yaml_task
from tiny import build

from evopress.api import NotFound, UsageError
from evopress.fitness.tasks import evaluate

pytest.importorskip("lm_eval", reason="lm-eval is not installed (extra: tasks)")


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


EVERYDAY = Path(__file__).parent / "data" / "everyday.jsonl"
"""Ten questions of our own, so that a fresh clone runs everything between a file of English text and a score."""


@pytest.fixture(scope="module")
def english():
    """Questions, a tokenizer of their words, and a random model of that vocabulary."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    rows = [json.loads(line) for line in EVERYDAY.read_text().splitlines()]
    split = pre_tokenizers.Whitespace()
    texts = [text for row in rows for text in (row["query"], *row["choices"])]
    words = sorted({word for text in texts for word, _ in split.pre_tokenize_str(text)})
    made = Tokenizer(models.WordLevel({word: number for number, word in enumerate(["<s>", "<unk>", *words])}, unk_token="<unk>"))
    made.pre_tokenizer = split
    return (
        rows,
        PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", unk_token="<unk>"),
        build("llama", vocab_size=2 + len(words)),
    )


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_local_task_of_english_questions(english, tmp_path, kind):
    rows, tokenizer, model = english
    assert len(rows) == 10
    assert {row["gold"] for row in rows} == {0, 1, 2, 3}
    acc, norm = expected(model, tokenizer, rows)
    assert 0 < sum(acc) < len(acc)
    if kind == "file":
        found = by_metric(evaluate(model, tokenizer, [str(EVERYDAY)]))
        assert found["acc_norm"].value == pytest.approx(statistics.mean(norm))
    else:
        data = {"data_files": {"test": str(EVERYDAY)}, "cache_dir": str(tmp_path / "cache")}
        folder = yaml_task(tmp_path / "mine", rows, "everyday", dataset_kwargs=data)
        found = by_metric(evaluate(model, tokenizer, ["everyday"], [folder]))
    assert found["acc"].value == pytest.approx(statistics.mean(acc))
    assert (found["acc"].task, found["acc"].samples) == ("everyday.jsonl" if kind == "file" else "everyday", 10)


def test_a_real_task_file(model, tokenizer, shared_data):
    path = shared_data / "arc_easy" / "test.jsonl"
    found = by_metric(evaluate(model, tokenizer, [str(path)], limit=20))
    rows = [json.loads(line) for line in path.read_text().splitlines()[:20]]
    acc, norm = expected(model, tokenizer, rows)
    assert (found["acc"].task, found["acc"].samples) == ("arc_easy/test.jsonl", 20)
    assert found["acc"].value == pytest.approx(statistics.mean(acc))
    assert found["acc_norm"].value == pytest.approx(statistics.mean(norm))
