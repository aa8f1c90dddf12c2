"""What earlier searches learnt and a later one may start from, newest first: of this model, or of one with the same sites.

Reads rows; decides nothing. Called by the store.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, Select, func, select
from sqlalchemy.orm import InstrumentedAttribute

from evopress.api import Profile
from evopress.store.catalog import layout_digest, load_profiles
from evopress.store.rows import ProfileRow
from evopress.store.schema import DocumentValues, Layouts, Profiles, Slices, Slopes, TokenSets, Trials

MOST_SLOPES, MOST_TRIALS = 200, 2000
"""Rows read, at most."""


@dataclass(frozen=True)
class Text:
    """What a trial was measured on, as of its token set: the name of the source, and the numbers of its documents (none: not known)."""

    source: str
    origins: frozenset[int]


@dataclass(frozen=True)
class RememberedSlopes:
    """A profile and what its backward pass told."""

    profile: Profile
    slopes: tuple[float, ...]
    text: Text


@dataclass(frozen=True)
class RememberedTrial:
    """A measured profile. weight: scored positions. slice: digest of the tokens. model, bank, numerics: as of a TrialKey."""

    profile: Profile
    fitness: float
    weight: float
    model: str
    bank: str
    numerics: str
    slice: str
    text: Text


def slopes_before(conn: Connection, sites: Sequence[str], fitness: str, before: float) -> list[RememberedSlopes]:
    """The newest stored slopes of profiles over exactly these sites, older than a time, newest first. One model's or another's."""
    query = _earlier(sites, fitness, before, Slopes.changes).join(Slopes, Slopes.trial_id == Trials.id).limit(MOST_SLOPES)
    return [RememberedSlopes(stored.profile, tuple(map(float, row.changes)), _text(row)) for row, stored in _read(conn, query)]


def trials_before(conn: Connection, sites: Sequence[str], fitness: str, before: float) -> list[RememberedTrial]:
    """The newest trials of profiles over exactly these sites, older than a time, newest first. One model's or another's."""
    weight = select(func.sum(DocumentValues.weight)).where(DocumentValues.trial_id == Trials.id).scalar_subquery().label("weight")
    return [
        RememberedTrial(stored.profile, row.mean, float(row.weight), stored.model_digest, stored.bank, row.numerics, row.slice, _text(row))
        for row, stored in _read(conn, _earlier(sites, fitness, before, weight).limit(MOST_TRIALS))
    ]


def _earlier(sites: Sequence[str], fitness: str, before: float, told: ColumnElement[Any] | InstrumentedAttribute[Any]) -> Select[Any]:
    """Trials on search text with their profile, slice and text, and one more column."""
    measured = (Trials.profile_id, Trials.mean, Trials.numerics)
    text = (Slices.digest.label("slice"), Slices.documents, TokenSets.source, TokenSets.origins)
    return (
        select(*measured, *text, told)
        .select_from(Trials)
        .join(Profiles, Profiles.id == Trials.profile_id)
        .join(Layouts, Layouts.id == Profiles.layout_id)
        .join(Slices, Slices.id == Trials.slice_id)
        .join(TokenSets, TokenSets.digest == Slices.token_set)
        .where(Layouts.digest == layout_digest(sites), Trials.fitness == fitness, Trials.created < before, TokenSets.role == "search")
        .order_by(Trials.created.desc(), Trials.id.desc())
    )


def _read(conn: Connection, query: Select[Any]) -> list[tuple[Row[Any], ProfileRow]]:
    rows = conn.execute(query).all()
    profiles = load_profiles(conn, [row.profile_id for row in rows])
    return [(row, profiles[row.profile_id]) for row in rows]


def _text(row: Row[Any]) -> Text:
    return Text(row.source, frozenset(row.origins[index] for index, _ in row.documents) if row.origins else frozenset())
