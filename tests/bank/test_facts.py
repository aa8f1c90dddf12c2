"""Facts on disk: what is written comes back to the last bit; a damaged or half-written file is never taken for one."""

from __future__ import annotations

from pathlib import Path

import pytest

from evopress.api import StorageError
from evopress.bank.facts import Facts

ROWS = ((0.1, 1 / 3), (), (1e-300,))


def test_rows_come_back_to_the_last_bit(tmp_path: Path) -> None:
    facts = Facts(tmp_path)
    assert facts.get("key") is None
    facts.put("key", "spectra", ROWS, 2.5)
    assert facts.get("key") == ROWS
    assert facts.seconds("key") == 2.5
    assert facts.seconds("other") == 0
    assert [file.name for file in facts.path("key").parent.iterdir()] == ["key.json"]


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    facts = Facts(tmp_path)
    facts.put("key", "spectra", ROWS, 2.5)
    text = facts.path("key").read_text()
    for broken, why in ((text.replace("0.1", "0.2"), "seal"), (text[:-9], "JSONDecodeError"), ("{}", "KeyError")):
        facts.path("key").write_text(broken)
        with pytest.raises(StorageError, match=rf"key.json is damaged: .*{why}"):
            facts.get("key")


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "facts").write_text("a file")
    with pytest.raises(StorageError, match="cannot be written"):
        Facts(tmp_path).put("key", "spectra", ROWS, 2.5)
