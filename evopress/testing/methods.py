"""Conformance check of a compression method: what the bank and the search rely on. For authors of method plugins, and run on the built-ins.

    from evopress.testing.methods import check_method

    def test_my_method():
        check_method(MyMethod(bits=3))

It does not judge how good a method is. Uses small made-up sites only: no model, no network, a second or two.

Shapes: R rows out, C columns in, T tokens.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from evopress.api.cost import Cost
from evopress.api.formats import decode, variant_bytes
from evopress.api.level import ABSENT, DENSE, Level
from evopress.api.plugins import Method
from evopress.api.site import Site
from evopress.api.variant import Statistics, Variant

if TYPE_CHECKING:
    from torch import Tensor

SHAPES = ((24, 64), (40, 192), (1, 64), (33, 128), (7, 48), (5, 37))
"""Rows and columns tried: even, wide, a single row, odd rows, and columns that few group sizes divide."""
SLACK = 1.1
"""A dearer level may be at most this much worse in layer error than a cheaper one: greedy methods are not strictly monotone."""


def check_method(method: Method, shapes: Sequence[tuple[int, int]] = SHAPES, seed: int = 0) -> list[str]:
    """Check one configured method; returns a line per site and level that was checked. Raises AssertionError saying what is wrong.

    shapes: (rows, columns) of the linear sites to try; the method must offer a level at one of them at least.
    """
    frozen = dataclasses.is_dataclass(method) and type(method).__hash__ is not None
    _require(frozen, f"{type(method).__name__} must be a frozen dataclass whose fields are its options.")
    twin = copy.deepcopy(method)
    _require(method == twin and hash(method) == hash(twin), f"{method.name}: methods of equal options must be equal.")
    sites = [Site(f"layers.0.{kind}", kind, (0, 0), 0, None) for kind in ("attention", "mlp", "block") if kind in method.kinds]
    if "linear" in method.kinds:
        sites += [Site(f"layers.0.linear_{rows}x{columns}", "linear", (rows, columns), 0, None, "input") for rows, columns in shapes]
    checked = [line for number, site in enumerate(sites) for line in _check_site(method, site, seed + number)]
    _require(bool(checked), f"{method.name} offers no level at any site tried; give `shapes` that suit it.")
    return checked


def _check_site(method: Method, site: Site, seed: int) -> list[str]:
    levels = list(method.levels(site))
    _check_levels(method, site, levels)
    if not levels:
        return []
    costs = {level: method.cost(site, level) for level in levels}
    for tokens in (4 * site.shape[1], max(site.shape[1] // 2, 1)):
        # Fewer tokens than columns make a singular second moment; a short calibration does that to a wide layer.
        weight_RC, stats = problem(site.shape, tokens, seed)
        variants = _compress(method, site, weight_RC, stats, levels)
        for level, variant in variants.items():
            _check_variant(variant, site, level, costs[level])
            named = method.format(site, level)
            _require(variant.format == named, f"{level} at {site.name}: the method names format {named}, and made {variant.format}.")
        _check_repeatable(method, site, weight_RC, stats, variants)
        if site.kind == "linear":
            _check_errors(site, weight_RC, stats, variants)
    return [f"{site.name}: {level}" for level in levels]


def _check_levels(method: Method, site: Site, levels: Sequence[Level]) -> None:
    where = f"{method.name} at {site.name}"
    _require(len(set(levels)) == len(levels), f"{where} offers a level twice: {', '.join(map(str, levels))}.")
    for level in levels:
        _require(level.method == method.name, f"{where} offers {level}, which carries the name of another method.")
        _require(level not in (DENSE, ABSENT), f"{where} offers {level}, which is reserved.")
        _require(Level.parse(str(level)) == level, f"{where}: level {level} does not survive printing and parsing.")


def problem(shape: tuple[int, int], tokens: int, seed: int) -> tuple[Tensor, Statistics]:
    """A weight_RC with a zero row, an outlier and equal weights, and correlated inputs one of which is always zero."""
    import torch

    rows, columns = shape
    rng = torch.Generator().manual_seed(seed)
    if not columns:
        return torch.empty(0, 0), Statistics()
    weight_RC = torch.randn(rows, columns, generator=rng) * 0.05
    weight_RC[rows // 2, : columns // 4] = 0.03
    weight_RC[0, columns // 2] = 30.0
    if rows > 1:
        weight_RC[-1] = 0
    mixing_CC = torch.randn(columns, columns, generator=rng) / columns**0.5 + 0.3 * torch.eye(columns)
    inputs_TC = torch.randn(tokens, columns, generator=rng) @ mixing_CC
    inputs_TC[:, columns // 3] = 0
    return weight_RC, Statistics(inputs_TC.T @ inputs_TC / tokens, tokens)


def layer_error(weight_RC: Tensor, variant: Variant, stats: Statistics) -> float:
    """tr(ΔHΔᵀ) of a variant in float64: the mean squared error of the layer's output on the calibration tokens."""
    delta_RC = (weight_RC - decode(variant.format, variant.tensors, variant.site.shape)).double()
    if stats.second_moment is None:
        return float((delta_RC * delta_RC).sum())
    return float(((delta_RC @ stats.second_moment.double()) * delta_RC).sum())


def _compress(method: Method, site: Site, weight_RC: Tensor, stats: Statistics, levels: Sequence[Level]) -> dict[Level, Variant]:
    import torch

    where = f"{method.name} at {site.name}"
    before, random_state = weight_RC.clone(), torch.get_rng_state()
    moment = None if stats.second_moment is None else stats.second_moment.clone()
    given = stats if "second_moment" in method.needs else Statistics(None, stats.tokens)  # as in a run: what it names, and no more
    found = list(method.compress(site, weight_RC, given, levels))
    _require(torch.equal(before, weight_RC), f"{where} changed the weight it was given.")
    if moment is not None and stats.second_moment is not None:
        _require(torch.equal(moment, stats.second_moment), f"{where} changed the second moment it was given.")
    _require(torch.equal(random_state, torch.get_rng_state()), f"{where} drew from the global random generator.")
    asked, got = [str(level) for level in levels], [str(variant.level) for variant in found]
    _require(asked == got, f"{where} was asked for {asked} and yielded {got}.")
    return dict(zip(levels, found, strict=True))


def _check_variant(variant: Variant, site: Site, level: Level, promised: Cost) -> None:
    import torch

    where = f"{level} at {site.name}"
    _require(variant.site == site, f"{where}: the variant names site {variant.site.name}.")
    _require(variant.cost == promised, f"{where}: promised {promised}, made {variant.cost}.")
    stored = variant_bytes(variant.tensors)
    _require(stored == promised.bytes, f"{where}: the cost says {promised.bytes} bytes, the tensors take {stored}.")
    for name, tensor in variant.tensors.items():
        _require(tensor.device.type == "cpu" and tensor.is_contiguous(), f"{where}: tensor {name!r} is not contiguous on the CPU.")
    weight_RC = decode(variant.format, variant.tensors, site.shape)
    _require(
        tuple(weight_RC.shape) == site.shape and weight_RC.dtype == torch.float32,
        f"{where}: decodes to {tuple(weight_RC.shape)} {weight_RC.dtype}, not {site.shape} float32.",
    )
    _require(bool(weight_RC.isfinite().all()), f"{where}: decodes to NaN or infinity.")


def _check_repeatable(method: Method, site: Site, weight_RC: Tensor, stats: Statistics, first: Mapping[Level, Variant]) -> None:
    levels = list(first)
    asked = {"a second time": levels, "in reverse": levels[::-1], **{f"for {level} alone": [level] for level in levels}}
    for how, some in asked.items():
        for level, variant in _compress(method, site, weight_RC, stats, some).items():
            same = variant.format == first[level].format and _equal(variant.tensors, first[level].tensors)
            _require(
                same, f"{level} at {site.name}: asked {how}, {method.name} gives other tensors than when asked for all levels at once."
            )


def _equal(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> bool:
    import torch

    return set(left) == set(right) and all(torch.equal(left[name], right[name]) for name in left)


def _check_errors(site: Site, weight_RC: Tensor, stats: Statistics, variants: Mapping[Level, Variant]) -> None:
    ranked = sorted(variants.values(), key=lambda variant: variant.cost.bytes)
    floor = 1e-6 * float((weight_RC.double() ** 2).sum())
    for cheap, dear in pairwise(ranked):
        low, high = layer_error(weight_RC, cheap, stats), layer_error(weight_RC, dear, stats)
        if cheap.cost.bytes < dear.cost.bytes:
            _require(
                high <= SLACK * low + floor,
                f"{dear.level} at {site.name} costs more than {cheap.level} and has the larger layer error ({high:.4g} against {low:.4g}).",
            )


def _require(condition: bool, message: str) -> None:
    # Not `assert`: the check must also run under `python -O`.
    if not condition:
        raise AssertionError(message)
