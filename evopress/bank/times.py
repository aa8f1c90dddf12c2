"""What a bank took to build, kept beside it: one line a site, appended when the site is done. Builds nothing. Called by the workbench.

A kill loses the seconds of one site at most. A variant that is built again counts with the seconds of its last time.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path


def note_seconds(root: Path, recipe: str, keys: Sequence[str], seconds: float) -> None:
    """Append what the variants of one site took together. recipe: digest. keys: of the variants."""
    file = _file(root, recipe)
    file.parent.mkdir(parents=True, exist_ok=True)
    # A line of its own even after one that a kill cut short.
    line = "\n" + json.dumps({"keys": list(keys), "seconds": round(seconds, 6)}) + "\n"
    with file.open("a", encoding="utf-8") as out:
        out.write(line)


def spent_seconds(root: Path, recipe: str, keys: Iterable[str]) -> float | None:
    """Seconds that these variants took; None where that is not known of every one of them (a bank of an older version, say)."""
    file, took = _file(root, recipe), dict[str, float]()
    if file.exists():
        for line in file.read_text(encoding="utf-8").splitlines():
            try:
                noted = json.loads(line)
                took |= {key: noted["seconds"] / len(noted["keys"]) for key in noted["keys"]}
            except (ValueError, KeyError, TypeError):  # empty, or cut short by a kill
                continue
    found = [took.get(key) for key in keys]
    known = [seconds for seconds in found if seconds is not None]
    return sum(known) if len(known) == len(found) else None


def _file(root: Path, recipe: str) -> Path:
    return root / f"{recipe[:16]}.seconds.jsonl"
