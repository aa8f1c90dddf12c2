"""What the store takes and returns beside the nouns of `evopress.api`: keys and rows, frozen and free of SQLAlchemy.

Used by `evopress.store.store` and by whoever asks it: the run, the reports and the command line.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from evopress.api import Cost, Profile, Slice, Trial

Role = Literal["calibration", "search", "heldout"]
RunState = Literal["running", "finished", "stopped", "interrupted", "failed", "killed"]


@dataclass(frozen=True, slots=True, order=True)
class TrialKey:
    """Identity of a measurement: equal keys mean equal numbers, so it is never taken twice.

    model: digest of the dense weights. profile, slice: their digests. fitness: its name, with options if it has any.
    numerics: everything else that changes the number: type, device and library version of the arithmetic, version of the fitness.
    bank: digest of what the profile's variants were made with (calibration and method versions), because a level's text alone does not
        say it; "" for a profile without variants (dense, or with dropped parts only).
    """

    model: str
    profile: str
    slice: str
    fitness: str
    numerics: str
    bank: str = ""

    @property
    def digest(self) -> str:
        """SHA-256 of the six parts, hexadecimal."""
        parts = (self.model, self.profile, self.slice, self.fitness, self.numerics, self.bank)
        return hashlib.sha256("\x1f".join(parts).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class StoredTrial:
    """A trial as the store holds it, without the profile and the slice its key names.

    mean: position-weighted, lower is better. slopes: as in `Trial`. fresh: stored by the very call that returned it.
    """

    id: int
    profile_id: int
    key: TrialKey
    values: tuple[float, ...]
    weights: tuple[int, ...]
    cost: Cost
    mean: float
    seconds: float
    slopes: tuple[float, ...] = ()
    fresh: bool = field(default=False, compare=False)

    def trial(self, profile: Profile, slice: Slice) -> Trial:
        """The noun, for a caller that knows profile and slice already. Raises ValueError when they are not those of the key."""
        if (profile.digest, slice.digest) != (self.key.profile, self.key.slice):
            raise ValueError("profile or slice is not the one this trial was measured on")
        return Trial(profile, slice, self.values, self.weights, self.cost, self.seconds, not self.fresh, self.slopes)


@dataclass(frozen=True, slots=True)
class TokenSetRow:
    """A named token set. role: what it is used for. model: digest of the model whose tokenizer made it. seed: of its selection.

    origins: number of the source document of each window; windows of one document are not independent. texts: what it was drawn from.
    """

    name: str
    role: Role
    digest: str
    source: str
    documents: int
    tokens: int
    seed: int
    model: str
    origins: tuple[int, ...] = ()
    texts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class StudyRow:
    """A study with what happened to it: runs started, trials in its trajectories, and the state of its last run (None before the first)."""

    id: int
    name: str
    digest: str
    definition: Mapping[str, Any]
    created: float
    runs: int = 0
    trials: int = 0
    state: RunState | None = None


@dataclass(frozen=True, slots=True)
class RunRow:
    """One execution. state `killed`: it is marked as running, but its process on this host is gone."""

    id: int
    study_id: int
    seed: int
    command: str
    environment: Mapping[str, Any]
    code_version: str
    host: str
    pid: int
    started: float
    finished: float | None
    state: RunState
    stop_reason: str
    error: str


@dataclass(frozen=True, slots=True)
class ProfileRow:
    """A stored profile with its model (name and digest), exact cost, bits a weight and the bank its variants came from."""

    id: int
    model: str
    model_digest: str
    profile: Profile
    cost: Cost
    bits: float
    bank: str = ""


@dataclass(frozen=True, slots=True)
class StepRow:
    """One trial of a trajectory. ordinal: number of the searcher's question; position: of the profile inside it; tokens: forwarded."""

    searcher: str
    ordinal: int
    position: int
    generation: int
    stage: int
    trial_id: int
    profile: str
    slice: str
    fitness: str
    mean: float
    bytes: int
    tokens: int
    seconds: float


@dataclass(frozen=True, slots=True)
class ResultRow:
    """The profile a study holds under a label. details: what the run wants kept beside it (paired tests, intervals)."""

    study: str
    label: str
    role: str
    profile_id: int
    profile: str
    bytes: int
    params: int
    bits: float
    details: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class TaskScore:
    """A benchmark score. samples: items scored; shots: examples in the prompt; filter and version as the harness names them."""

    task: str
    metric: str
    value: float
    stderr: float | None
    samples: int
    shots: int = 0
    filter: str = "none"
    version: str = ""
    environment: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LatencyRow:
    """A measured time with its spread.

    profile_id: the profile that ran as a whole model, or None for a kernel alone (then format and shape say what ran).
    kernel: name of the kernel, or names joined by `+`. phase: prefill, decode or kernel. batch, tokens: sequences and tokens a sequence.
    samples: repetitions; low_seconds, high_seconds: their interval. environment: fingerprint of machine and versions.
    """

    kernel: str
    device: str
    phase: str
    batch: int
    tokens: int
    threads: int
    samples: int
    median_seconds: float
    low_seconds: float
    high_seconds: float
    tokens_per_second: float
    profile_id: int | None = None
    format: str = ""
    shape: tuple[int, int] = (0, 0)
    environment: Mapping[str, Any] = field(default_factory=dict)
    run_id: int | None = None
    created: float = 0.0


@dataclass(frozen=True, slots=True)
class BankEntry:
    """A variant in the bank. level: its text. relative_error: of the layer's output (None when it was not measured)."""

    site: str
    level: str
    relative_error: float | None
    bytes: int


@dataclass(frozen=True, slots=True)
class ReferenceRow:
    """A number reported by others; `state` is always "reported"."""

    source: str
    model: str
    method: str
    budget: str
    metric: str
    value: float
    state: str = "reported"


@dataclass(frozen=True)
class BoardRow:
    """One line of the leaderboard.

    values: fitness name -> mean on the documents of the role, lower is better; trials, slices: where each came from.
    tokens: scored positions of the fitness with most. prefill, decode: tokens a second, with `kernel` and `device`; the rows of one study
        show times of one run, taken in turns. bank: digest of what the variants were made with.
    estimated_seconds: one pass of the workload of the study with a latency budget that measured it last, by that machine's LatencyTable.
    study, label: None for a profile that no study holds under a label.
    """

    profile_id: int
    profile: str
    model: str
    study: str | None
    label: str | None
    role: str | None
    bytes: int
    params: int
    bits: float
    values: Mapping[str, float]
    trials: Mapping[str, int]
    slices: Mapping[str, str]
    tokens: int = 0
    prefill: float | None = None
    decode: float | None = None
    kernel: str | None = None
    device: str | None = None
    bank: str = ""
    estimated_seconds: float | None = None

    @cached_property
    def columns(self) -> dict[str, float | str | None]:
        """What filters and sorting see, by column name. Perplexity is stored as its logarithm, and filtered and shown as itself."""
        own: dict[str, float | str | None] = {name: getattr(self, name) for name in COLUMNS}
        return {**{name: shown_value(name, value) for name, value in self.values.items()}, **own}


def shown_value(fitness: str, value: float) -> float:
    """A stored mean as people read it: a mean negative log-likelihood becomes a perplexity."""
    return math.exp(min(value, 700.0)) if fitness == "perplexity" else value


COLUMNS = (
    "profile",
    "model",
    "study",
    "label",
    "role",
    "bytes",
    "params",
    "bits",
    "tokens",
    "prefill",
    "decode",
    "kernel",
    "device",
    "bank",
    "estimated_seconds",
)
"""Columns every leaderboard row has; the names of the measured fitnesses come on top."""
