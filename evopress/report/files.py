"""Writing a result file whole or not at all, whatever it holds. Called by the modules that make such documents."""

from __future__ import annotations

import os
from pathlib import Path

from evopress.api import StorageError


def write_text(text: str, path: Path, hint: str) -> None:
    """Write beside the file, then put it in its place. hint: what to do when it cannot be written, which raises StorageError."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        raise StorageError(f"The result cannot be written to {path}: {error.strerror}.", hint) from error
