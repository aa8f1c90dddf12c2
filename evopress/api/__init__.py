"""What a plugin author imports: the nouns of evopress, the plugin interfaces and the errors. No torch at import."""

from evopress.api.budget import Budget, check_feasible, uniform_cost
from evopress.api.cost import DENSE_BYTES_PER_PARAM, ZERO, Cost, dense_cost
from evopress.api.errors import (
    EvopressError,
    InfeasibleBudget,
    MissingDependency,
    NotFound,
    NumericalError,
    QualityGateFailed,
    Stopped,
    StorageError,
    UsageError,
    unknown,
)
from evopress.api.level import ABSENT, DENSE, DROP, Level, parse_method
from evopress.api.plugins import (
    OUTLIER,
    REMEMBERED,
    SLOPE_FORWARDS,
    Ask,
    Differentiable,
    Fitness,
    Kernel,
    Knowledge,
    KnownSlopes,
    KnownTrial,
    Method,
    Problem,
    Searcher,
    Steps,
)
from evopress.api.profile import Profile
from evopress.api.site import Site, SiteKind
from evopress.api.space import Genotype, Space, order_levels
from evopress.api.trial import Slice, Trial, weighted_mean
from evopress.api.variant import Statistics, Variant

__all__ = [
    "ABSENT", "DENSE", "DENSE_BYTES_PER_PARAM", "DROP", "OUTLIER", "REMEMBERED", "SLOPE_FORWARDS", "ZERO",
    "Ask", "Budget", "Cost", "Differentiable", "EvopressError", "Fitness", "Genotype", "InfeasibleBudget", "Kernel", "Knowledge",
    "KnownSlopes", "KnownTrial", "Level", "Method", "MissingDependency", "NotFound", "NumericalError", "Problem", "Profile",
    "QualityGateFailed", "Searcher", "Site", "SiteKind", "Slice", "Space", "Statistics", "Steps", "Stopped", "StorageError", "Trial",
    "UsageError", "Variant",
    "check_feasible", "dense_cost", "order_levels", "parse_method", "uniform_cost", "unknown", "weighted_mean",
]  # fmt: skip
