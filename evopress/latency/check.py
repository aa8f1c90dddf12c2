"""How well the LatencyTable's sum tells what a whole model takes: random mixed profiles, estimated and run. Called by `kernels bench`."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from evopress.api import ABSENT, DROP, Profile, Site
from evopress.api.workload import Workload
from evopress.latency.clock import Clock, Timing
from evopress.latency.mixed import RandomVariants, linear_seconds, random_profile
from evopress.latency.runtime import Pick, build, workload_seconds
from evopress.latency.table import LatencyTable, Part


@dataclass(frozen=True, slots=True)
class Checked:
    """One profile: what the table sums up to, and what a pass took. Seconds."""

    estimated: float
    measured: Timing

    @property
    def error(self) -> float:
        """Of the estimate, relative to the measurement; below zero where it promises too much."""
        return self.estimated / self.measured.median - 1


def check_table(
    model: nn.Module, sites: Sequence[Site], formats: Sequence[str], table: LatencyTable, model_digest: str, workload: Workload, pick: Pick,
    count: int, seed: int, repeats: int | None = None, clock: Clock = time.perf_counter,
) -> list[Checked]:  # fmt: skip
    """Draw profiles with a random format at every linear site and some sublayers dropped; estimate them, and time them in turns."""
    rng, variants = random.Random(seed), RandomVariants(seed)
    profiles = {str(number): random_profile(sites, formats, rng) for number in range(count)}
    models = {name: build(model, sites, profile, variants, pick) for name, profile in profiles.items()}
    passes = workload_seconds(models, workload, repeats, clock)
    return [Checked(estimate(profile, sites, table, model_digest, workload), Timing.of(passes[name])) for name, profile in profiles.items()]


def estimate(profile: Profile, sites: Sequence[Site], table: LatencyTable, model_digest: str, workload: Workload) -> float:
    """Seconds by the table of a profile whose levels name their format. Raises NotFound for a missing cell or part."""
    kept = [site.kind for site in sites if site.kind != "linear" and profile[site.name] not in (ABSENT, DROP)]
    parts = sum(table.part(Part(model_digest, kind, workload)).median for kind in ("model", *kept))
    return parts + sum(linear_seconds(profile, sites, table, workload.tokens).values())
