"""Study files and keys: what is refused, in which words, and what stays the same study."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from evopress.api import NotFound, UsageError
from evopress.api.study import Study

WRONG: list[tuple[str, Any, str, str]] = [
    ("stop_tokens", True, "is true", "a whole number of at least 1"),
    ("stop_generations", 0, "is 0", "a whole number of at least 1"),
    ("stop_seconds", 0, "is 0", "a number above 0"),
    ("stop_seconds", float("nan"), "is nan", "a number above 0"),
    ("stop_seconds", float("inf"), "is inf", "a number above 0"),
    ("seed", -1, "is -1", "a whole number of at least 0"),
    ("seed", "7", "is '7'", "a whole number of at least 0"),
    ("seed", 2**63, "is 9223372036854775808", "a whole number of at least 0 and below 9223372036854775808"),
    ("window", 4, "is 4", "a whole number of at least 8"),
    ("window", 16.5, "is 16.5", "a whole number of at least 8"),
    ("calibration_tokens", [3], "is [3]", "a whole number of at least 2"),
    ("text", 3, "is 3", "a text"),
    ("fitness", None, "is None", "a text"),
    ("name", "no spaces", "is 'no spaces'", "letters, digits, '.', '_' and '-', the first a letter or digit, at most 64"),
    ("name", "new\nline\n", "is 'new\\nline\\n'", "letters, digits"),
    ("methods", [3], "holds 3", "a list of texts, at least one"),
    ("methods", [], "is ()", "a list of texts, at least one"),
    ("budgets", 3.0, "is 3.0", "a list of texts, at least one"),
    ("links", {"q": 1}, "is {'q': 1}", "a list of texts"),
]


@pytest.mark.parametrize(("key", "value", "came", "allowed"), WRONG, ids=[f"{key}={value!r}" for key, value, _, _ in WRONG])
def test_a_wrong_value_names_key_place_value_and_what_is_allowed(key: str, value: Any, came: str, allowed: str) -> None:
    with pytest.raises(UsageError) as caught:
        Study.make({key: value}, "mine.toml")
    assert caught.value.message == f"Key {key!r} in mine.toml {came}, which is not allowed."
    assert caught.value.hint.startswith(f"Give {allowed}")
    assert caught.value.hint.endswith(f": {Study.model_fields[key].description}.")


@pytest.mark.parametrize("key", list(Study.model_fields))
def test_no_key_lets_a_word_of_the_library_through(key: str) -> None:
    for value in (object(), b"", {}, float("nan"), [[]]):
        with pytest.raises(UsageError) as caught:
            Study.make({key: value})
        for word in ("Input", "validation", "pydantic", "instance"):
            assert word not in str(caught.value)


def test_long_values_are_cut() -> None:
    with pytest.raises(UsageError) as caught:
        Study.make({"name": "x" * 5000})
    assert len(str(caught.value)) < 400


def test_values_that_mean_the_same_are_the_same_study() -> None:
    made = Study.make({"methods": "drop", "budgets": ["bits=3"], "stop_seconds": 5})
    assert made.methods == ("drop",)
    assert made.stops == {"stop_seconds": 5.0}
    again = Study.make({**json.loads(json.dumps(made.identity)), "stop_tokens": 7})
    assert again.digest == made.digest
    assert (made.is_named_by_digest, again.name) == (True, made.name)
    assert not Study.make({"name": "mine"}).is_named_by_digest


def test_a_folder_is_no_study_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as folder:
        Study.read(tmp_path)
    assert str(folder.value) == (
        f"{tmp_path} is a folder, not a study file. Give a .toml file, or the folder of a model with -m {tmp_path}."
    )
    with pytest.raises(NotFound, match=r"Study file nightly does not exist\. .* evopress search resume NAME\."):
        Study.read(Path("nightly"))


def test_a_file_whose_name_is_none_for_a_study(tmp_path: Path) -> None:
    file = tmp_path / "my study.toml"
    file.write_text("seed = 1\n")
    with pytest.raises(
        UsageError, match=r"The name 'my study' of study file .* is none for a study\. Rename the file, or give it a key name"
    ):
        Study.read(file)
    file.write_text('name = "mine"\n')
    assert Study.read(file).name == "mine"


def test_a_byte_order_mark_is_read_over(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_bytes(b"\xef\xbb\xbf" + b"seed = 3\n")
    assert (Study.read(tmp_path / "mine.toml").name, Study.read(tmp_path / "mine.toml").seed) == ("mine", 3)
    (tmp_path / "bad.toml").write_bytes(b"seed = \xff\n")
    with pytest.raises(UsageError, match=r"bad\.toml is not TOML"):
        Study.read(tmp_path / "bad.toml")
