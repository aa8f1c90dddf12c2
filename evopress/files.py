"""Writing a file whole or not at all. Called by the bank and the reports, which tell the user what to do when it fails."""

from __future__ import annotations

import contextlib
import os
import uuid
from pathlib import Path


def write_whole(path: Path, data: bytes) -> None:
    """Write beside the file, then put it in its place. Raises OSError; whatever stops it, nothing is left beside the file."""
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:  # Ctrl-C too
        with contextlib.suppress(OSError):  # what went wrong is raised, and may hold for this as well
            partial.unlink()
        raise
