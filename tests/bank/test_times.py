"""What building a bank took: every variant's share, rebuilt ones, and lines that a kill cut short."""

from __future__ import annotations

from pathlib import Path

import pytest

from evopress.bank.times import note_seconds, spent_seconds

RECIPE = "r" * 64


def test_seconds_of_a_site_are_shared_by_its_variants(tmp_path: Path) -> None:
    assert spent_seconds(tmp_path, RECIPE, ["a"]) is None
    assert spent_seconds(tmp_path, RECIPE, []) == 0
    note_seconds(tmp_path / "bank", RECIPE, ["a", "b"], 3.0)
    note_seconds(tmp_path / "bank", RECIPE, ["c"], 0.25)
    assert spent_seconds(tmp_path / "bank", RECIPE, ["a", "c"]) == pytest.approx(1.75)
    assert spent_seconds(tmp_path / "bank", RECIPE, ["a", "d"]) is None
    assert spent_seconds(tmp_path / "bank", "q" * 64, ["a"]) is None


def test_a_rebuilt_variant_counts_once_and_a_cut_line_spoils_no_other(tmp_path: Path) -> None:
    note_seconds(tmp_path, RECIPE, ["a"], 5.0)
    (file,) = tmp_path.iterdir()
    file.write_text(file.read_text() + '{"keys": ["b"], "sec')
    note_seconds(tmp_path, RECIPE, ["a"], 2.0)
    assert spent_seconds(tmp_path, RECIPE, ["a"]) == 2.0
    assert spent_seconds(tmp_path, RECIPE, ["b"]) is None
