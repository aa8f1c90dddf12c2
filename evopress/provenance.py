"""What code ran: the commit of the checkout this package is imported from. Called by the run."""

from __future__ import annotations

import os
import subprocess
from importlib.metadata import version
from pathlib import Path


def commit() -> str:
    """Commit of the checkout this package runs from, with `+` for local changes; the package version outside a checkout."""
    folder = Path(__file__).resolve().parents[1]
    if not (folder / ".git").exists():
        return f"evopress {version('evopress')}"
    environment = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True, env=environment)
        return done.stdout.strip()

    try:
        return git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):  # no git, or it refuses this folder
        return f"evopress {version('evopress')}, commit unknown"
