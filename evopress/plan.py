"""The plan of a study: model, sites, methods, space, budgets and searchers, from the configuration alone. No weights are read.

Called by `evopress.run` and by `--dry-run`.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from evopress.api import (
    DENSE,
    DROP,
    Budget,
    Cost,
    EvopressError,
    Level,
    Method,
    Searcher,
    Site,
    Space,
    UsageError,
    check_feasible,
    dense_cost,
    order_levels,
    unknown,
)
from evopress.api.budget import FIELDS, workload_of
from evopress.api.level import parse_method
from evopress.api.study import Study
from evopress.api.workload import Workload
from evopress.hooks.registry import Registry, check_options, searcher_options
from evopress.latency.table import LatencyTable
from evopress.models.load import ModelRef, resolve, skeleton
from evopress.models.sites import SiteMap, check_coverage, find_sites
from evopress.pricing import priced, runnable, without_useless

ENDLESS = 10**9
"""Rounds or generations of a rival that ends by its evaluations or tokens."""


@dataclass(frozen=True)
class Plan:
    """A study whose names are resolved and whose budgets are known to be feasible, each on its own.

    positions: of the model, None for no limit. workload, table: what a latency budget is of, and the measured times; None without one.
    """

    study: Study
    ref: ModelRef
    sitemap: SiteMap
    methods: Mapping[str, Method]
    space: Space
    budgets: tuple[Budget, ...]
    positions: int | None = None
    workload: Workload | None = None
    table: LatencyTable | None = None

    @property
    def coverage(self) -> float:
        """Share of the parameters outside embeddings and head that the space reaches: that have a level to choose, or can be dropped."""
        return reached(self.space) / max(1, self.sitemap.total_params - self.sitemap.embedding_params)

    @property
    def coverage_total(self) -> float:
        """Share of all parameters that the space reaches."""
        return reached(self.space) / max(1, self.sitemap.total_params)

    @property
    def bank_bytes(self) -> int:
        """Bytes of all variants the bank will hold, exact from shapes (file headers not counted)."""
        return sum(
            cost.bytes
            for levels, costs in zip(self.space.levels, self.space.costs, strict=True)
            for level, cost in zip(levels, costs, strict=True)
            if level not in (DENSE, DROP)
        )


def make_plan(study: Study, registry: Registry, home: Path, tables: Callable[[], LatencyTable] | None = None) -> Plan:
    """Resolve names, find sites, check coverage and budgets. Of a hub id, only the configuration is fetched.

    tables: gives this machine's LatencyTable; asked for by a latency budget only, and such a study cannot be planned without.
    Raises UsageError, NotFound (a cell of the table that was never measured, too), InfeasibleBudget.
    """
    where = f"study {study.name}"
    registry.get("fitness", study.fitness, where)
    check_searchers(study, registry)
    methods: dict[str, Method] = {}
    for specification in study.methods:
        method = registry.method(specification, where)
        if method.name in methods:
            raise UsageError(f"Method {method.name!r} stands twice in {where}.", "Join the options: gptq(bits=2|3|4).")
        methods[method.name] = method
    ref = resolve(study.model or None, home, weights=False)
    model = skeleton(ref)
    config: Any = model.config
    positions: int | None = getattr(config, "max_position_embeddings", None)
    if positions is not None and study.window > positions:
        raise UsageError(f"Key 'window' of {where} is {study.window}, but {ref.name} has {positions} positions.", "Lower the window.")
    sitemap = find_sites(model)
    check_coverage(sitemap)
    space = build_space(sitemap, list(methods.values()), study.links)
    workload, table = workload_of(study.budgets), None
    if workload is not None:
        if tables is None:
            raise UsageError(f"Study {study.name} has a latency budget, which is of no use here.", "Leave it out.")
        for text in study.budgets:  # a slip is told before anybody is sent to time kernels
            Budget.parse(text, space)
        table = runnable(tables(), registry.kernels())
        space = priced(space, methods, table, workload, ref.config_digest, study.model)
        fields = {FIELDS[text.partition("=")[0].strip().lower()] for text in study.budgets}
        space = without_useless(space, sorted(fields))
    budgets = tuple(Budget.parse(text, space) for text in study.budgets)
    check_feasible(space, budgets)
    plan = Plan(study, ref, sitemap, methods, space, budgets, positions, workload, table)
    _check_reach(plan)
    return plan


def with_weights(plan: Plan, home: Path) -> Plan:
    """The plan, with the model's weight files at hand; those of a hub id are fetched. Raises NotFound."""
    return replace(plan, ref=resolve(plan.study.model or None, home))


def _check_reach(plan: Plan) -> None:
    """Raise UsageError when the methods leave most of the model without a choice, naming the roles they miss."""
    least = plan.study.least_coverage
    if plan.coverage >= least:
        return
    shown = ", ".join(f"{role} ({params:,})" for role, params in missed_roles(plan.space)[:8])
    raise UsageError(
        f"The methods of study {plan.study.name} reach {plan.coverage:.1%} of the parameters outside embeddings and head; at least "
        f"{least:.0%} is needed. Without a level to choose (parameters): {shown}.",
        "Use a group size that divides their columns, or add a method; least_coverage lowers the limit for a study of one part on purpose.",
    )


def _chosen(space: Space) -> list[bool]:
    """Per site: can the space change it? It has more than one level, or stands under a site that can be dropped."""
    able = [len(levels) > 1 for levels in space.levels]
    droppable = [DROP in levels for levels in space.levels]
    for position, parent in enumerate(space.parents):
        if parent >= 0 and droppable[parent]:
            able[position] = droppable[position] = True
    return able


def reached(space: Space) -> int:
    """Parameters of the linear sites that the space can change."""
    return sum(site.weights for site, able in zip(space.sites, _chosen(space), strict=True) if able)


def missed_roles(space: Space) -> list[tuple[str, int]]:
    """Roles of linear sites that the space cannot change, with their parameters, largest first."""
    missed: dict[str, int] = {}
    for site, able in zip(space.sites, _chosen(space), strict=True):
        if site.kind == "linear" and not able:
            missed[site.role] = missed.get(site.role, 0) + site.weights
    return sorted(missed.items(), key=lambda item: -item[1])


def build_space(sitemap: SiteMap, methods: Sequence[Method], links: Sequence[str] = ()) -> Space:
    """The levels every site may take: `dense`, and what each method offers there. Raises UsageError when a method offers nothing."""
    levels: list[tuple[Level, ...]] = []
    costs: list[tuple[Cost, ...]] = []
    offered = dict.fromkeys((method.name for method in methods), 0)
    for site in sitemap.sites:
        options = {DENSE: dense_cost(site.weights if site.kind == "linear" else site.own_params)}
        for method in methods:
            if site.kind in method.kinds:
                found = _offered(method, site)
                offered[method.name] += len(found)
                options |= found
        ordered = order_levels(options)
        levels.append(ordered[0])
        costs.append(ordered[1])
    for name, count in offered.items():
        if not count:
            raise UsageError(f"Method {name!r} offers no level at any site of this model.", "Check its group size and its kinds of site.")
    return Space(sitemap.sites, tuple(levels), tuple(costs), dense_cost(sitemap.fixed_params), link_groups(sitemap.sites, links))


def _offered(method: Method, site: Site) -> dict[Level, Cost]:
    """Level -> cost. Raises UsageError for whatever the code of a plugin raises: most often options that it does not check."""
    try:
        return {level: method.cost(site, level) for level in method.levels(site)}
    except EvopressError:
        raise
    except Exception as error:
        raise UsageError(
            f"{method} fails to offer levels at {site.name}: {type(error).__name__}: {error}.",
            "If its options are as its documentation says, that is a bug of its plugin: evopress plugins check NAME.",
        ) from error


def link_groups(sites: Sequence[Site], links: Sequence[str]) -> tuple[tuple[int, ...], ...]:
    """Groups of site positions from `q_proj+k_proj+v_proj`: those roles share a level within each block. Raises UsageError."""
    roles = {site.role for site in sites if site.kind == "linear"} | {site.role for site in sites if not site.role.isdigit()}
    groups: list[tuple[int, ...]] = []
    for link in links:
        wanted = [role.strip() for role in link.split("+")]
        if len(set(wanted)) < 2:
            raise UsageError(f"Link {link!r} joins no two roles.", "Write two or more roles of a block, e.g. q_proj+k_proj+v_proj.")
        for role in wanted:
            if role not in roles:
                raise unknown("role", role, roles, f"link {link!r}")
        by_depth: dict[int, list[int]] = {}
        for position, site in enumerate(sites):
            if site.role in wanted:
                by_depth.setdefault(site.depth, []).append(position)
        groups += [tuple(members) for members in by_depth.values() if len(members) > 1]
    return tuple(groups)


def check_searchers(study: Study, registry: Registry) -> None:
    """Raise UsageError for unknown searchers and options, and for two that would stand under one name in the comparison."""
    searcher = searcher_class(registry, study.searcher, study)[0]
    seen: set[str] = set()
    for text in study.baselines:
        cls, options = searcher_class(registry, text, study)
        if cls.name in seen or (cls is searcher and options):
            raise UsageError(
                f"Baseline {text!r} of study {study.name} stands under the name of another searcher.",
                "Compare its options in a study of its own.",
            )
        seen.add(cls.name)


def searcher_class(registry: Registry, text: str, study: Study) -> tuple[type[Searcher], dict[str, Any]]:
    """Class and options of `evolve(offspring=16)`. Raises UsageError."""
    name, options = parse_method(text)
    cls = registry.get("searcher", name, f"study {study.name}")
    check_options("searcher", name, options, searcher_options(cls))
    return cls, {key: _pairs(value) for key, value in options.items()}


def _pairs(value: Any) -> Any:
    """`4x1024|1x8192` becomes ((4, 1024), (1, 8192)); anything else stays."""
    parts = value if isinstance(value, tuple) else (value,)
    found = [re.fullmatch(r"(\d+)x(\d+)", str(part)) for part in parts]
    pairs = tuple((int(match.group(1)), int(match.group(2))) for match in found if match)
    return pairs if len(pairs) == len(parts) else value


def default_options(searcher: type[Searcher]) -> dict[str, Any]:
    """Options of a searcher that were not given."""
    known = inspect.signature(searcher.__init__).parameters
    return {name: known[name].default for name in searcher_options(searcher) if known[name].default is not inspect.Parameter.empty}


def options_like(options: Mapping[str, Any], rival: type[Searcher], evaluations: int) -> dict[str, Any]:
    """Options that give a rival the stages and the number of evaluations of the main searcher."""
    known = searcher_options(rival)
    shared = {key: value for key, value in options.items() if key == "rungs" and key in known}
    if "candidates" in known and "offspring" in options:
        shared["candidates"] = options["offspring"]
    shared |= {key: ENDLESS for key in ("rounds", "generations") if key in known}
    if "evaluations" in known and "rungs" in options:  # without common stages, evaluations would not be of one size
        shared["evaluations"] = evaluations
    return shared
