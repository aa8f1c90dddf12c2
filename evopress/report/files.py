"""Writing a result file whole or not at all, whatever it holds. Called by the modules that make such documents."""

from __future__ import annotations

from pathlib import Path

from evopress.api import StorageError
from evopress.files import write_whole


def write_text(text: str, path: Path, hint: str) -> None:
    """Write the text in UTF-8. hint: what to do when it cannot be written, which raises StorageError."""
    try:
        write_whole(path, text.encode())
    except OSError as error:
        raise StorageError(f"The result cannot be written to {path}: {error.strerror}.", hint) from error
