"""A file is written whole or not at all, and nothing stays beside it."""

from __future__ import annotations

from pathlib import Path

import pytest

from evopress.files import write_whole


@pytest.mark.parametrize("stop", [OSError(28, "full"), KeyboardInterrupt()])
def test_what_stops_a_write_leaves_the_old_file_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: BaseException) -> None:
    path = tmp_path / "kept.json"
    write_whole(path, b"old")

    def halt(_: int) -> None:
        raise stop

    monkeypatch.setattr("evopress.files.os.fsync", halt)
    with pytest.raises(type(stop)):
        write_whole(path, b"new")
    assert path.read_bytes() == b"old"
    assert [found.name for found in tmp_path.iterdir()] == ["kept.json"]
