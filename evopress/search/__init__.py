"""Search algorithms. They see a Problem and trials; no torch, no store. The hook below names the built-in ones."""

from __future__ import annotations

from collections.abc import Iterable

from evopress.api import Searcher
from evopress.hooks.specs import hookimpl


@hookimpl
def evopress_searchers() -> Iterable[type[Searcher]]:
    """The built-in searchers; imported here so that naming the plugin stays cheap."""
    from evopress.search.baq import Baq
    from evopress.search.baselines import Greedy, Uniform
    from evopress.search.bayes import Bayes
    from evopress.search.erk import Erk
    from evopress.search.evolve import Evolve
    from evopress.search.guided import Guided
    from evopress.search.knapsack import Knapsack
    from evopress.search.nsga2 import Nsga2
    from evopress.search.owl import Owl
    from evopress.search.predictor import Predictor
    from evopress.search.reinforce import Reinforce
    from evopress.search.relaxed import Relaxed
    from evopress.search.sampling import Random
    from evopress.search.similarity import Similarity
    from evopress.search.welore import Welore

    allocators: list[type[Searcher]] = [Baq, Erk, Owl, Similarity, Welore]
    return [Uniform, Random, Greedy, Knapsack, Evolve, Guided, Bayes, Nsga2, Reinforce, Relaxed, Predictor, *allocators]
