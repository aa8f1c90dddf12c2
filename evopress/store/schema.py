"""The tables of the store: typed SQLAlchemy classes, one per table, all prefixed `evo_`.

Only the shape of the data: no query and no connection lives here. Read by the other files of this package and by the migrations. The
classes are plural because a class is a table; the nouns of `evopress.api` are what the store takes and returns. Times are Unix seconds.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import JSON, BigInteger, CheckConstraint, Float, ForeignKey, Index, MetaData, String, Text, UniqueConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

REVISIONS = ("0001", "0002", "0003", "0004", "0005")
"""Every schema revision this program knows, oldest first; the last is the one it reads and writes."""
VERSION_TABLE = "evo_alembic_version"
NAMING = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s",
    "pk": "pk_%(table_name)s",
}


class Base(DeclarativeBase):
    """Common metadata: constraint names are fixed so that later migrations can name them on every database."""

    metadata = MetaData(naming_convention=NAMING)
    type_annotation_map = {  # noqa: RUF012  (read once by SQLAlchemy, never changed)
        str: Text,
        float: Float(53),
        dict[str, Any]: JSON,
        list[Any]: JSON,
    }


class Models(Base):
    """A dense model, known by the digest of its weights."""

    __tablename__ = "evo_models"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    digest: Mapped[str] = mapped_column(String(128), unique=True)
    config: Mapped[dict[str, Any]]
    params: Mapped[int] = mapped_column(BigInteger)


class Sites(Base):
    """The sites of a model, in model order."""

    __tablename__ = "evo_sites"
    __table_args__ = (UniqueConstraint("model_id", "name"),)
    model_id: Mapped[int] = mapped_column(ForeignKey("evo_models.id"), primary_key=True)
    position: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    name: Mapped[str]
    kind: Mapped[str]
    rows: Mapped[int]
    columns: Mapped[int]
    depth: Mapped[int]
    parent: Mapped[str | None]
    input: Mapped[str]
    own_params: Mapped[int] = mapped_column(BigInteger)


class Levels(Base):
    """Every level ever seen, by its text form."""

    __tablename__ = "evo_levels"
    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str] = mapped_column(unique=True)


class Layouts(Base):
    """An ordered list of site names that profiles share, so that a profile is only a list of level ids."""

    __tablename__ = "evo_layouts"
    id: Mapped[int] = mapped_column(primary_key=True)
    digest: Mapped[str] = mapped_column(String(64), unique=True)
    sites: Mapped[list[Any]]


class Profiles(Base):
    """A profile of one model, made real by one bank. levels: JSON list of level ids, one a site of the layout.

    bank: digest of what its variants were made with; one assignment of levels calibrated twice is two rows. Cost is of the whole model.
    """

    __tablename__ = "evo_profiles"
    __table_args__ = (UniqueConstraint("model_id", "digest", "bank"), Index(None, "digest"))
    id: Mapped[int] = mapped_column(primary_key=True)
    model_id: Mapped[int] = mapped_column(ForeignKey("evo_models.id"))
    digest: Mapped[str] = mapped_column(String(64))
    bank: Mapped[str] = mapped_column(String(64), server_default="")
    layout_id: Mapped[int] = mapped_column(ForeignKey("evo_layouts.id"))
    levels: Mapped[list[Any]]
    bytes: Mapped[int] = mapped_column(BigInteger)
    params: Mapped[int] = mapped_column(BigInteger)
    bits: Mapped[float]


class TokenSets(Base):
    """A digested token set in one role (calibration, search, heldout).

    model: digest of the model whose tokenizer made it. origins: number of the source document of each window.
    texts: names of what it was drawn from, as of `evopress.data.tokens.TokenSet`; [] where it is not known.
    """

    __tablename__ = "evo_token_sets"
    __table_args__ = (UniqueConstraint("digest", "role"),)
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    role: Mapped[str]
    digest: Mapped[str] = mapped_column(String(64))
    source: Mapped[str]
    documents: Mapped[int]
    tokens: Mapped[int] = mapped_column(BigInteger)
    seed: Mapped[int] = mapped_column(BigInteger)
    model: Mapped[str]
    origins: Mapped[list[Any]] = mapped_column(server_default="[]")
    texts: Mapped[list[Any]] = mapped_column(server_default="[]")


class Slices(Base):
    """The exact tokens of a measurement. documents: JSON list of [index in the token set, tokens used]."""

    __tablename__ = "evo_slices"
    __table_args__ = (Index(None, "token_set"),)
    id: Mapped[int] = mapped_column(primary_key=True)
    digest: Mapped[str] = mapped_column(String(64), unique=True)
    token_set: Mapped[str] = mapped_column(String(64))
    documents: Mapped[list[Any]]
    tokens: Mapped[int] = mapped_column(BigInteger)


class Studies(Base):
    """The frozen definition of an experiment; its digest is its identity, its name is unique."""

    __tablename__ = "evo_studies"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    digest: Mapped[str] = mapped_column(String(64))
    definition: Mapped[dict[str, Any]]
    created: Mapped[float]


class Runs(Base):
    """One execution of a study on one machine. host, pid and process tell whether it still lives."""

    __tablename__ = "evo_runs"
    __table_args__ = (Index(None, "study_id"),)
    id: Mapped[int] = mapped_column(primary_key=True)
    study_id: Mapped[int] = mapped_column(ForeignKey("evo_studies.id"))
    seed: Mapped[int] = mapped_column(BigInteger)
    command: Mapped[str]
    environment: Mapped[dict[str, Any]]
    code_version: Mapped[str]
    host: Mapped[str]
    pid: Mapped[int]
    process: Mapped[str]
    started: Mapped[float]
    finished: Mapped[float | None]
    state: Mapped[str]
    stop_reason: Mapped[str]
    error: Mapped[str]


class Trials(Base):
    """A measured profile. key: digest of the TrialKey, so that one column finds it. mean: position-weighted, lower is better.

    seconds: the measurement took. estimated_seconds: one pass of the workload would take the profile, by the LatencyTable of the machine
    that measured it, where its study had a latency budget (its run tells which); null elsewhere.
    """

    __tablename__ = "evo_trials"
    __table_args__ = (
        UniqueConstraint("profile_id", "slice_id", "fitness", "numerics"),
        CheckConstraint("seconds >= 0", "seconds"),
        Index(None, "slice_id"),
        Index(None, "run_id"),
    )
    id: Mapped[int] = mapped_column(primary_key=True)
    key: Mapped[str] = mapped_column(String(64), unique=True)
    profile_id: Mapped[int] = mapped_column(ForeignKey("evo_profiles.id"))
    slice_id: Mapped[int] = mapped_column(ForeignKey("evo_slices.id"))
    fitness: Mapped[str]
    numerics: Mapped[str]
    mean: Mapped[float]
    tokens: Mapped[int] = mapped_column(BigInteger)
    seconds: Mapped[float]
    estimated_seconds: Mapped[float | None]
    state: Mapped[str]
    run_id: Mapped[int | None] = mapped_column(ForeignKey("evo_runs.id"))
    created: Mapped[float]


class DocumentValues(Base):
    """Fitness of a trial on one document: what paired tests join on. weight: scored positions."""

    __tablename__ = "evo_document_values"
    __table_args__ = {"sqlite_with_rowid": False}  # noqa: RUF012  (read once by SQLAlchemy, never changed)
    trial_id: Mapped[int] = mapped_column(ForeignKey("evo_trials.id"), primary_key=True)
    position: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    document: Mapped[int]
    weight: Mapped[int]
    value: Mapped[float]


class Slopes(Base):
    """What a trial tells of its neighbours. changes: `Trial.slopes`, one a site of the profile's layout, as JSON."""

    __tablename__ = "evo_slopes"
    trial_id: Mapped[int] = mapped_column(ForeignKey("evo_trials.id"), primary_key=True)
    changes: Mapped[list[Any]]


class RunTrials(Base):
    """The trajectory: what a searcher of a study asked for, in order. ordinal: its question; position: the profile inside it."""

    __tablename__ = "evo_run_trials"
    __table_args__ = (Index(None, "trial_id"),)
    study_id: Mapped[int] = mapped_column(ForeignKey("evo_studies.id"), primary_key=True)
    searcher: Mapped[str] = mapped_column(primary_key=True)
    ordinal: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    position: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    generation: Mapped[int]
    stage: Mapped[int]
    trial_id: Mapped[int] = mapped_column(ForeignKey("evo_trials.id"))
    run_id: Mapped[int | None] = mapped_column(ForeignKey("evo_runs.id"))


class Results(Base):
    """What a study ended with, by label: dense, uniform, random, knapsack, evolve. details: paired tests and their like."""

    __tablename__ = "evo_results"
    __table_args__ = (UniqueConstraint("study_id", "label"), Index(None, "profile_id"))
    id: Mapped[int] = mapped_column(primary_key=True)
    study_id: Mapped[int] = mapped_column(ForeignKey("evo_studies.id"))
    label: Mapped[str]
    role: Mapped[str]
    profile_id: Mapped[int] = mapped_column(ForeignKey("evo_profiles.id"))
    run_id: Mapped[int | None] = mapped_column(ForeignKey("evo_runs.id"))
    details: Mapped[dict[str, Any]]
    updated: Mapped[float]


class TaskScores(Base):
    """A benchmark score of a profile. samples: items scored; filter and version are those of the harness."""

    __tablename__ = "evo_task_scores"
    # Named by hand: the conventional name is longer than the 63 characters PostgreSQL allows.
    __table_args__ = (
        UniqueConstraint("profile_id", "task", "metric", "filter", "shots", "samples", "version", name="uq_evo_task_scores_identity"),
    )
    id: Mapped[int] = mapped_column(primary_key=True)
    profile_id: Mapped[int] = mapped_column(ForeignKey("evo_profiles.id"))
    task: Mapped[str]
    metric: Mapped[str]
    filter: Mapped[str]
    value: Mapped[float]
    stderr: Mapped[float | None]
    samples: Mapped[int]
    shots: Mapped[int]
    version: Mapped[str]
    environment: Mapped[dict[str, Any]]
    run_id: Mapped[int | None] = mapped_column(ForeignKey("evo_runs.id"))
    created: Mapped[float]


class Latencies(Base):
    """A measured time: of a whole profile (profile_id) or of one kernel (profile_id null, format and shape given)."""

    __tablename__ = "evo_latencies"
    __table_args__ = (Index(None, "profile_id", "phase"), CheckConstraint("median_seconds > 0", "median_seconds"))
    id: Mapped[int] = mapped_column(primary_key=True)
    profile_id: Mapped[int | None] = mapped_column(ForeignKey("evo_profiles.id"))
    kernel: Mapped[str]
    format: Mapped[str]
    rows: Mapped[int]
    columns: Mapped[int]
    device: Mapped[str]
    phase: Mapped[str]
    batch: Mapped[int]
    tokens: Mapped[int]
    threads: Mapped[int]
    samples: Mapped[int]
    median_seconds: Mapped[float]
    low_seconds: Mapped[float]
    high_seconds: Mapped[float]
    tokens_per_second: Mapped[float]
    environment: Mapped[dict[str, Any]]
    run_id: Mapped[int | None] = mapped_column(ForeignKey("evo_runs.id"))
    created: Mapped[float]


class ReferenceRows(Base):
    """A number somebody else reported. It never stands among measured ones."""

    __tablename__ = "evo_reference_rows"
    __table_args__ = (UniqueConstraint("source", "model", "method", "budget", "metric"), CheckConstraint("state = 'reported'", "state"))
    id: Mapped[int] = mapped_column(primary_key=True)
    source: Mapped[str]
    model: Mapped[str]
    method: Mapped[str]
    budget: Mapped[str]
    metric: Mapped[str]
    value: Mapped[float]
    state: Mapped[str]


class BankEntries(Base):
    """A variant in the bank: relative output error and stored size of a site at a level, for one calibration."""

    __tablename__ = "evo_bank_entries"
    model_id: Mapped[int] = mapped_column(ForeignKey("evo_models.id"), primary_key=True)
    calibration: Mapped[str] = mapped_column(String(64), primary_key=True)
    site: Mapped[str] = mapped_column(primary_key=True)
    level_id: Mapped[int] = mapped_column(ForeignKey("evo_levels.id"), primary_key=True)
    relative_error: Mapped[float | None]
    bytes: Mapped[int] = mapped_column(BigInteger)


class Claims(Base):
    """A measurement somebody is taking now. heartbeat: last sign of life of the owner."""

    __tablename__ = "evo_claims"
    __table_args__ = (Index(None, "host", "pid"),)
    key: Mapped[str] = mapped_column(String(64), primary_key=True)
    host: Mapped[str]
    pid: Mapped[int]
    process: Mapped[str]
    worker: Mapped[str]
    heartbeat: Mapped[float]
