"""Small tasks in the words of a tiny tokenizer, and their scores computed by hand. Shared by the tests of tasks; not a test."""

import json
from pathlib import Path

import torch

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
