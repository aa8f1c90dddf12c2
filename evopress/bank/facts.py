"""Facts of sites on disk, beside the variants of the bank: rows of numbers, one row a site, written whole and checked when read.

Does not compute them (`evopress.knowledge` does) and does not count them to the bank's quota: a fact takes some hundred bytes a site, only
spectra more. Called by `evopress.knowledge`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from evopress.api import StorageError
from evopress.bank.bank import keep

Rows = tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Facts:
    """The facts kept under the folder of a bank."""

    root: Path

    def path(self, key: str) -> Path:
        """Where a fact lies. key: digest of what determines it."""
        return self.root / "facts" / f"{key}.json"

    def get(self, key: str) -> Rows | None:
        """The rows, None where there are none. Raises StorageError naming the file when it is damaged."""
        try:
            kept = json.loads(self.path(key).read_text(encoding="utf-8"))
            rows = tuple(tuple(map(float, row)) for row in kept["rows"])
            sealed = kept["seal"] == _seal(rows)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise self._damaged(key, f"{type(error).__name__}: {error}") from error
        if not sealed:
            raise self._damaged(key, "its numbers do not match its seal")
        return rows

    def seconds(self, key: str) -> float:
        """What computing a fact took; 0 where there is none. Raises StorageError naming the file when it is damaged."""
        try:
            return float(json.loads(self.path(key).read_text(encoding="utf-8"))["seconds"])
        except FileNotFoundError:
            return 0.0
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise self._damaged(key, f"{type(error).__name__}: {error}") from error

    def put(self, key: str, about: str, rows: Sequence[Sequence[float]], seconds: float) -> None:
        """Write rows. about: what they are, for who opens the file. seconds: what computing them took.

        Raises StorageError when the disk is full or cannot be written.
        """
        kept = tuple(tuple(map(float, row)) for row in rows)
        data = json.dumps({"about": about, "seconds": round(seconds, 6), "seal": _seal(kept), "rows": kept})
        keep(self.root, self.path(key), data.encode())

    def _damaged(self, key: str, why: str) -> StorageError:
        return StorageError(
            f"The file {self.path(key)} is damaged: {why}.", "Delete that file and run the same command again to compute it anew."
        )


def _seal(rows: Rows) -> str:
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()
