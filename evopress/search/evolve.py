"""evolve: a (1+λ) evolution with multi-step selection, over all sites and kinds at once, or exactly as published (`mode='parity'`).

EvoPress: Towards Optimal Dynamic Model Compression via Evolutionary Search (2024), arXiv 2410.14649, Algorithm 1. In the default mode the
budget moves between all sites, sizes and kinds, the start is the best of the simple answers, and no profile is offered twice. Draws come
from `moves` (global) and `parity`; measuring is the caller's.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import ClassVar

from evopress.api import Genotype, Knowledge, Problem, Profile, Searcher, Steps, UsageError, unknown
from evopress.search import parity
from evopress.search.ledger import ledger_of
from evopress.search.moves import mutate, random_profile, switch_count
from evopress.search.options import check_count
from evopress.search.selection import best_of, check_initial, check_rungs, tournament
from evopress.search.starts import distinct, known_starts

ATTEMPTS = 40
"""Mutants drawn per wanted offspring before a generation goes on with fewer."""
GENERATIONS = 100
"""By default."""


class Evolve(Searcher):
    """(1+λ) evolution of level assignments under exact budgets.

    generations: G; where not given 100, or the preset's. offspring: λ. rungs: (survivors, tokens) per stage; the parent joins in the last.
    max_mutations: switches of one mutation are min(U, U) of draws from 1 to this. initial: (random candidates, tokens) of the start
    selection, which ranks the known starts and the random ones on one slice. guided: let layer errors, where the problem has them, bias
    half of the global moves. bold: share of global offspring that take up to four times as many moves, over the first quarter of the
    generations.
    Parity only: variant ('auto', 'quant', 'sparsity', 'depth'), group_rule ('size', 'name', 'none'), max_level, max_total_deviation; the
    published settings come with preset ('quant', 'sparsity', 'depth', 'superfast'), which overrides the options it sets, but no generations
    that are given. Raises UsageError for bad options and for more tokens than the search set holds.
    """

    name: ClassVar[str] = "evolve"
    paper: ClassVar[str] = "EvoPress: Towards Optimal Dynamic Model Compression via Evolutionary Search, 2024, arXiv 2410.14649"
    needs: ClassVar[frozenset[Knowledge]] = frozenset({"errors"})

    def __init__(
        self,
        problem: Problem,
        rng: random.Random,
        *,
        mode: str = "global",
        generations: int | None = None,
        offspring: int = 16,
        rungs: Sequence[Sequence[int]] = ((2, 512), (1, 4096)),
        max_mutations: int = 3,
        initial: Sequence[int] = (),
        guided: bool = True,
        bold: float = 0.2,
        variant: str = "auto",
        group_rule: str = "size",
        max_level: int = 99999,
        max_total_deviation: int = 99999,
        preset: str = "",
    ) -> None:
        super().__init__(problem, rng)
        if preset:
            if preset not in parity.PARITY:
                raise unknown("preset", preset, parity.PARITY, "evolve")
            published = parity.PARITY[preset]
            mode, offspring, rungs = "parity", published["offspring"], published["rungs"]
            initial, variant = published.get("initial", initial), published.get("variant", variant)
            group_rule = published.get("group_rule", group_rule)
            generations = published.get("generations") if generations is None else generations
        if mode not in ("global", "parity"):
            raise unknown("mode", mode, ("global", "parity"), "evolve")
        if not 0 <= bold <= 1:
            raise UsageError(f"Option bold={bold!r} is not a share.", "Write a number from 0 to 1.")
        self.mode, self.guided, self.bold = mode, guided, bold
        self.offspring = check_count("offspring", offspring)
        self.max_mutations = check_count("max_mutations", max_mutations)
        self.rungs = check_rungs(rungs)
        first = (32 if mode == "parity" else 0, self.rungs[0 if mode == "parity" else -1][1])
        self.candidates, self.initial_tokens = check_initial(initial) if initial else first
        self._check_tokens()
        self.ledger = ledger_of(problem)
        limits = (check_count("max_level", max_level), check_count("max_total_deviation", max_total_deviation))
        self.rules = parity.rules_of(self.ledger, variant, group_rule, max_mutations, *limits) if mode == "parity" else None
        self._starts = self._parity_starts() if self.rules else self._global_starts()
        self._parent = self._starts[0]
        if generations is None:
            generations = parity.depth_generations(self.ledger, self.rules, self._parent) if preset and self.rules else GENERATIONS
        self.generations = check_count("generations", generations, 0)
        self._origin = parity.rungs_of(self._parent, self.rules) if self.rules else []
        self._seen: set[Genotype] = set()

    @property
    def incumbent(self) -> Profile:
        """The parent; the first start before anything was measured."""
        return self.problem.space.profile(self._parent)

    def steps(self) -> Steps:
        """Start selection, then one tournament a generation until the generations are spent or no new mutant exists."""
        if len(self._starts) > 1:
            order = yield from best_of(self.problem, self.rng, self._starts, self.initial_tokens)
            self._parent = self._starts[order[0]]
        self._seen.update(self.ledger.key(start) for start in self._starts)
        thrifty = self.rules is None
        for generation in range(1, self.generations + 1):
            children = self._draw_parity() if self.rules else self._draw_global(generation)
            if not children:
                return
            self._parent = yield from tournament(self.problem, self.rng, children, self.rungs, self._parent, generation, thrifty)

    def _check_tokens(self) -> None:
        available = sum(self.problem.document_tokens)
        wanted = max(self.initial_tokens, *(tokens for _, tokens in self.rungs))
        if wanted > available:
            raise UsageError(
                f"evolve asks for {wanted:,} tokens a stage, but the search set holds {available:,}.",
                f"Lower the tokens of rungs and initial to at most {available:,}, or give more text.",
            )

    def _parity_starts(self) -> list[Genotype]:
        assert self.rules is not None
        return parity.starts(self.ledger, self.rules, self.rng, max(self.candidates, 1))

    def _global_starts(self) -> list[Genotype]:
        drawn = [random_profile(self.ledger, self.rng) for _ in range(self.candidates)]
        return distinct(self.ledger, [*known_starts(self.problem, self.ledger), *drawn])

    def _draw_global(self, generation: int) -> list[Genotype]:
        """λ mutants never offered before; failed draws raise the number of moves, so that a used-up neighbourhood is left."""
        children: list[Genotype] = []
        failures = 0
        while len(children) < self.offspring and failures < ATTEMPTS * self.offspring:
            moves = switch_count(self.rng, self.max_mutations) + failures // (4 * self.offspring)
            if generation <= max(self.generations // 4, 1) and self.rng.random() < self.bold:
                moves = self.rng.randint(moves, 4 * self.max_mutations)
            child = mutate(self.ledger, self._parent, self.rng, moves, self.guided)
            key = self.ledger.key(child)
            if key in self._seen:
                failures += 1
                continue
            self._seen.add(key)
            children.append(child)
        return children

    def _draw_parity(self) -> list[Genotype]:
        """λ distinct mutants, none of them the parent; fewer where the attempt limit is reached."""
        assert self.rules is not None
        children: list[Genotype] = []
        taken = {self.ledger.key(self._parent)}
        for _ in range(self.offspring):
            for _ in range(parity.ATTEMPTS):
                child = parity.mutant(self.ledger, self._parent, self.rules, self.rng, self._origin)
                key = None if child is None else self.ledger.key(child)
                if child is not None and key is not None and key not in taken:
                    taken.add(key)
                    children.append(child)
                    break
            else:
                break
        return children
