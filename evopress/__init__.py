"""evopress: find which compression each part of a language model should get, under one exact global budget.

    import evopress
    run = evopress.search("path/to/model", budget="bits=3.0", methods=["gptq", "drop"])
    model = run.best.apply()

Importing this module is cheap; torch and the rest are loaded by the first call.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from evopress.events import Listener
    from evopress.found import Run

__all__ = ["search"]


def search(
    model: str | Path | None = None,
    budget: str | Sequence[str] | None = None,
    methods: Sequence[str] | None = None,
    *,
    storage: str | None = None,
    home: str | Path | None = None,
    listen: Listener | None = None,
    device: str = "cpu",
    dtype: str = "auto",
    speed: bool = True,
    **study: Any,
) -> Run:
    """Do what `evopress search start` does and return a Run, which a notebook can show.

    model: hub id, folder or .gguf file; None is the demo model. budget: one or several texts like `bits=3.0`. Other keywords are keys of a
    study file (`searcher=`, `text=`, `seed=`, `stop_tokens=`, `name=` …). The same call again resumes. Raises EvopressError and its kin.
    """
    import os

    from evopress.api.study import Study
    from evopress.events import silent
    from evopress.home import default_store
    from evopress.home import home as default_home
    from evopress.run import execute

    values: dict[str, Any] = dict(study)
    if model is not None:
        values["model"] = str(model)
    if budget is not None:
        values["budgets"] = budget
    if methods is not None:
        values["methods"] = methods
    folder = Path(home) if home is not None else default_home()
    url = storage or os.environ.get("EVOPRESS_STORAGE") or default_store(folder)
    definition = Study.make(values, "the arguments")
    return execute(definition, url, folder, None, listen or silent, device, dtype, None, speed, "evopress.search()")


class _Package(ModuleType):
    """Keeps `evopress.search` the function above: importing the subpackage of that name would put the module in its place."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (name == "search" and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
