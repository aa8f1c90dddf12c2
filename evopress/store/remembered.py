"""What earlier searches learnt and a later one may start from, newest first: of this model, or of one with the same sites.

Reads rows; decides nothing. Called by the store.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, Select, func, select
from sqlalchemy.orm import InstrumentedAttribute

from evopress.api import Profile, Site
from evopress.store.catalog import alike, layout_digest, load_profiles
from evopress.store.rows import ProfileRow
from evopress.store.schema import DocumentValues, Layouts, Profiles, Slices, Slopes, Trials

PAGE = 500
"""Rows read at a time."""
Accept = Callable[[Profile], bool]


@dataclass(frozen=True)
class Earlier:
    """Which trials are wanted.

    sites: of the model; a model with the same names, kinds and shapes counts as well. over: names of the sites that profiles are over.
    before: a time. token_sets: digests of those that may have been measured on. accept: which profiles. most: so many.
    """

    sites: Sequence[Site]
    over: Sequence[str]
    fitness: str
    before: float
    token_sets: Collection[str]
    accept: Accept
    most: int


@dataclass(frozen=True)
class RememberedSlopes:
    """A profile and what its backward pass told."""

    profile: Profile
    slopes: tuple[float, ...]


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


def slopes_before(conn: Connection, wanted: Earlier) -> list[RememberedSlopes]:
    """The newest stored slopes of earlier trials, newest first."""
    query = _trials(conn, wanted, Slopes.changes).join(Slopes, Slopes.trial_id == Trials.id)
    return [RememberedSlopes(stored.profile, tuple(map(float, row.changes))) for row, stored in _read(conn, query, wanted)]


def trials_before(conn: Connection, wanted: Earlier) -> list[RememberedTrial]:
    """The newest earlier trials, newest first."""
    weight = select(func.sum(DocumentValues.weight)).where(DocumentValues.trial_id == Trials.id).scalar_subquery().label("weight")
    return [
        RememberedTrial(stored.profile, row.mean, float(row.weight), stored.model_digest, stored.bank, row.numerics, row.slice)
        for row, stored in _read(conn, _trials(conn, wanted, weight), wanted)
    ]


def _trials(conn: Connection, wanted: Earlier, told: ColumnElement[Any] | InstrumentedAttribute[Any]) -> Select[Any]:
    """The trials with their profile and slice, and one more column."""
    return (
        select(Trials.profile_id, Trials.mean, Trials.numerics, Slices.digest.label("slice"), told)
        .select_from(Trials)
        .join(Profiles, Profiles.id == Trials.profile_id)
        .join(Layouts, Layouts.id == Profiles.layout_id)
        .join(Slices, Slices.id == Trials.slice_id)
        .where(Layouts.digest == layout_digest(wanted.over), Profiles.model_id.in_(alike(conn, wanted.sites)))
        .where(Trials.fitness == wanted.fitness, Trials.created < wanted.before, Slices.token_set.in_(wanted.token_sets))
        .order_by(Trials.created.desc(), Trials.id.desc())
    )


def _read(conn: Connection, query: Select[Any], wanted: Earlier) -> Iterator[tuple[Row[Any], ProfileRow]]:
    """Rows with their profiles, as many as are wanted of those that are accepted; a page at a time, for most may be of other methods."""

    def accepted() -> Iterator[tuple[Row[Any], ProfileRow]]:
        start = 0
        while rows := conn.execute(query.limit(PAGE).offset(start)).all():
            profiles = load_profiles(conn, [row.profile_id for row in rows])
            yield from ((row, profiles[row.profile_id]) for row in rows if wanted.accept(profiles[row.profile_id].profile))
            start += PAGE

    return islice(accepted(), wanted.most)
