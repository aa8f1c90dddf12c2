"""The interfaces a plugin implements: Method, Kernel, Fitness, Searcher.

A plugin module returns its classes from the hooks in `evopress.hooks.specs`. No torch at import.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from evopress.api.budget import Budget
from evopress.api.cost import Cost
from evopress.api.level import Level
from evopress.api.profile import Profile
from evopress.api.site import Site, SiteKind
from evopress.api.space import Genotype, Space
from evopress.api.trial import Slice, Trial
from evopress.api.variant import Statistics, Variant
from evopress.api.version import code_version

if TYPE_CHECKING:
    import random

    import torch
    from torch import Tensor, nn

Need = Literal["second_moment"]
Knowledge = Literal["errors", "slopes", "energies", "outliers", "spectra", "similarities", "known_slopes", "known_trials"]
REMEMBERED: frozenset[Knowledge] = frozenset({"known_slopes", "known_trials"})
"""What is of earlier searches, not of the sites."""
OUTLIER = 5.0
"""A score this many times the mean of its site is an outlier (OWL, 2310.05175, uses 5 and 7)."""


class Method(ABC):
    """Compresses one site. A frozen dataclass whose fields are the options of `name(option=value)`.

    paper: title, year and arXiv id, or "" for folklore. version: raise it when the numbers of `compress` change (part of the bank key).
    kinds: kinds of site it applies to. needs: the statistics of the input that `compress` reads; it is handed no others.
    """

    name: ClassVar[str]
    paper: ClassVar[str] = ""
    version: ClassVar[int] = 1
    kinds: Collection[SiteKind] = frozenset({"linear"})
    needs: ClassVar[frozenset[Need]] = frozenset()

    @abstractmethod
    def levels(self, site: Site) -> Sequence[Level]:
        """Levels this method offers at a site (may be none, e.g. when a group size does not divide the columns)."""

    @abstractmethod
    def cost(self, site: Site, level: Level) -> Cost:
        """Exact cost from the shape alone; equals the cost of the variant that `compress` will yield."""

    @abstractmethod
    def format(self, site: Site, level: Level) -> str:
        """Weight format of the variant that `compress` will yield: with it and the cost, its time is read from a LatencyTable."""

    @abstractmethod
    def compress(self, site: Site, weight: Tensor, stats: Statistics, levels: Sequence[Level]) -> Iterator[Variant]:
        """Yield one variant per level, in the order given. weight: R×C float32, not to be changed in place.

        Called once per site with all missing levels, so that a factorisation of the statistics is shared. Deterministic.
        """


class Kernel(ABC):
    """Runs x Wᵀ for some weight formats.

    formats: regular expressions a format must match in full. packed: False where the kernel computes with a de-quantised dense weight.
    rounding: relative error (rms of the error over rms(x)·‖w‖) that the kernel adds on purpose because it rounds the activations, say to 8
    bits; 0 for none. A kernel with rounding is never chosen. peer: somebody else's, to be compared with; a latency table may choose it.
    needs: the next step where it supports nothing because something is not installed, "" where nothing can be missing. libraries: names
    of the distributions it calls, beside torch.
    """

    name: ClassVar[str]
    formats: ClassVar[tuple[str, ...]]
    packed: ClassVar[bool] = True
    rounding: ClassVar[float] = 0.0
    peer: ClassVar[bool] = False
    needs: ClassVar[str] = ""
    libraries: ClassVar[tuple[str, ...]] = ()

    @property
    def version(self) -> str:
        """What decides how fast it is beside torch: its code and libraries. Times of another version stand in no table."""
        return code_version(type(self).__module__, self.libraries)

    @abstractmethod
    def supports(self, format: str, shape: tuple[int, int], device: str, dtype: torch.dtype) -> bool:
        """Can it run this format at this shape (rows out, columns in) on this device (`cpu`, `cuda`) for activations of this type?"""

    @abstractmethod
    def pack(self, variant: Variant, dtype: torch.dtype) -> Mapping[str, Tensor]:
        """Repack the variant's tensors for `run` with activations of this type; done once at load, on the CPU."""

    @abstractmethod
    def run(self, x: Tensor, packed: Mapping[str, Tensor]) -> Tensor:
        """x: (tokens, columns in) of the type packed for. Returns (tokens, rows out) in that type. packed: as `pack` gave, or a copy."""

    def read_bytes(self, packed: Mapping[str, Tensor], tokens: int) -> int:
        """Bytes of weights that one `run` with so many tokens reads from memory, each once; all that `packed` holds, unless a kernel knows
        that it reads less.
        """
        from evopress.api.formats import variant_bytes

        return variant_bytes(packed)

    def reference(self, x: Tensor, variant: Variant) -> Tensor:
        """The exact answer in float64, slowly: what the conformance check compares `run` with. For a format of its own a kernel says it."""
        from evopress.api.formats import exact_product

        return exact_product(x, variant)


class Fitness(ABC):
    """Scores a model on documents; lower is better.

    unit: printed behind the value. version: raise it when the numbers of `score` change (part of the key of every trial, so that what was
    measured before is not taken for the same). zero_when_dense: the dense model itself scores zero.
    """

    name: ClassVar[str]
    unit: ClassVar[str] = ""
    version: ClassVar[int] = 1
    zero_when_dense: ClassVar[bool] = False

    @abstractmethod
    def prepare(self, model: nn.Module, documents: Mapping[int, Tensor]) -> None:
        """Read what it needs from the dense model, once. documents: index in the token set -> token ids (1-D int64)."""

    @abstractmethod
    def score(self, model: nn.Module, documents: Sequence[tuple[int, Tensor]]) -> tuple[list[float], list[int]]:
        """Per-document mean over positions, and the number of positions. documents: (index, possibly shortened ids)."""


class Differentiable(ABC):
    """A fitness that also has a gradient. Searchers that need slopes need one."""

    @abstractmethod
    def backward(self, model: nn.Module, documents: Sequence[tuple[int, Tensor]]) -> tuple[list[float], list[int]]:
        """As `score`; also adds the gradient of the position-weighted mean to `.grad` of every parameter that requires one."""


KnownSlopes = tuple[Genotype, tuple[float, ...]]
"""A genotype and the slopes that were measured at it."""


@dataclass(frozen=True)
class KnownTrial:
    """A trial of an earlier search. weight: scored positions. slice: fitnesses compare where it is the same, and nowhere else."""

    genotype: Genotype
    fitness: float
    weight: float
    slice: str


@dataclass(frozen=True)
class Problem:
    """What a searcher is given.

    document_tokens: length of each document of the search set; token_set: its digest; slices are drawn from these.
    starts: genotypes the run already knows (uniform, greedy, knapsack), all within the budgets.
    The rest is what is known of the sites, each empty unless the searcher names it in its `needs`, and one entry a site position:
    errors: per level index, relative output error tr(ΔHΔᵀ)/tr(WHWᵀ) in [0, ∞); a drop counts 1 per linear site below it.
    energies: tr(WHWᵀ) of a linear site, the output's mean square times its rows; 0 for other sites.
    outliers: share of a linear site's scores |W|·‖x‖ above OUTLIER times their mean, in [0, 1]; 0 for other sites.
    spectra: singular values of a linear site's weight, largest first, divided by the largest; () for other sites.
    known_slopes: what earlier searches of these sites learnt, newest first: genotypes, within budgets or not, each with its `Trial.slopes`.
    known_trials: what earlier searches of these sites measured, newest first, within the budgets or not.
    similarities: cosine between the hidden states before and after a sublayer or block, mean over tokens; 1 for linear sites.
    """

    space: Space
    budgets: tuple[Budget, ...]
    token_set: str
    document_tokens: tuple[int, ...]
    errors: tuple[tuple[float, ...], ...] = ()
    starts: tuple[tuple[int, ...], ...] = ()
    energies: tuple[float, ...] = ()
    outliers: tuple[float, ...] = ()
    spectra: tuple[tuple[float, ...], ...] = ()
    similarities: tuple[float, ...] = ()
    known_slopes: tuple[KnownSlopes, ...] = ()
    known_trials: tuple[KnownTrial, ...] = ()


@dataclass(frozen=True)
class Ask:
    """Profiles to be measured, all on the same slice. generation and stage are for progress displays.

    slopes: their trials shall tell slopes too; the searcher must name them in `needs`.
    """

    profiles: tuple[Profile, ...]
    slice: Slice
    generation: int = 0
    stage: int = 0
    slopes: bool = False

    @property
    def tokens(self) -> int:
        """Token-forwards it takes; a backward pass counts as two forward passes."""
        return len(self.profiles) * self.slice.tokens * (SLOPE_FORWARDS if self.slopes else 1)


SLOPE_FORWARDS = 3
"""A forward and a backward pass, in forward passes: a backward multiplies twice as many matrices."""
Steps = Generator[Ask, Sequence[Trial], None]


class Searcher(ABC):
    """Finds a profile within the budgets. Written as a generator that yields what it wants measured.

    Deterministic: the same problem, rng state, options and trials give the same questions, so replaying stored trials restores its
    state. Every profile it yields, and `incumbent`, meets every budget (but see `strays`). options: keyword arguments of the constructor
        of the subclass.
    needs: the fields of the problem that it reads, whether it must have them or not, by name; "slopes" where it asks for slopes, which
        takes a fitness that is Differentiable. Nobody else is given them.
    strays: it also asks for profiles beyond the budgets, to learn what one change alone does; `incumbent` meets them all the same.
    """

    name: ClassVar[str]
    paper: ClassVar[str] = ""
    needs: ClassVar[frozenset[Knowledge]] = frozenset()
    strays: ClassVar[bool] = False

    def __init__(self, problem: Problem, rng: random.Random) -> None:
        self.problem = problem
        self.rng = rng
        self._steps: Steps | None = None
        self._pending: Ask | None = None
        self._remark = ""
        self._front: tuple[Profile, ...] = ()

    @property
    def remark(self) -> str:
        """What a reader of the result should know of `incumbent`, as a clause; "" for nothing. A subclass sets `_remark`."""
        return self._remark

    @property
    @abstractmethod
    def incumbent(self) -> Profile:
        """Best profile so far; valid before the first question too."""

    @property
    def front(self) -> tuple[Profile, ...]:
        """Of a searcher of several objectives: profiles of which none beats another in all, smallest first. A subclass sets `_front`."""
        return self._front

    @abstractmethod
    def steps(self) -> Steps:
        """Yield questions; each `yield` returns one trial per profile, in order. Return when finished."""

    def ask(self) -> Ask | None:
        """The pending question, or None when the search is finished. Asking twice gives the same question."""
        if self._steps is None:
            self._steps = self.steps()
            self._pending = next(self._steps, None)
        return self._pending

    def tell(self, trials: Sequence[Trial]) -> None:
        """Answer the pending question: one trial per profile, in the order asked."""
        if self._steps is None or self._pending is None:
            raise RuntimeError("tell() without a pending question; call ask() first")
        if [trial.profile for trial in trials] != list(self._pending.profiles):
            raise ValueError("the trials must answer the pending question, in its order")
        try:
            self._pending = self._steps.send(trials)
        except StopIteration:
            self._pending = None
