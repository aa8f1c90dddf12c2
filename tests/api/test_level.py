"""Levels and method specifications: printing, parsing, and the errors for what cannot be read."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evopress.api import Level, UsageError, parse_method

WORDS = st.from_regex(r"[a-z][a-z0-9_\-]{0,8}", fullmatch=True).filter(lambda word: word not in ("true", "false"))
VALUES = st.one_of(st.integers(-9999, 9999), st.booleans(), st.floats(allow_nan=False, allow_infinity=False), WORDS)
KEYS = st.from_regex(r"[a-z_][a-z0-9_]{0,8}", fullmatch=True)


@given(WORDS, st.dictionaries(KEYS, VALUES, max_size=4))
def test_a_level_parses_what_it_prints(method: str, options: dict[str, object]) -> None:
    level = Level.of(method, **options)  # type: ignore[arg-type]
    again = Level.parse(str(level))
    assert again == level
    assert [type(value) for _, value in again.options] == [type(value) for _, value in level.options]


def test_level_text() -> None:
    assert str(Level.of("gptq", bits=3, group=64)) == "gptq(bits=3,group=64)"
    assert str(Level("drop")) == "drop"
    assert Level.parse(" gptq( bits = 3 , act_order = true ) ") == Level.of("gptq", bits=3, act_order=True)
    assert Level.of("gptq", bits=3).option("bits") == 3


@pytest.mark.parametrize("word", ["inf", "nan", "infinity", "1_000"])
def test_words_that_python_takes_for_numbers_stay_words(word: str) -> None:
    assert Level.parse(f"m(kind={word})").option("kind") == word


@pytest.mark.parametrize("text", ["", "3bit", "gptq(bits)", "gptq(bits=)", "gptq(=3)", "gptq(bits=3", "gptq bits=3"])
def test_malformed_levels_are_usage_errors(text: str) -> None:
    with pytest.raises(UsageError, match="Cannot read"):
        Level.parse(text)


def test_method_specifications_list_values() -> None:
    assert parse_method("gptq(bits=2..5,group=64)") == ("gptq", {"bits": (2, 3, 4, 5), "group": 64})
    assert parse_method("sparsegpt(sparsity=0.5|0.6)") == ("sparsegpt", {"sparsity": (0.5, 0.6)})
    assert parse_method("drop") == ("drop", {})
    with pytest.raises(UsageError, match="Empty range"):
        parse_method("gptq(bits=5..2)")


def test_slips_of_the_hand_are_told() -> None:
    with pytest.raises(UsageError, match=r"Option 'bits' stands twice in method 'gptq\(bits=2,bits=4\)'\. Give it once; several values as"):
        parse_method("gptq(bits=2,bits=4)")
    with pytest.raises(UsageError, match=r"has 99,999,999,999 values\. At most 1,000 are allowed"):
        parse_method("gptq(bits=2..100000000000)")
