"""Ways to score a model against the dense one. Registered through the same hooks as any plugin; torch is imported when scoring."""

from __future__ import annotations

from collections.abc import Iterable

from evopress.api import Fitness
from evopress.fitness.divergence import KL
from evopress.fitness.perplexity import Perplexity
from evopress.hooks.specs import hookimpl


@hookimpl
def evopress_fitnesses() -> Iterable[type[Fitness]]:
    """KL divergence to the dense model and perplexity."""
    return [KL, Perplexity]
