"""How well the LatencyTable's sum tells what a whole model takes: random mixed profiles, estimated and run. Called by `kernels bench`."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from evopress.api import Profile, Site
from evopress.api.workload import Workload
from evopress.latency.clock import Timing
from evopress.latency.mixed import cells_of, random_profile
from evopress.latency.table import LatencyTable, kept_kinds


@dataclass(frozen=True, slots=True)
class Checked:
    """One profile: what the table sums up to, and what a pass took. Seconds."""

    estimated: float
    measured: Timing

    @property
    def error(self) -> float:
        """Of the estimate, relative to the measurement; below zero where it promises too much."""
        return self.estimated / self.measured.median - 1


def check_profiles(sites: Sequence[Site], formats: Sequence[str], count: int, seed: int) -> dict[str, Profile]:
    """Profiles by name with a random format at every linear site and some sublayers dropped."""
    rng = random.Random(seed)
    return {f"random {number}": random_profile(sites, formats, rng) for number in range(1, count + 1)}


def check_table(
    profiles: Mapping[str, Profile], passes: Mapping[str, Sequence[float]], sites: Sequence[Site], table: LatencyTable, model: str,
    workload: Workload,
) -> list[Checked]:  # fmt: skip
    """Each profile's estimate beside what it took. model: digest of its configuration. passes: seconds by name."""
    return [Checked(estimate(profile, sites, table, model, workload), Timing.of(passes[name])) for name, profile in profiles.items()]


def estimate(profile: Profile, sites: Sequence[Site], table: LatencyTable, model: str, workload: Workload) -> float:
    """Seconds by the table of a profile whose levels name their format. Raises NotFound for a missing cell, part or factor."""
    cells = [(cell, None) for cell in cells_of(profile, sites, workload.tokens).values()]
    return table.sum(kept_kinds(profile, sites), cells, model, workload)
