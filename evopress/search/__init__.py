"""Search algorithms. They see a Problem and trials; no torch, no store. The hook below names the built-in ones."""

from __future__ import annotations

from collections.abc import Iterable

from evopress.api import Searcher
from evopress.hooks.specs import hookimpl


@hookimpl
def evopress_searchers() -> Iterable[type[Searcher]]:
    """The built-in searchers; imported here so that naming the plugin stays cheap."""
    from evopress.search.baselines import Greedy, Uniform
    from evopress.search.evolve import Evolve
    from evopress.search.guided import Guided
    from evopress.search.knapsack import Knapsack
    from evopress.search.sampling import Random

    return [Uniform, Random, Greedy, Knapsack, Evolve, Guided]
