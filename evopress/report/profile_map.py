"""A profile as a map a person can read: one row a role, one column a block, one or two characters a level. Pure.

    depth      0 1 2 3   mean bits
    self_attn  · x · ·           -
    q_proj     3   4 3       2.875
    down_proj  2 3 4 ·       6.586

Called by `evopress profile show`.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from string import ascii_letters

from evopress.api import ABSENT, DENSE, DENSE_BYTES_PER_PARAM, DROP, Level, Profile, Site, SiteKind, UsageError
from evopress.api.formats import group_width, int_cost
from evopress.api.sparsity import sparsity_cost, zeros_at

DENSE_MARK, DROP_MARK, MIXED_MARK, SHADOWED_MARK, PER_CENT_MARK = "·", "x", "~", "", "00-99"
_RESET, _BOLD = "\x1b[0m", "\x1b[1m"
_RAMP = ((2.75, "31"), (3.75, "33"), (4.75, "32"), (8.75, "36"))
"""Up to so many stored bits a weight: this colour. More is printed plainly."""


@dataclass(frozen=True, slots=True)
class Cell:
    """What stands at one role and depth. text: at most two characters. bits: stored bits a weight, None where unknown or no matrix."""

    text: str
    bits: float | None = None


@dataclass(frozen=True, slots=True)
class MapRow:
    """One role. cells: one a depth (empty where the model has no such site or a dropped parent hides it).

    mean_bits: stored bits a weight over its matrices, those under a dropped parent counting none; None for a container or an unknown level.
    """

    kind: SiteKind
    label: str
    cells: tuple[Cell, ...]
    mean_bits: float | None


@dataclass(frozen=True, slots=True)
class ProfileMap:
    """rows: containers that lose something first, then linear roles in model order. legend: mark -> what it stands for, with counts."""

    depths: tuple[int, ...]
    rows: tuple[MapRow, ...]
    legend: Mapping[str, str]


def level_bits(site: Site, level: Level) -> float | None:
    """Stored bits a weight of a linear site at a level, metadata and padding included; None for a level of an unknown kind.

    Known are `dense`, `drop`, `absent`, levels with bits and group, and levels with a sparsity.
    """
    if level == DENSE:
        return 8.0 * DENSE_BYTES_PER_PARAM
    if level in (DROP, ABSENT):
        return 0.0
    options = dict(level.options)
    if "bits" in options and "group" in options and "sparsity" not in options:
        group = group_width(int(options["group"]), site.shape[1])
        return None if group is None else 8 * int_cost(site.shape, int(options["bits"]), group).bytes / site.weights
    if "sparsity" in options and "bits" not in options:
        return 8 * sparsity_cost(site.shape, level).bytes / site.weights
    return None


def build_map(profile: Profile, sites: Sequence[Site]) -> ProfileMap:
    """Lay a profile out over depth. Raises UsageError when it does not name every site."""
    named = {name for name, _ in profile}
    missing = [site.name for site in sites if site.name not in named]
    if missing or len(named) != len(sites):
        raise UsageError(
            f"The profile names {len(named)} sites and the model has {len(sites)}" + (f"; {missing[0]!r} is missing." if missing else "."),
            "Show it with the model it was searched on.",
        )
    marks = _marks(profile, sites)
    depths = tuple(sorted({site.depth for site in sites}))
    rows = []
    for (kind, label), members in _grouped(sites).items():
        if kind != "linear" and not any(profile[site.name] == DROP for site in members):
            continue
        by_depth: dict[int, list[Site]] = defaultdict(list)
        for site in members:
            by_depth[site.depth].append(site)
        cells = tuple(_cell(profile, by_depth.get(depth, []), marks) for depth in depths)
        rows.append(MapRow(kind, label, cells, _mean_bits(profile, members) if kind == "linear" else None))
    return ProfileMap(depths, tuple(sorted(rows, key=lambda row: row.kind == "linear")), _legend(profile, sites, marks, rows))


def _grouped(sites: Sequence[Site]) -> dict[tuple[SiteKind, str], list[Site]]:
    """Sites by (kind, row label), in model order. Where a block has a role twice (attn.c_proj, mlp.c_proj) the parent is named."""
    by_name = {site.name: site for site in sites}
    places: dict[str, set[str]] = defaultdict(set)
    for site in sites:
        places[site.role].add(_parent_role(site, by_name))
    groups: dict[tuple[SiteKind, str], list[Site]] = defaultdict(list)
    for site in sites:
        if site.kind == "block":
            label = "block"
        else:
            label = site.role if len(places[site.role]) == 1 else f"{_parent_role(site, by_name)}.{site.role}"
        groups[(site.kind, label)].append(site)
    return groups


def _parent_role(site: Site, by_name: Mapping[str, Site]) -> str:
    parent = by_name.get(site.parent or "")
    return "" if parent is None or parent.kind == "block" else parent.role


def _marks(profile: Profile, sites: Sequence[Site]) -> dict[tuple[str, Level], str]:
    """(site, level) -> mark: bits as a digit, sparsity in per cent, letters for levels that say neither."""
    marks: dict[tuple[str, Level], str] = {}
    letters = iter(letter for letter in ascii_letters if letter != DROP_MARK)
    unnamed: dict[Level, str] = {}
    for site in sites:
        level = profile[site.name]
        options = dict(level.options)
        fixed = {DENSE: DENSE_MARK, DROP: DROP_MARK, ABSENT: SHADOWED_MARK}.get(level)
        if fixed is not None:
            mark = fixed
        elif "bits" in options and "sparsity" not in options and options["bits"] in range(1, 10):
            mark = str(options["bits"])
        elif "sparsity" in options and "bits" not in options and site.weights:
            # Per cent, always two digits, so that it cannot be taken for bits.
            mark = f"{min(99, round(100 * zeros_at(site.shape, level) / site.weights)):02d}"
        else:
            mark = unnamed.get(level) or unnamed.setdefault(level, next(letters, "?"))
        marks[(site.name, level)] = mark
    return marks


def _cell(profile: Profile, sites: Sequence[Site], marks: Mapping[tuple[str, Level], str]) -> Cell:
    if not sites:
        return Cell(SHADOWED_MARK)
    texts = {marks[(site.name, profile[site.name])] for site in sites}
    bits = _mean_bits(profile, sites) if sites[0].kind == "linear" else None
    return Cell(texts.pop() if len(texts) == 1 else MIXED_MARK, bits)


def _mean_bits(profile: Profile, sites: Sequence[Site]) -> float | None:
    total = 0.0
    for site in sites:
        bits = level_bits(site, profile[site.name])
        if bits is None:
            return None
        total += bits * site.weights
    weights = sum(site.weights for site in sites)
    return total / weights if weights else None


def _legend(
    profile: Profile, sites: Sequence[Site], marks: Mapping[tuple[str, Level], str], rows: Iterable[MapRow]
) -> dict[str, str]:  # fmt: skip
    meanings: dict[str, Counter[str]] = defaultdict(Counter)
    for site in sites:
        level = profile[site.name]
        # Containers that keep their own parameters are not counted: most have no row in the map.
        if level == ABSENT or (site.kind != "linear" and level == DENSE):
            continue
        if "sparsity" in dict(level.options) and marks[(site.name, level)].isdigit():
            meanings[PER_CENT_MARK][f"per cent zeros, {level.method}"] += 1
        else:
            meanings[marks[(site.name, level)]]["dropped" if level == DROP else str(level)] += 1
    legend = {mark: ", ".join(f"{text} ×{count}" for text, count in sorted(found.items())) for mark, found in sorted(meanings.items())}
    if any(cell.text == MIXED_MARK for row in rows for cell in row.cells):
        legend[MIXED_MARK] = "several matrices at different levels"
    if any(profile[site.name] == ABSENT for site in sites):
        legend["blank"] = "under a dropped parent"
    return legend


def map_lines(found: ProfileMap, width: int | None = None, color: bool = False) -> list[str]:
    """The map as lines of text. width: characters a line may have; deeper models continue below. color: ANSI colours by stored bits."""
    label_width = max(len("depth"), *(len(row.label) for row in found.rows)) if found.rows else len("depth")
    cell_width = max([len(str(depth)) for depth in found.depths] + [len(cell.text) for row in found.rows for cell in row.cells])
    bits_column = 12
    room = len(found.depths) if width is None else max(4, (width - label_width - 2 - bits_column) // (cell_width + 1))
    lines: list[str] = []
    for start in range(0, len(found.depths), room):
        part = slice(start, start + room)
        last = start + room >= len(found.depths)
        header = " ".join(str(depth).rjust(cell_width) for depth in found.depths[part])
        lines.append(("depth".ljust(label_width) + "  " + header + ("   mean bits" if last else "")).rstrip())
        for row in found.rows:
            cells = " ".join(_paint(cell, cell_width, color) for cell in row.cells[part])
            mean = "-" if row.mean_bits is None else f"{row.mean_bits:.3f}"
            lines.append((row.label.ljust(label_width) + "  " + cells + (mean.rjust(bits_column) if last else "")).rstrip())
        if not last:
            lines.append("")
    lines.append("")
    lines += [f"{mark.rjust(max(map(len, found.legend)))}  {meaning}" for mark, meaning in found.legend.items()]
    return lines


def _paint(cell: Cell, width: int, color: bool) -> str:
    text = cell.text.rjust(width)
    if not color or not cell.text:
        return text
    if cell.text == DROP_MARK:
        return f"{_BOLD}\x1b[35m{text}{_RESET}"
    code = None if cell.bits is None else next((code for limit, code in _RAMP if cell.bits <= limit), None)
    return text if code is None else f"\x1b[{code}m{text}{_RESET}"
