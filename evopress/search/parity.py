"""The published level switch, faithfully: groups of equal size, paired up and down steps, drop masks; one kind of compression at a time.

EvoPress (2024), arXiv 2410.14649, section 3 and its three searches. Differences from the published code, all on purpose: every redraw has
an attempt limit, copies of the parent are never offspring, an up step is judged together with its down step, and costs are stored bytes, so
an offspring that would leave the budget is redrawn. The search over all kinds at once is `moves.mutate`. Called by `evolve`.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from evopress.api import DENSE, DROP, Genotype, Space, UsageError, unknown
from evopress.search.baselines import Ladders, uniform_bases
from evopress.search.ledger import Draft, Ledger
from evopress.search.moves import switch_count

Variant = Literal["quant", "sparsity", "depth"]
ATTEMPTS = 200
"""Draws an offspring may take before the generation goes on without it."""

PARITY: dict[str, dict[str, Any]] = {
    "quant": {"generations": 150, "offspring": 128, "rungs": ((16, 2048), (4, 16384), (1, 131072)), "group_rule": "size"},
    "sparsity": {"generations": 400, "offspring": 64, "rungs": ((8, 2048), (2, 16384), (1, 65536)), "group_rule": "none"},
    "depth": {"offspring": 32, "rungs": ((2, 2048), (1, 32768)), "initial": (64, 2048), "variant": "depth"},
    "superfast": {"generations": 400, "offspring": 16, "rungs": ((1, 512), (1, 8192))},
}
"""Published settings: options of `evolve` in parity mode. Generations of the depth search depend on the space: `depth_generations`."""


@dataclass(frozen=True)
class Rules:
    """What a parity search may change. ladders: gene -> its rungs (quant, sparsity). groups: genes that trade with each other.

    kinds: per mask the genes that can be dropped (depth). paired: switches are one step down and one step up in one group; otherwise ups
    come first and downs follow until the budget holds. max_level, max_total_deviation: box around `origin`, in rungs.
    """

    variant: Variant
    ladders: Ladders
    groups: tuple[tuple[int, ...], ...]
    kinds: tuple[tuple[int, ...], ...]
    paired: bool
    max_mutations: int
    max_level: int
    max_total_deviation: int


def depth_generations(ledger: Ledger, rules: Rules, start: Genotype) -> int:
    """Generations of the published depth search, int(k(L−k)/1.5) for k of L sublayers of a kind dropped, as its starts drop them.

    The published masks are all of one length. Where sublayers of one kind are fewer, or all stay, the longest search counts.
    """
    counts = [(sum(_gone(ledger, start, gene) for gene in kind), len(kind)) for kind in rules.kinds]
    return max((int(dropped * (length - dropped) / 1.5) for dropped, length in counts), default=0)


def rules_of(
    ledger: Ledger,
    variant: str = "auto",
    group_rule: str = "size",
    max_mutations: int = 3,
    max_level: int = 99999,
    max_total_deviation: int = 99999,
) -> Rules:
    """Read the rules off a space.

    `auto` takes depth when only sublayers have choices, sparsity when the budget counts parameters, else quant. Linear sites use the rungs
    of their single method; the dense level only where it is the only one. Depth drops attention and MLP sublayers; whole blocks only where
    nothing else can be dropped. Kinds that do not take part stay dense. Raises UsageError for a mix that was not decided by `variant`.
    """
    space = ledger.space
    ladders = {gene: _rungs(ledger, gene) for gene in range(len(space.genes))}
    ladder_genes = [gene for gene in ledger.plain if len(ladders[gene]) > 1]
    if variant == "auto":
        if ladder_genes and ledger.containers:
            raise UsageError(
                "Parity mode searches one kind of compression, but this space has both levels and drops.",
                "Use mode='global', remove a method, or choose with variant='quant', 'sparsity' or 'depth'.",
            )
        counts_params = all(budget.field == "params" for budget in ledger.budgets)
        variant = "depth" if ledger.containers else "sparsity" if counts_params else "quant"
    if variant == "depth":
        ladders = {gene: rungs if gene in ledger.containers else (ledger.top(gene),) for gene, rungs in ladders.items()}
        return Rules("depth", ladders, (), _masks(ledger), True, max_mutations, max_level, max_total_deviation)
    if variant not in ("quant", "sparsity"):
        raise unknown("variant", variant, ("auto", "quant", "sparsity", "depth"), "evolve")
    methods = sorted({space.choices(gene)[rung].method for gene in ladder_genes for rung in ladders[gene]})
    if len(methods) > 1:
        raise UsageError(f"Parity mode searches the levels of one method, but the space has {', '.join(methods)}.", "Use mode='global'.")
    paired = variant == "sparsity" or group_rule != "none"
    groups = group_genes(space, ladder_genes, "none" if variant == "sparsity" else group_rule)
    checked: Variant = "quant" if variant == "quant" else "sparsity"
    return Rules(checked, ladders, groups, (), paired, max_mutations, max_level, max_total_deviation)


def _rungs(ledger: Ledger, gene: int) -> tuple[int, ...]:
    choices = ledger.space.choices(gene)
    levels = sorted(range(len(choices)), key=lambda level: (ledger.weight[gene][level], level))
    if gene in ledger.containers:
        return tuple(level for level in levels if choices[level] != DROP)[-1:]
    return tuple(level for level in levels if choices[level] != DENSE) or tuple(levels)


def _masks(ledger: Ledger) -> tuple[tuple[int, ...], ...]:
    by_kind: dict[str, list[int]] = {"attention": [], "mlp": [], "block": []}
    for gene in ledger.containers:
        by_kind[ledger.space.sites[ledger.space.genes[gene][0]].kind].append(gene)
    parts = [by_kind["attention"], by_kind["mlp"]] if by_kind["attention"] or by_kind["mlp"] else [by_kind["block"]]
    return tuple(tuple(part) for part in parts if part)


def group_genes(space: Space, genes: Sequence[int], rule: str) -> tuple[tuple[int, ...], ...]:
    """Genes that may trade levels: of equal parameter count (`size`), of equal role (`name`), or all (`none`)."""
    if rule not in ("size", "name", "none"):
        raise unknown("group_rule", rule, ("size", "name", "none"), "evolve")
    groups: dict[object, list[int]] = {}
    for gene in genes:
        sites = [space.sites[site] for site in space.genes[gene]]
        key: object = sum(site.weights for site in sites) if rule == "size" else sites[0].role if rule == "name" else None
        groups.setdefault(key, []).append(gene)
    return tuple(tuple(group) for group in groups.values())


def level_switch(rungs: Sequence[int], rules: Rules, rng: random.Random, origin: Sequence[int] = ()) -> tuple[int, int] | None:
    """Draw one switch: (gene that steps down, gene that steps up), or None where no group has both.

    The group is drawn in proportion to its number of layers, among the groups that can switch; both genes are judged before either moves
    and drawn independently, so they may be the same one (which changes nothing). rungs, origin: rung per gene, now and at the start.
    """
    options = []
    for group in rules.groups:
        down = [gene for gene in group if _may(rungs, gene, -1, rules, origin)]
        up = [gene for gene in group if _may(rungs, gene, 1, rules, origin)]
        if down and up:
            options.append((len(group), down, up))
    if not options:
        return None
    ((_, down, up),) = rng.choices(options, weights=[size for size, _, _ in options])
    return rng.choice(down), rng.choice(up)


def _may(rungs: Sequence[int], gene: int, step: int, rules: Rules, origin: Sequence[int]) -> bool:
    there = rungs[gene] + step
    return 0 <= there < len(rules.ladders[gene]) and (not origin or abs(there - origin[gene]) <= rules.max_level)


def rungs_of(genotype: Sequence[int], rules: Rules) -> list[int]:
    """Rung per gene of a genotype."""
    return [rules.ladders[gene].index(level) if level in rules.ladders[gene] else 0 for gene, level in enumerate(genotype)]


def levels_of(rungs: Sequence[int], rules: Rules, base: Sequence[int]) -> Genotype:
    """Genotype of rungs; genes without a ladder keep their level in `base`."""
    ladders = rules.ladders
    return tuple(ladders[gene][rung] if len(ladders[gene]) > 1 else base[gene] for gene, rung in enumerate(rungs))


def mutant(ledger: Ledger, parent: Genotype, rules: Rules, rng: random.Random, origin: Sequence[int] = ()) -> Genotype | None:
    """One draw of the published mutation; None where it broke a rule or a budget and must be redrawn. May be the parent again."""
    count = switch_count(rng, rules.max_mutations)
    if rules.variant == "depth":
        child = swap_masks(parent, ledger, rules, rng, count)
    elif rules.paired:
        child = _switched(parent, rules, rng, count, origin)
    else:
        child = _ungrouped(ledger, parent, rules, rng, count)
    return child if child is not None and ledger.fits(child) else None


def _switched(parent: Genotype, rules: Rules, rng: random.Random, count: int, origin: Sequence[int]) -> Genotype | None:
    rungs = rungs_of(parent, rules)
    for _ in range(count):
        pair = level_switch(rungs, rules, rng, origin)
        if pair is None:
            return None
        rungs[pair[0]] -= 1
        rungs[pair[1]] += 1
    if origin and sum(abs(now - then) for now, then in zip(rungs, origin, strict=True)) > rules.max_total_deviation:
        return None
    return levels_of(rungs, rules, parent)


def _ungrouped(ledger: Ledger, parent: Genotype, rules: Rules, rng: random.Random, count: int) -> Genotype | None:
    """The `none` rule: ups anywhere, then downs anywhere until the budget holds; at most 10 changes, and 0.8 of the freed cost used."""
    draft, genes = Draft(ledger, parent), [gene for group in rules.groups for gene in group]
    rungs = rungs_of(parent, rules)
    added, removed, changes = 0.0, 0.0, 0
    while changes < count or not draft.fits:
        step = 1 if changes < count else -1
        able = [gene for gene in genes if _may(rungs, gene, step, rules, ())]
        if not able or changes >= 10:
            return None
        gene = rng.choice(able)
        rungs[gene] += step
        before = draft.totals[0]
        draft.set(gene, rules.ladders[gene][rungs[gene]])
        added += max(draft.totals[0] - before, 0)
        removed += max(before - draft.totals[0], 0)
        changes += 1
    return draft.genotype if added >= 0.8 * removed else None


def swap_masks(parent: Genotype, ledger: Ledger, rules: Rules, rng: random.Random, count: int) -> Genotype | None:
    """Depth: `count` times, a fair coin between the masks, then one kept sublayer goes and one removed sublayer returns."""
    levels = list(parent)
    for _ in range(count):
        usable = [kind for kind in rules.kinds if 0 < sum(_gone(ledger, levels, gene) for gene in kind) < len(kind)]
        if not usable:
            return None
        kind = rng.choice(usable)
        kept = [gene for gene in kind if not _gone(ledger, levels, gene)]
        removed = [gene for gene in kind if _gone(ledger, levels, gene)]
        lost, back = rng.choice(kept), rng.choice(removed)
        levels[lost], levels[back] = ledger.space.choices(lost).index(DROP), rules.ladders[back][-1]
    return tuple(levels)


def _gone(ledger: Ledger, levels: Sequence[int], gene: int) -> bool:
    return ledger.space.choices(gene)[levels[gene]] == DROP


def starts(ledger: Ledger, rules: Rules, rng: random.Random, candidates: int) -> list[Genotype]:
    """Where a parity search begins: the uniform profile when it meets the budget exactly, else distinct random ones to select from.

    Exactly means that no single upgrade to the next uniform level fits any more. Raises UsageError where the rules allow no profile.
    """
    if rules.variant == "depth":
        return _distinct(ledger, [_random_masks(ledger, rules, rng) for _ in range(candidates)])
    bases = uniform_bases(ledger, rules.ladders)
    fitting = [base for base in bases if ledger.fits(base)]
    if not fitting:
        raise UsageError(
            "No uniform profile of this method meets the budget, so parity mode has no start.", "Raise the budget or use mode='global'."
        )
    low = fitting[-1]
    high = bases[bases.index(low) + 1] if low != bases[-1] else low
    draft = Draft(ledger, low)
    above = [gene for gene in _movable(rules) if high[gene] != low[gene]]
    if rules.variant == "sparsity" or not any(draft.allows(draft.delta(gene, high[gene])) for gene in above):
        return [low]
    return _distinct(ledger, [_lowered(ledger, high, rules, rng) for _ in range(candidates)])


def _movable(rules: Rules) -> list[int]:
    return [gene for group in rules.groups for gene in group]


def _lowered(ledger: Ledger, high: Genotype, rules: Rules, rng: random.Random) -> Genotype:
    """From the uniform level above the target, lower random layers (group in proportion to its layers) until the budget holds."""
    draft, rungs = Draft(ledger, high), rungs_of(high, rules)
    while not draft.fits:
        able = [(len(group), [gene for gene in group if rungs[gene] > 0]) for group in rules.groups]
        able = [(size, group) for size, group in able if group]  # never empty: the cheapest uniform profile fits
        ((_, group),) = rng.choices(able, weights=[size for size, _ in able])
        gene = rng.choice(group)
        rungs[gene] -= 1
        draft.set(gene, rules.ladders[gene][rungs[gene]])
    return draft.genotype


def _random_masks(ledger: Ledger, rules: Rules, rng: random.Random) -> Genotype:
    """The same number of removals in every mask, the smallest that meets the budget for the sublayers drawn."""
    kept = tuple(rules.ladders[gene][-1] for gene in range(len(ledger.space.genes)))
    orders = [rng.sample(kind, len(kind)) for kind in rules.kinds]
    for count in range(max((len(order) for order in orders), default=0) + 1):
        draft = Draft(ledger, kept)
        for order in orders:
            for gene in order[:count]:
                draft.set(gene, ledger.space.choices(gene).index(DROP))
        if draft.fits:
            return draft.genotype
    raise UsageError("Dropping every sublayer does not meet the budget.", "Raise the budget or use mode='global'.")


def _distinct(ledger: Ledger, genotypes: Sequence[Genotype]) -> list[Genotype]:
    return list({ledger.key(genotype): genotype for genotype in genotypes}.values())
