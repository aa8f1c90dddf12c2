"""Build a bank: calibrate block by block and compress every site at every level that is not on disk yet.

Shapes: R rows out, C columns in. Resumable: what is on disk is skipped, so a kill costs at most one site. Called by the run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from evopress.api import DENSE, DROP, Level, Method, NumericalError, Site, Space, Statistics, Variant
from evopress.api.formats import decode
from evopress.bank.bank import Bank, Recipe

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Task:
    """One variant that the bank must hold."""

    site: Site
    level: Level
    method: Method
    key: str


def tasks(space: Space, methods: Mapping[str, Method], recipe: Recipe) -> list[Task]:
    """Every variant of a space: all levels of linear sites except `dense`."""
    return [
        Task(site, level, methods[level.method], recipe.key(site, level, methods[level.method].version))
        for site, levels in zip(space.sites, space.levels, strict=True)
        for level in levels
        if level not in (DENSE, DROP)
    ]


def build(
    missing: Sequence[Task],
    bank: Bank,
    calibration: Callable[[set[str]], Iterator[tuple[int, Mapping[str, Statistics]]]],
    read: Callable[[Site], Tensor],
    progress: Callable[[Site, int], None],
) -> None:
    """Compress every missing variant.

    calibration: given the names of the sites wanted, yields per block the statistics of the input of each of them. read: weight_RC of a
    site in float32. progress: called with each finished site and its number of levels. Raises NumericalError and StorageError.
    """
    by_site: dict[str, list[Task]] = {}
    for task in missing:
        by_site.setdefault(task.site.name, []).append(task)
    if not by_site:
        return
    for _, statistics in calibration(set(by_site)):
        for name, stats in statistics.items():
            _compress_site(by_site[name], bank, read(by_site[name][0].site), stats)
            progress(by_site[name][0].site, len(by_site[name]))


def _compress_site(tasks_: Sequence[Task], bank: Bank, weight_RC: Tensor, stats: Statistics) -> None:
    stats = known_moment(stats)
    by_method: dict[str, list[Task]] = {}
    for task in tasks_:
        by_method.setdefault(task.level.method, []).append(task)
    for group in by_method.values():
        site, method = group[0].site, group[0].method
        keys = {task.level: task.key for task in group}
        given = stats if "second_moment" in method.needs else Statistics(None, stats.tokens)
        for variant in method.compress(site, weight_RC, given, list(keys)):
            expected = method.cost(site, variant.level)
            if variant.cost != expected:
                raise NumericalError(f"Method {method.name} promised {expected} at {site.name} {variant.level}, but made {variant.cost}.")
            bank.put(keys[variant.level], variant, relative_error(weight_RC, variant, stats))


def known_moment(stats: Statistics) -> Statistics:
    """The statistics; for an expert that no calibration token was routed to, those of an input whose directions all count alike.

    A moment of zeros would make any weight, even an empty one, look free of error.
    """
    if stats.second_moment is None or stats.tokens:
        return stats
    return Statistics(stats.second_moment.new_ones(len(stats.second_moment)).diag(), 0)


def relative_error(weight_RC: Tensor, variant: Variant, stats: Statistics) -> float:
    """tr(ΔHΔᵀ)/tr(WHWᵀ) with Δ = W - Ŵ and H the second moment of the input: the share of the output's energy that is lost."""
    delta_RC = weight_RC - decode(variant.format, variant.tensors, variant.site.shape)
    error = energy(delta_RC, stats) / max(energy(weight_RC, stats), 1e-30)
    if error != error or error == float("inf"):
        raise NumericalError(f"The layer error of {variant.level} at {variant.site.name} is {error}.", "Check the model's weights for NaN.")
    return error


def energy(weight_RC: Tensor, stats: Statistics) -> float:
    """tr(WHWᵀ): mean squared norm of the output; with H = identity where nothing asked for second moments."""
    if stats.second_moment is None:
        return float(weight_RC.double().pow(2).sum())
    return float(((weight_RC @ stats.second_moment) * weight_RC).sum(dtype=weight_RC.double().dtype))
