"""Numbers others reported, read from `reference.toml`. They go into their own table and are never mixed with measured ones.

Called by the run, so that SQL finds them in every store, and by the leaderboard.
"""

from __future__ import annotations

import tomllib
from importlib import resources

from evopress.store.rows import ReferenceRow
from evopress.store.store import Store


def reported_rows() -> list[ReferenceRow]:
    """Every number of `reference.toml`: one row per table cell and metric."""
    text = (resources.files("evopress.store") / "reference.toml").read_text(encoding="utf-8")
    rows = []
    for table in tomllib.loads(text)["table"]:
        for model, budget, method, *values in table["rows"]:
            if len(values) != len(table["metrics"]):
                raise ValueError(
                    f"reference.toml: {model}, {budget}, {method} has {len(values)} values for {len(table['metrics'])} metrics"
                )
            rows += [
                ReferenceRow(table["source"], model, method, budget, metric, float(value))
                for metric, value in zip(table["metrics"], values, strict=True)
            ]
    return rows


def load_reference(store: Store) -> int:
    """Put the reported numbers into a store that lacks some, replacing older ones of the same sources; returns how many there are."""
    rows = reported_rows()
    if set(rows) - set(store.reference_rows()):
        store.put_reference_rows(rows)
    return len(rows)
