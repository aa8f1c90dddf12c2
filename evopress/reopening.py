"""Opens a stored profile again: the model, the weights and the bank that it was measured with. Called by the command line.

What a study would choose from need not be planned again: its budgets were met when the profile was found.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evopress.api import DENSE, NotFound, Profile, Space, UsageError
from evopress.api.study import Study
from evopress.events import Listener, silent
from evopress.found import Best
from evopress.hooks.registry import Registry
from evopress.plan import make_plan, with_weights
from evopress.store import ProfileRow, Store, StudyRow
from evopress.texts import Texts
from evopress.workbench import Workbench

if TYPE_CHECKING:
    from torch import nn


def last_options(store: Store, study_id: int) -> dict[str, Any]:
    """What the study's last run was asked for beside its definition: device, type, and whether to time."""
    runs = store.runs(study_id)
    return dict(runs[-1].environment.get("options", {})) if runs else {}


def open_profile(
    store: Store, row: ProfileRow, home: Path, listen: Listener = silent, device: str | None = None, dtype: str | None = None
) -> tuple[nn.Module, Any]:
    """A stored profile as a live model, with its tokenizer. Rebuilds what its bank lacks. Raises as `reopen` does."""
    bench, _ = reopen(store, row, home, listen, device, dtype)
    return Best("", row.profile, bench).apply(), bench.tokenizer


def reopen(
    store: Store, row: ProfileRow, home: Path, listen: Listener = silent, device: str | None = None, dtype: str | None = None
) -> tuple[Workbench, StudyRow]:
    """The workbench that a stored profile was measured on, with nothing but its levels to choose, and the study that holds it.

    device, dtype: default, as its study last ran. Raises NotFound when no study of the store holds the profile, so that nobody knows what
    it was calibrated on, and UsageError when its model or its bank cannot be had here.
    """
    results = [result for result in store.results() if result.profile_id == row.id]
    if not results:
        raise NotFound(
            f"Profile {row.profile.digest[:12]} is a trial that no study kept, so its study is not known.",
            "Name a profile of a finished comparison: evopress leaderboard.",
        )
    found = store.find_study(results[-1].study)
    # The budgets were met when it was found; those of another machine's times need not even be plannable here.
    definition = {**found.definition, "least_coverage": 0, "budgets": ["size=1x"]}
    study = Study.make({"name": found.name, **definition}, f"stored study {found.name}")
    options = last_options(store, found.id)
    device, dtype = device or options.get("device", "cpu"), dtype or options.get("dtype", "auto")
    registry = Registry.load()
    plan = with_weights(make_plan(study, registry, home), home)
    plan = replace(plan, space=narrowed(plan.space, row.profile))
    bench = Workbench(plan, Texts(plan, listen), registry, store, home, listen, device, dtype)
    if bench.model_digest != row.model_digest:
        raise UsageError(
            f"Study {found.name} ran on weights {row.model_digest[:12]}, but {bench.plan.ref.name} now has {bench.model_digest[:12]}.",
            "Bring the old weights back, or search again under a new study name.",
        )
    if bench.bank_of(row.profile) != row.bank:
        raise UsageError(
            f"Profile {row.profile.digest[:12]} was measured with other weights: its bank was not made by {bench.arithmetic}.",
            f"Give the --device and --dtype that study {found.name} ran with, on a like processor; or search again under a new name.",
        )
    return bench, found


def narrowed(space: Space, profile: Profile) -> Space:
    """The space of one profile and the dense model: what else a study offered need not be built again."""
    kept = [
        [place for place, level in enumerate(levels) if level in (profile[site.name], DENSE)]
        for site, levels in zip(space.sites, space.levels, strict=True)
    ]
    levels = tuple(tuple(row[place] for place in places) for row, places in zip(space.levels, kept, strict=True))
    costs = tuple(tuple(row[place] for place in places) for row, places in zip(space.costs, kept, strict=True))
    return replace(space, levels=levels, costs=costs, links=())
