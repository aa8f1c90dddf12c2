"""Contest: the text, model, methods, budgets and bank of one study, on which several searchers compete; and what is claimed of them.

Read from a study file with a table `entrants`. Not imported by `evopress.api` itself: it needs pydantic. Called by the command line and
`evopress.contest`; what a claim means is computed in `evopress.report.claims`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from evopress.api.errors import UsageError, unknown
from evopress.api.study import DEFAULT_STOP_TOKENS, Study, read_toml

Metric = Literal["tokens", "seconds", "fitness"]
Comparator = Literal[">=", ">", "<=", "<"]
RULED_OUT = ("searcher", "baselines", "fresh", "stop_generations", "stop_tokens", "stop_seconds")
"""Keys of a study that a contest has none of: its entrants are the searchers, all start afresh, and `tokens` is the stop."""
QUICK = 8
"""A quick contest has so many times fewer tokens of everything."""
QUICK_LEAST = {"calibration_tokens": 2048, "search_tokens": 8192, "heldout_tokens": 2048}
QUICK_LEAST_STOP = 16_384
"""Below these a quick contest does not go, unless the whole one is smaller."""
_LABEL = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
_STRICT = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
_BASE = {"searcher": "uniform", "baselines": ()}
Label = Annotated[str, Field(pattern=f"^{_LABEL}$")]


class Entrant(BaseModel):
    """A searcher that competes. tokens: where it stops, in token-forwards."""

    model_config = _STRICT

    searcher: Annotated[str, Field(min_length=1, description="searcher with options")]
    tokens: Annotated[int, Field(ge=1, description="token-forwards where it stops")]


class Claim(BaseModel):
    """Something a contest is said to show."""

    model_config = _STRICT

    says: Annotated[str, Field(min_length=1, description="the claim in words")]
    metric: Annotated[
        Metric,
        Field(description="tokens, seconds: how many times fewer the entrant needs to reach the baseline's end; fitness: their difference"),
    ]
    entrant: Annotated[str, Field(description="label of the entrant that is judged")]
    baseline: Annotated[str, Field(description="label of the entrant it is compared with")]
    comparator: Annotated[Comparator, Field(description=">=, >, <= or <")]
    goal: Annotated[float, Field(description="what the value is compared with")]
    p: Annotated[float | None, Field(gt=0, lt=1, description="fitness only: the paired test must be below it")] = None


class Contest(BaseModel):
    """Searchers on one bank. study: everything but the searcher. quick: made small by `small`, so no evidence."""

    model_config = _STRICT

    study: Study
    seeds: Annotated[
        tuple[Annotated[int, Field(ge=0, lt=2**63)], ...],
        Field(min_length=1, description="seeds of the searchers; text, bank and documents are those of `seed`"),
    ] = (0,)
    tokens: Annotated[int, Field(ge=1, description="token-forwards where an entrant stops that names no other number")] = (
        DEFAULT_STOP_TOKENS
    )
    entrants: Annotated[dict[Label, Entrant], Field(min_length=1, description="label = searcher, or a table {searcher, tokens}")]
    claims: Annotated[tuple[Claim, ...], Field(description="what the contest is said to show")] = ()
    quick: bool = False

    @property
    def name(self) -> str:
        """The study's."""
        return self.study.name

    @property
    def stored_name(self) -> str:
        """Name of its study in the store: a study of the same name may be there too."""
        return f"{self.name[:56]}.contest"

    @property
    def base(self) -> dict[str, Any]:
        """What every entrant shares, as JSON values: the identity of the study without its searchers."""
        return {key: value for key, value in self.study.identity.items() if key not in RULED_OUT}

    @property
    def base_digest(self) -> str:
        """SHA-256 of `base`, hexadecimal."""
        return _digest(self.base)

    @property
    def definition(self) -> dict[str, Any]:
        """Everything but its name and its claims, as JSON values."""
        entrants = {label: entrant.model_dump() for label, entrant in self.entrants.items()}
        return {**self.base, "seeds": list(self.seeds), "tokens": self.tokens, "entrants": entrants}

    @property
    def digest(self) -> str:
        """SHA-256 of the definition, hexadecimal."""
        return _digest(self.definition)

    def small(self) -> Contest:
        """The same in a fraction of the time: the first seed, and a name of its own.

        Of all tokens an eighth, but of a text no less than `QUICK_LEAST` and of a search no less than `QUICK_LEAST_STOP`.
        """
        sizes = {key: max(getattr(self.study, key) // QUICK, min(least, getattr(self.study, key))) for key, least in QUICK_LEAST.items()}
        study = self.study.model_copy(update={**sizes, "name": f"{self.name[:58]}-quick"})

        def stop(tokens: int) -> int:
            return max(tokens // QUICK, min(QUICK_LEAST_STOP, tokens))

        entrants = {label: entrant.model_copy(update={"tokens": stop(entrant.tokens)}) for label, entrant in self.entrants.items()}
        changed = {"study": study, "seeds": self.seeds[:1], "tokens": stop(self.tokens), "entrants": entrants, "quick": True}
        return self.model_copy(update=changed)

    @staticmethod
    def make(values: Mapping[str, Any], where: str = "the options") -> Contest:
        """Validate. Raises UsageError naming the key and what is allowed."""
        own = {key: values[key] for key in ("seeds", "tokens", "entrants", "claims") if key in values}
        for key in values:
            if key in RULED_OUT and "entrants" not in own:
                raise UsageError(
                    f"{where} is no contest: it has no table [entrants], and key {key!r} of a single search.",
                    "Run it with evopress search start FILE; or name the searchers that compete in [entrants], and their stop in tokens.",
                )
            if key in RULED_OUT:
                raise UsageError(f"Key {key!r} of {where} is none of a contest.", "Name searchers in [entrants], and their stop in tokens.")
            if key not in own and key not in Study.model_fields:
                raise unknown("key", key, [*own_keys(), *shared_keys()], where)
        if "entrants" not in own:
            raise UsageError(f"{where} has no table [entrants].", 'Name the searchers that compete, e.g. uniform = "uniform".')
        study = Study.make({**{key: value for key, value in values.items() if key not in own}, **_BASE}, where)
        tokens = own.get("tokens", DEFAULT_STOP_TOKENS)
        own |= {key: tuple(own[key]) for key in ("seeds", "claims") if isinstance(own.get(key), list)}
        if isinstance(own.get("claims"), tuple):
            own["claims"] = tuple(_claim(item, f"claim {number} of {where}") for number, item in enumerate(own["claims"], 1))
        own["entrants"] = _entrants(own["entrants"], tokens, where)
        contest = Contest(study=study, **_validated(own, where))
        contest._check(where)
        return contest

    @staticmethod
    def read(path: Path) -> Contest:
        """Read a TOML file; the name defaults to the file's. Raises NotFound and UsageError."""
        return Contest.make(read_toml(path), str(path))

    def _check(self, where: str) -> None:
        if len(set(self.seeds)) < len(self.seeds):
            raise UsageError(f"A seed stands twice in {where}.", "Give every seed once.")
        for claim in self.claims:
            for label in (claim.entrant, claim.baseline):
                if label not in self.entrants:
                    raise unknown("entrant", label, self.entrants, f"claim {claim.says!r} of {where}")
            if claim.entrant == claim.baseline:
                raise UsageError(f"Claim {claim.says!r} of {where} compares {claim.entrant} with itself.", "Name another baseline.")
            if claim.p is not None and (claim.metric != "fitness" or claim.comparator not in ("<", "<=")):
                raise UsageError(
                    f"Claim {claim.says!r} of {where} has a p, but its test is of a lower fitness alone.",
                    "Leave p out, or claim a fitness with < or <=.",
                )


def own_keys() -> list[str]:
    """Keys of a contest file that no study has."""
    return [key for key in Contest.model_fields if key not in ("study", "quick")]


def shared_keys() -> list[str]:
    """Keys that a contest file has of a study."""
    return [key for key in Study.model_fields if key not in RULED_OUT]


def _digest(value: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _entrants(value: Any, tokens: Any, where: str) -> Any:
    """Texts become entrants with the contest's stop; tables get it where they name none."""
    if not isinstance(value, Mapping):
        return value
    found: dict[str, Any] = {}
    for label, item in value.items():
        table = {"searcher": item} if isinstance(item, str) else item
        if isinstance(table, Mapping):
            for key in table:
                if key not in Entrant.model_fields:
                    raise unknown("key", key, Entrant.model_fields, f"entrant {label!r} of {where}")
            found[label] = {"tokens": tokens, **table}
        else:
            found[label] = table
    return found


def _claim(item: Any, where: str) -> Any:
    if not isinstance(item, Mapping):
        return item
    for key in item:
        if key not in Claim.model_fields:
            raise unknown("key", key, Claim.model_fields, where)
    for key, field in Claim.model_fields.items():
        if field.is_required() and key not in item:
            raise UsageError(f"Key {key!r} is missing in {where}.", f"Give it: {field.description}.")
    return {key: float(value) if key in ("goal", "p") and type(value) is int else value for key, value in item.items()}


def _validated(own: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The values of the contest's own keys, checked by pydantic; the first thing wrong as a UsageError."""
    study = Study.make({})
    try:
        made = Contest(study=study, **own)
    except ValidationError as error:
        first = error.errors()[0]
        path = ".".join(str(part) for part in first["loc"] if part != "[key]")
        shown = repr(first["input"])
        reason = first["msg"][:1].lower() + first["msg"][1:]
        raise UsageError(
            f"Key {path!r} in {where} is {shown if len(shown) <= 80 else shown[:77] + '...'}, which is not allowed: {reason}.",
            "studies/README.md lists every key of a contest.",
        ) from error
    return {key: getattr(made, key) for key in own}
