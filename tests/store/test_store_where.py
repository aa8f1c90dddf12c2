"""The filter language: against Python's own evaluation of random expressions, and on anything at all it either parses or says why not."""

from __future__ import annotations

import operator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evopress.api import UsageError
from evopress.store.where import parse_where

COLUMNS = ("bytes", "kl", "label", "task-score")
SIGNS = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge, "=": operator.eq, "==": operator.eq, "!=": operator.ne}

numbers = st.sampled_from(["bytes", "kl", "task-score"]) | st.integers(-3, 3).map(float) | st.floats(-1e9, 1e9, allow_nan=False)
texts = st.just("label") | st.sampled_from(["'evolve'", '"uniform"', "''"])
comparisons = st.tuples(numbers, st.sampled_from(sorted(SIGNS)), numbers) | st.tuples(texts, st.sampled_from(["=", "!=", "<"]), texts)
trees = st.recursive(
    comparisons,
    lambda inner: st.tuples(st.just("not"), inner) | st.tuples(st.sampled_from(["and", "or"]), st.lists(inner, min_size=2, max_size=3)),
    max_leaves=8,
)
rows = st.fixed_dictionaries(
    {
        "bytes": st.none() | st.integers(-3, 3).map(float),
        "kl": st.none() | st.floats(-5, 5),
        "task-score": st.integers(-3, 3).map(float),
        "label": st.none() | st.sampled_from(["evolve", "uniform", ""]),
    }
)


def _render(tree: Any) -> str:
    if tree[0] == "not":
        return f"not ({_render(tree[1])})"
    if tree[0] in ("and", "or"):
        return f" {tree[0]} ".join(f"({_render(part)})" for part in tree[1])
    left, sign, right = tree
    return f"{left}{sign}{right}" if len(str(left)) % 2 else f"{left} {sign}  {right}"


def _value(term: Any, row: dict[str, Any]) -> Any:
    if isinstance(term, float):
        return term
    return term[1:-1] if term[0] in "'\"" or not term else row[term]


def _evaluate(tree: Any, row: dict[str, Any]) -> bool:
    if tree[0] == "not":
        return not _evaluate(tree[1], row)
    if tree[0] in ("and", "or"):
        return {"and": all, "or": any}[tree[0]](_evaluate(part, row) for part in tree[1])
    a, b = _value(tree[0], row), _value(tree[2], row)
    return a is not None and b is not None and bool(SIGNS[tree[1]](a, b))


@settings(max_examples=200, deadline=None)
@given(trees, rows)
def test_a_filter_means_what_python_means(tree: Any, row: dict[str, Any]) -> None:
    assert parse_where(_render(tree), COLUMNS)(row) is _evaluate(tree, row)


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="blabel ytskn()<>=!'\"0123456789.eE+-_ador;*/%\n", max_size=40) | st.text(max_size=20))
def test_any_text_parses_or_is_refused_with_a_usage_error(text: str) -> None:
    try:
        keep = parse_where(text, COLUMNS)
    except UsageError:
        return
    assert keep({"bytes": 1.0, "kl": None, "label": "x", "task-score": 2.0}) in (True, False)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("kl<1 or kl<1 and kl>1", True),  # `and` binds tighter than `or`
        ("not kl<1 or kl<1", True),  # `not` binds tighter than both
        ("bytes<70e6", True),
        ("bytes<60MiB", False),
        ("bytes = 63MB", True),
        ("bytes<= 0.063GB", True),
        ("bytes==63000000 and bytes!=64MB", True),
        ("-1<kl", True),
        (".5=kl", True),
        ("LABEL='x'", None),
        ("label='evolve'", True),
        ("label=1", False),
        ("label!=1", True),
        ("NOT label='a' AND kl<1", True),
    ],
)
def test_examples(text: str, expected: bool | None) -> None:
    row = {"bytes": 63e6, "kl": 0.5, "label": "evolve", "task-score": 0.0}
    if expected is None:
        with pytest.raises(UsageError, match=r"Unknown column 'LABEL' in filter .* Did you mean|Unknown column 'LABEL'"):
            parse_where(text, COLUMNS)
    else:
        assert parse_where(text, COLUMNS)(row) is expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "Cannot read filter '': it is empty (character 1)."),
        ("   ", "it is empty"),
        ("kl", "expected a comparison (< <= > >= = !=) (character 3)."),
        ("kl<", "it ends where a column or a value is expected"),
        ("kl<1 bytes<2", "expected 'and' or 'or' before 'bytes' (character 6)."),
        ("1<kl<2", "expected 'and' or 'or' before '<'"),
        ("(kl<1", "a ')' is missing"),
        ("kl<1)", "before ')'"),
        ("kl<'a", 'cannot read "\'a"'),
        ("kl<1;--", "cannot read ';--'"),
        ("__import__('os')", "Unknown column '__import__'"),
        ("kl<1TB", "Unknown unit 'TB'"),
        ("bites<1", "Unknown column 'bites' in filter 'bites<1'. Did you mean 'bytes'? Known: bytes, kl, label, task-score."),
        ("(" * 60 + "kl<1" + ")" * 60, "it is nested deeper than 50"),
        ("not " * 60 + "kl<1", "it is nested deeper than 50"),
        ("kl<1 or " * 400 + "kl<1", "characters long. At most 2,000 are allowed."),
    ],
)
def test_what_is_wrong_is_said(text: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_where(text, COLUMNS)
    assert message in str(caught.value)
