"""The gate before any search: the all-dense profile must score zero to rounding, else no number of the run can be trusted.

Measures one profile and searches nothing. Called by the two composition roots, `evopress.run` and `evopress.contest`.
"""

from __future__ import annotations

from evopress.api import DENSE, NumericalError, Profile, Space
from evopress.workbench import Workbench

SMALL_TOKENS = 2048
"""Tokens of the search text on which the dense profile must score zero."""
ZERO_LIMIT = {"float32": 1e-4, "other": 5e-3}
"""Largest divergence of the dense model from itself, in nats a token, that is rounding, by compute type."""


def dense_profile(space: Space) -> Profile:
    """Nothing compressed."""
    return space.profile([space.choices(gene).index(DENSE) for gene in range(len(space.genes))])


def check_dense(bench: Workbench, uniform: Profile) -> None:
    """Measure the all-dense profile, stitched back in after the uniform one. Raises NumericalError unless it scores zero to rounding.

    If it does not, stitching or the fitness is broken, and a search would be nonsense.
    """
    slice_ = bench.texts.first("search", SMALL_TOKENS)
    limit = ZERO_LIMIT["float32" if str(bench.dtype) == "torch.float32" else "other"]
    for name in dict.fromkeys(("kl", bench.plan.study.fitness)):
        if not bench.registry.get("fitness", name).zero_when_dense:
            continue
        trial = bench.measure_after(uniform, dense_profile(bench.plan.space), slice_, name, "search")
        if abs(trial.fitness) > limit:
            raise NumericalError(
                f"The all-dense profile scores {trial.fitness:.2e} {name} against the dense model; at most {limit:.0e} is rounding.",
                "Stitching changes this model, so no search on it can be trusted: try --dtype float32, and report the model.",
            )
