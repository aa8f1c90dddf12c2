"""Where evopress keeps what it makes on this machine, and what to tell somebody whose machine does not let it. Imports nothing heavy.

Called by the command line, the Python front door and the store; everything below them is handed the folder.
"""

from __future__ import annotations

import os
from pathlib import Path

VARIABLE = "EVOPRESS_HOME"


def home() -> Path:
    """Folder of converted models, banks and the default store: EVOPRESS_HOME, or the user's data folder."""
    import platformdirs

    given = os.environ.get(VARIABLE)
    return Path(given).expanduser() if given else platformdirs.user_data_path("evopress")


def default_store(folder: Path) -> str:
    """URL of the store of a home: one SQLite file."""
    return f"sqlite:///{folder / 'evopress.db'}"


def elsewhere(file: Path, otherwise: str) -> str:
    """The next step where the store cannot be made or written: EVOPRESS_HOME first for a file that lies under it, else `otherwise`."""
    if not file.absolute().is_relative_to(home().absolute()):
        return otherwise
    return f"Set {VARIABLE} to a folder you may write to, or name a store elsewhere: --storage sqlite:///path/to/file.db."
