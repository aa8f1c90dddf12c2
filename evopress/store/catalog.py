"""Models, levels, profiles, slices and token sets: nouns in, row ids out, and back.

Everything here is get-or-create by content, so that repeating a write changes nothing. Functions run inside a transaction of the caller
(`evopress.store.store`); no connection is opened here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, select, update

from evopress.api import Cost, Level, NotFound, Profile, Site, Slice, UsageError
from evopress.store.database import chunks, insert, plain
from evopress.store.rows import ProfileRow, Role, TokenSetRow
from evopress.store.schema import Layouts, Levels, Models, Profiles, Sites, Slices, TokenSets


class Ids:
    """Row ids this process has seen. `fresh` holds those of a transaction that is not committed yet, so that a rollback forgets them."""

    def __init__(self, shared: Mapping[tuple[str, ...], int]) -> None:
        self._shared = shared
        self.fresh: dict[tuple[str, ...], int] = {}

    def get(self, *name: str) -> int | None:
        """Id under a name, or None."""
        return self.fresh.get(name) or self._shared.get(name)

    def put(self, number: int, *name: str) -> int:
        """Remember an id; returns it."""
        self.fresh[name] = number
        return number


def ensure(conn: Connection, table: type[Any], unique: Mapping[str, object], rest: Mapping[str, object]) -> int:
    """Id of the row with these unique values; it is inserted, with `rest`, when there is none."""
    find = select(table.id).where(*(getattr(table, name) == value for name, value in unique.items()))
    found = conn.scalar(find)
    if found is None:
        conn.execute(insert(conn, table).values(**unique, **rest).on_conflict_do_nothing(index_elements=list(unique)))
        found = conn.execute(find).scalar_one()
    return int(found)


def save_model(conn: Connection, name: str, digest: str, config: Mapping[str, Any], sites: Sequence[Site], params: int) -> int:
    """Store a model and its sites; returns its id."""
    model_id = ensure(conn, Models, {"digest": digest}, {"name": name, "config": plain(config), "params": params})
    rows = [
        {
            "model_id": model_id,
            "position": position,
            "name": site.name,
            "kind": site.kind,
            "rows": site.shape[0],
            "columns": site.shape[1],
            "depth": site.depth,
            "parent": site.parent,
            "input": site.input,
            "own_params": site.own_params,
        }
        for position, site in enumerate(sites)
    ]
    if rows:
        conn.execute(insert(conn, Sites).on_conflict_do_nothing(), rows)
    return model_id


def load_sites(conn: Connection, model_id: int) -> tuple[Site, ...]:
    """Sites of a model, in model order."""
    found = conn.execute(select(Sites.__table__).where(Sites.model_id == model_id).order_by(Sites.position))
    return tuple(Site(row.name, row.kind, (row.rows, row.columns), row.depth, row.parent, row.input, row.own_params) for row in found)


def sites_of(conn: Connection, digest: str) -> tuple[Site, ...]:
    """Sites of the model with these weights, in model order. Raises NotFound."""
    return load_sites(conn, model_id(conn, Ids({}), digest))


def model_id(conn: Connection, ids: Ids, digest: str) -> int:
    """Id of a saved model. Raises NotFound."""
    known = ids.get("model", digest) or conn.scalar(select(Models.id).where(Models.digest == digest))
    if known is None:
        raise NotFound(f"The store has no model with digest {digest!r}.", "Save the model before its measurements.")
    return ids.put(known, "model", digest)


def level_ids(conn: Connection, ids: Ids, texts: Iterable[str]) -> dict[str, int]:
    """Ids of level texts; unknown ones are inserted."""
    wanted = set(texts)
    missing = sorted(text for text in wanted if ids.get("level", text) is None)  # sorted: no deadlock between two writers
    _look_up_levels(conn, ids, missing)
    new = [text for text in missing if ids.get("level", text) is None]
    if new:
        conn.execute(insert(conn, Levels).on_conflict_do_nothing(index_elements=["text"]), [{"text": text} for text in new])
        _look_up_levels(conn, ids, new)
    return {text: number for text in wanted if (number := ids.get("level", text)) is not None}


def _look_up_levels(conn: Connection, ids: Ids, texts: Sequence[str]) -> None:
    for chunk in chunks(texts):
        for number, text in conn.execute(select(Levels.id, Levels.text).where(Levels.text.in_(chunk))):
            ids.put(number, "level", text)


def layout_digest(sites: Sequence[str]) -> str:
    """What a list of site names in order is known by."""
    return hashlib.sha256("\n".join(sites).encode()).hexdigest()


def save_profile(conn: Connection, ids: Ids, model: int, profile: Profile, cost: Cost, bits: float, bank: str) -> int:
    """Store a profile of a model, with variants of a bank, at its exact cost; returns its id. A known profile is left as it is."""
    name = ("profile", str(model), profile.digest, bank)
    known = ids.get(*name)
    if known is not None:
        return known
    texts = [str(level) for _, level in profile]
    numbers = level_ids(conn, ids, texts)
    sites = [site for site, _ in profile]
    known_as = layout_digest(sites)
    layout = ids.get("layout", known_as) or ensure(conn, Layouts, {"digest": known_as}, {"sites": sites})
    ids.put(layout, "layout", known_as)
    rest = {
        "layout_id": layout,
        "levels": [numbers[text] for text in texts],
        "bytes": int(cost.bytes),
        "params": int(cost.params),
        "bits": float(bits),
    }
    return ids.put(ensure(conn, Profiles, {"model_id": model, "digest": profile.digest, "bank": bank}, rest), *name)


def save_slice(conn: Connection, ids: Ids, slice: Slice) -> int:
    """Store a slice; returns its id."""
    known = ids.get("slice", slice.digest)
    if known is not None:
        return known
    rest = {"token_set": slice.token_set, "documents": [list(pair) for pair in slice.documents], "tokens": slice.tokens}
    return ids.put(ensure(conn, Slices, {"digest": slice.digest}, rest), "slice", slice.digest)


def load_slice(conn: Connection, digest: str) -> Slice:
    """A stored slice. Raises NotFound."""
    row = conn.execute(select(Slices.token_set, Slices.documents).where(Slices.digest == digest)).one_or_none()
    if row is None:
        raise NotFound(f"The store has no slice with digest {digest!r}.", "Measure on it first.")
    return Slice(row.token_set, tuple((int(index), int(tokens)) for index, tokens in row.documents))


def save_token_set(conn: Connection, row: TokenSetRow) -> int:
    """Store a token set in its role; returns its id."""
    rest = {name: getattr(row, name) for name in ("name", "source", "documents", "tokens", "seed", "model")}
    rest |= {"origins": list(row.origins), "texts": list(row.texts)}
    found = ensure(conn, TokenSets, {"digest": row.digest, "role": row.role}, rest)
    if row.texts:  # an older program did not tell
        conn.execute(update(TokenSets).where(TokenSets.id == found).values(texts=list(row.texts)))
    return found


def token_sets(conn: Connection, role: Role) -> list[TokenSetRow]:
    """The token sets of a role."""
    names = ("name", "role", "digest", "source", "documents", "tokens", "seed", "model", "origins", "texts")
    query = select(*(getattr(TokenSets, name) for name in names)).where(TokenSets.role == role).order_by(TokenSets.id)
    found = [dict(zip(names, row, strict=True)) for row in conn.execute(query)]
    return [TokenSetRow(**{**row, "origins": tuple(row["origins"]), "texts": tuple(row["texts"])}) for row in found]


def alike(conn: Connection, sites: Sequence[Site]) -> list[int]:
    """Ids of the models that have exactly these sites: the same names, kinds and shapes."""
    wanted = [(site.name, site.kind, *site.shape) for site in sites]
    found: dict[int, list[tuple[str, str, int, int]]] = {}
    columns = (Sites.model_id, Sites.name, Sites.kind, Sites.rows, Sites.columns)
    for model_id, *about in conn.execute(select(*columns).order_by(Sites.model_id, Sites.position)):
        found.setdefault(model_id, []).append(tuple(about))  # type: ignore[arg-type]
    return [model_id for model_id, known in found.items() if known == wanted]


def origins(conn: Connection, slice: str) -> list[int] | None:
    """Number of the source document of each piece of a slice (digest); None where it is not known."""
    query = select(Slices.documents, TokenSets.origins).join(TokenSets, TokenSets.digest == Slices.token_set).where(Slices.digest == slice)
    row = conn.execute(query.limit(1)).one_or_none()
    return [row.origins[index] for index, _ in row.documents] if row is not None and row.origins else None


def load_profiles(conn: Connection, profile_ids: Iterable[int]) -> dict[int, ProfileRow]:
    """Stored profiles by id."""
    texts: dict[int, Level] = {number: Level.parse(text) for number, text in conn.execute(select(Levels.id, Levels.text))}
    found: dict[int, ProfileRow] = {}
    columns = (Profiles.id, Models.name, Models.digest.label("model_digest"), Layouts.sites, Profiles.levels)
    query = select(*columns, Profiles.bytes, Profiles.params, Profiles.bits, Profiles.bank).join(Models).join(Layouts)
    for chunk in chunks(sorted(set(profile_ids))):
        for row in conn.execute(query.where(Profiles.id.in_(chunk))):
            levels = tuple((site, texts[number]) for site, number in zip(row.sites, row.levels, strict=True))
            cost = Cost(row.bytes, row.params)
            found[row.id] = ProfileRow(row.id, row.name, row.model_digest, Profile(levels), cost, row.bits, row.bank)
    return found


def find_profile(conn: Connection, digest: str, model: str | None) -> ProfileRow:
    """The profile whose digest starts with `digest`, among those of a model (name or digest) when given. Raises NotFound, UsageError.

    `digest@bank` tells two calibrations of one profile apart.
    """
    start, _, bank = digest.strip().lower().partition("@")
    if len(start) < 4 or not all(letter in "0123456789abcdef" for letter in start + bank):
        raise UsageError(
            f"Profile {digest!r} is not a digest.", "Give its first 4 or more hexadecimal digits; evopress leaderboard lists them."
        )
    columns = (Profiles.id, Profiles.digest, Profiles.bank, Models.name)
    query = select(*columns).join(Models).where(Profiles.digest.startswith(start), Profiles.bank.startswith(bank)).limit(10)
    if model is not None:
        query = query.where((Models.name == model) | (Models.digest == model))
    found = conn.execute(query.order_by(Profiles.id)).all()
    if not found:
        raise NotFound(f"No profile {digest!r} in the store.", "evopress leaderboard lists the profiles it holds.")
    if len(found) > 1:
        listing = ", ".join(f"{row.digest[:16]}{f'@{row.bank[:8]}' if row.bank else ''} of {row.name}" for row in found)
        advice = "Give more digits, the model, STUDY/LABEL, or DIGEST@BANK where one profile was calibrated twice."
        raise UsageError(f"Profile {digest!r} is ambiguous: {listing}.", advice)
    return load_profiles(conn, [found[0].id])[found[0].id]
