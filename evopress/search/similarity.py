"""Similarity: drop first what changes the hidden states least. LLM-Drop for sublayers, ShortGPT for blocks."""

from __future__ import annotations

import random
from typing import ClassVar

from evopress.api import DROP, Genotype, Knowledge, Problem, UsageError, unknown
from evopress.search.baselines import even_order, families, uniform_bases, uniform_genotype
from evopress.search.ledger import Draft, Ledger, ledger_of
from evopress.search.moves import fill_in_order
from evopress.search.ratios import need_facts
from evopress.search.settled import Settled

SCOPES = ("sublayer", "block")
UNUSED = "the budget is met without a drop, so this is the uniform profile"


def ranking(ledger: Ledger, similarities: tuple[float, ...], per: str) -> tuple[list[int], list[int]]:
    """Droppable genes from the most to the least similar: those of the scope, and the others. Equal ones by depth, the deepest first."""
    space = ledger.space

    def rank(gene: int) -> tuple[float, int]:
        sites = space.genes[gene]
        return -sum(similarities[site] for site in sites) / len(sites), -gene

    own = [gene for gene in ledger.containers if (space.sites[space.genes[gene][0]].kind == "block") == (per == "block")]
    others = [gene for gene in ledger.containers if gene not in own]
    return sorted(own, key=rank), sorted(others, key=rank)


def without(draft: Draft, order: list[int]) -> None:
    """Drop in this order until every budget holds; then bring back, the least similar first, what still fits."""
    dropped = []
    for gene in order:
        if draft.fits:
            break
        if draft.active(gene):
            dropped.append((gene, draft.levels[gene]))
            draft.set(gene, draft.ledger.space.choices(gene).index(DROP))
    for gene, level in reversed(dropped):
        if draft.fits and draft.active(gene) and draft.allows(draft.delta(gene, level)):
            draft.set(gene, level)


class Similarity(Settled):
    """Drops sublayers, or blocks, in the order of the cosine between the hidden states before and after them, all kinds in one ranking.

    What Matters in Transformers? Not All Attention is Needed (LLM-Drop, 2024, 2406.15786), its joint layer drop, with per=sublayer;
    ShortGPT: Layers in Large Language Models are More Redundant Than You Expect (2024, 2403.03853) with per=block. Departures: it drops
    until the budget is met and not a given number, then brings back what still fits; similarities are of the dense model throughout.
    Where linear sites have levels too, drops come last: as far as uniform compression meets the budget this is the uniform profile, which
    the remark says; below that, linear sites stand at their cheapest uniform level, and what a drop leaves over is spent on raising them,
    evenly over depth. Where the scope is used up, the other kind of container follows. Measures nothing. Raises UsageError for another
    scope, and where nothing of the scope can be dropped.
    """

    name: ClassVar[str] = "similarity"
    paper: ClassVar[str] = (
        "What Matters in Transformers? Not All Attention is Needed (He et al., 2024, arXiv:2406.15786);"
        " ShortGPT (Men et al., 2024, arXiv:2403.03853)"
    )
    needs: ClassVar[frozenset[Knowledge]] = frozenset({"errors", "similarities"})

    def __init__(self, problem: Problem, rng: random.Random, *, per: str = "sublayer") -> None:
        if per not in SCOPES:
            raise unknown("scope of drops", per, SCOPES, "option per of searcher similarity")
        self.per = per
        super().__init__(problem, rng)

    def answer(self) -> Genotype:
        """Drops by similarity, as far as they are needed."""
        problem = self.problem
        ledger = ledger_of(problem)
        own, others = ranking(ledger, problem.similarities or (0.0,) * len(problem.space.sites), self.per)
        if not own:
            kinds = "block" if self.per == "block" else "attention|mlp"
            raise UsageError(
                f"Searcher 'similarity' drops {self.per}s, and the methods of this search can drop none.",
                f"Add --method 'drop(kinds={kinds})', or take --searcher uniform.",
            )
        need_facts(problem, self.name, "similarities")
        uniform = uniform_genotype(problem, ledger)
        if not any(ledger.is_drop[site][uniform[gene]] for gene in ledger.containers for site in ledger.space.genes[gene][:1]):
            self._remark = UNUSED
            return uniform
        drafts = []
        for ladders in families(ledger).values():
            draft = Draft(ledger, uniform_bases(ledger, ladders)[0])
            without(draft, own + others)
            if draft.fits:
                drafts.append(draft)
        # Of several methods' cheapest levels the one that needs the fewest drops, and spends least.
        best = min(drafts, key=lambda draft: (_drops(draft), draft.totals[0]), default=Draft(ledger, ledger.floor))
        fill_in_order(best, [ledger.plain[place] for place in even_order(len(ledger.plain))])
        fill_in_order(best, ledger.movable)
        return best.genotype


def _drops(draft: Draft) -> int:
    return sum(draft.ledger.is_drop[draft.ledger.space.genes[gene][0]][draft.levels[gene]] for gene in draft.ledger.containers)
