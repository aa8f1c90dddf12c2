"""What is said of task files that are malformed or absent, of bad options, and of models that give no numbers."""

import math
import sys

import pytest
from task_cases import CONTINUATIONS, QUESTIONS, WORDS
from tiny import build

from evopress.api import MissingDependency, NotFound, NumericalError, UsageError
from evopress.fitness.tasks import evaluate

pytest.importorskip("lm_eval", reason="lm-eval is not installed (extra: tasks)")


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
