"""The store: every measurement as rows of SQLite or PostgreSQL. Free of torch; imports SQLAlchemy."""

from evopress.store.claims import LEASE_SECONDS, ClaimResult, Owner
from evopress.store.migrate import revision, upgrade
from evopress.store.reference import load_reference, reported_rows
from evopress.store.rows import (
    BankEntry,
    BoardRow,
    LatencyRow,
    ProfileRow,
    ReferenceRow,
    ResultRow,
    Role,
    RunRow,
    RunState,
    StepRow,
    StoredTrial,
    StudyRow,
    TaskScore,
    TokenSetRow,
    TrialKey,
)
from evopress.store.store import Store

__all__ = [
    "LEASE_SECONDS", "BankEntry", "BoardRow", "ClaimResult", "LatencyRow", "Owner", "ProfileRow", "ReferenceRow", "ResultRow", "Role",
    "RunRow", "RunState", "StepRow", "Store", "StoredTrial", "StudyRow", "TaskScore",
    "TokenSetRow", "TrialKey", "load_reference", "reported_rows", "revision", "upgrade",
]  # fmt: skip
