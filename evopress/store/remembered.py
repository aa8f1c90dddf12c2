"""What earlier searches learnt and a later one may start from: stored slopes, newest first, of this model or of one with the same sites.

Reads rows; decides nothing. Called by the store.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, select

from evopress.api import Profile
from evopress.store.catalog import layout_digest, load_profiles
from evopress.store.schema import Layouts, Profiles, Slices, Slopes, TokenSets, Trials

NEWEST = 200
"""Rows read, at most."""


@dataclass(frozen=True)
class RememberedSlopes:
    """A profile and what its backward pass told. source, origins: of the text it was measured on, as of a token set."""

    profile: Profile
    slopes: tuple[float, ...]
    source: str
    origins: frozenset[int]


def slopes_before(conn: Connection, sites: Sequence[str], fitness: str, before: float) -> list[RememberedSlopes]:
    """The newest stored slopes of profiles over exactly these sites, older than a time, newest first. One model's or another's."""
    query = (
        select(Profiles.id, Slopes.changes, Slices.documents, TokenSets.source, TokenSets.origins)
        .select_from(Slopes)
        .join(Trials, Trials.id == Slopes.trial_id)
        .join(Profiles, Profiles.id == Trials.profile_id)
        .join(Layouts, Layouts.id == Profiles.layout_id)
        .join(Slices, Slices.id == Trials.slice_id)
        .join(TokenSets, TokenSets.digest == Slices.token_set)
        .where(Layouts.digest == layout_digest(sites), Trials.fitness == fitness, Trials.created < before, TokenSets.role == "search")
        .order_by(Trials.created.desc(), Trials.id.desc())
        .limit(NEWEST)
    )
    rows = conn.execute(query).all()
    profiles = load_profiles(conn, [row.id for row in rows])
    return [
        RememberedSlopes(
            profiles[row.id].profile,
            tuple(float(change) for change in row.changes),
            row.source,
            frozenset(row.origins[index] for index, _ in row.documents) if row.origins else frozenset(),
        )
        for row in rows
    ]
