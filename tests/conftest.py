"""Shared setup of the tests: offline switches, one thread a process, and where the shared data lies."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# The models of the tests are tiny: a second thread would only wait, and tests that start processes would crowd the machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

pytest_plugins = ["storage_fixtures"]

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real text and task data beside the checkout; skips where it is absent."""
    if not SHARED.is_dir():
        pytest.skip("the folder shared/data beside the checkout is absent")
    return SHARED
