"""What a run found: the rows of the comparison, the winner, and both together as a Run that prints and shows itself.

Holds results; finds nothing. Made by `evopress.run`, read by the reports, the command line and notebooks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evopress.api import Cost, Profile, QualityGateFailed
from evopress.api.study import Study
from evopress.plan import Plan
from evopress.report.statistics import P_VALUE, Interval, Paired, accepted, below
from evopress.search.loop import Outcome
from evopress.store import LatencyRow, RunRow
from evopress.workbench import Workbench

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Row:
    """One profile of the final comparison, on the held-out documents.

    label: dense, uniform, random, greedy, knapsack, the searcher, or `SEARCHER front N` for others of its front.
    against_uniform: paired differences of the fitness.
    search_evaluations, search_tokens: evaluations and token-forwards spent to find it.
    speed: phase -> measured tokens per second, absent where it was not measured. cost: with the nanoseconds that the LatencyTable says.
    """

    label: str
    profile: Profile
    cost: Cost
    bits: float
    kl: Interval
    nll: Interval
    against_uniform: Paired | None
    search_evaluations: int = 0
    search_tokens: int = 0
    speed: Mapping[str, LatencyRow] = field(default_factory=dict)


@dataclass(frozen=True)
class Best:
    """The winner. `apply` writes it into a model; `tokenizer` is the model's own."""

    label: str
    profile: Profile
    _bench: Workbench = field(repr=False, compare=False)

    @property
    def tokenizer(self) -> Any:
        """The tokenizer of the study's model."""
        return self._bench.tokenizer

    def apply(self, model: nn.Module | str | Path | None = None) -> nn.Module:
        """Stitch the winner into `model` (default: the study's own) and return it: a live model that generates text.

        The model must have the sites of the study's model. Its weights are replaced by de-quantised ones; dropped parts are skipped.
        """
        from evopress.models.stitch import Stitcher

        self._bench.complete_bank()
        if isinstance(model, str | Path):
            from evopress.models.load import load, resolve

            model = load(resolve(str(model), self._bench.home), self._bench.dtype, self._bench.device)[0]
        target = self._bench.model if model is None else model
        stitcher = self._bench.stitcher if model is None else Stitcher(target, self._bench.plan.sitemap.sites)
        stitcher.set(self.profile, self._bench.decoder)
        return target


@dataclass(frozen=True)
class Run:
    """What a run found: the comparison on held-out documents, and the winner.

    history: every execution of the study so far, this one last. remarks: what the searchers say of their profiles, by label.
    known: how much of earlier searches it started from, by the name of the field of the problem. bank_seconds: what building the bank
    took, calibration included; None where nobody noted it.
    """

    study: Study
    plan: Plan
    rows: tuple[Row, ...]
    best: Best
    outcome: Outcome
    storage: str
    history: tuple[RunRow, ...] = ()
    remarks: Mapping[str, str] = field(default_factory=dict)
    known: Mapping[str, int] = field(default_factory=dict)
    bank_seconds: float | None = None

    @property
    def gain(self) -> Paired | None:
        """The winner against uniform: a paired test of the fitness on held-out documents."""
        return next(row.against_uniform for row in self.rows if row.label == self.best.label)

    def require_gain(self) -> None:
        """Raise QualityGateFailed unless the winner beats uniform on held-out documents (a lower mean, and p < 0.01).

        Nor may greedy or knapsack, where they were measured, have a lower mean than it. Time is not asked about: a winner that was measured
        above its latency budget is warned of in the comparison, and passes.
        """
        if self.gain is None or not accepted(self.gain.difference, self.gain.p):
            p = "no uniform profile to compare with" if self.gain is None else f"{self.gain.difference:+.4f}, p = {self.gain.p:.3g}"
            raise QualityGateFailed(
                f"The profile of {self.best.label} does not beat uniform on held-out documents ({p}, asked for p < {P_VALUE}).",
                "Search longer, or judge on more text: with few documents no p can be small enough (raise --heldout-tokens).",
            )

        differences = {row.label: row.against_uniform.difference for row in self.rows if row.against_uniform is not None}
        if lower := below(differences, self.best.label):
            raise QualityGateFailed(
                f"The profile of {self.best.label} is worse than that of {lower} on held-out documents,"
                f" by {differences[self.best.label] - differences[lower]:.4f}, and {lower} takes no search.",
                f"Use the profile of {lower}, or search longer and on more text (raise --search-tokens).",
            )

    def __str__(self) -> str:
        from evopress.report.comparison import comparison_text
        from evopress.report.result import result_json

        return comparison_text(result_json(self))

    def _repr_html_(self) -> str:
        from evopress.report.comparison import comparison_html
        from evopress.report.result import result_json

        return comparison_html(result_json(self))
