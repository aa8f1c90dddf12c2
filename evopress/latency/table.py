"""LatencyTable: what a matrix of a format and shape, and the rest of a model, take on this machine. A missing cell is an error.

Measures nothing and knows no store; filled by `evopress.pricing` from stored measurements, written by `evopress kernels bench`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from evopress.api import ABSENT, DROP, NotFound, Profile, Site, SiteKind
from evopress.api.workload import Workload

OURS = ("native-", "triton-")
"""How the names of our own generated kernels begin."""


@dataclass(frozen=True, slots=True, order=True)
class Cell:
    """format: as methods name it; a bitmask with its share of kept weights, `bitmask@0.5`. shape: (rows out, columns in)."""

    format: str
    shape: tuple[int, int]
    tokens: int


@dataclass(frozen=True, slots=True)
class Measured:
    """Seconds of one call: median of n, with its interval. version: of the kernel."""

    kernel: str
    median: float
    low: float
    high: float
    n: int
    version: str = ""


@dataclass(frozen=True, slots=True)
class Part:
    """What a model does beside its linear layers: `kind` is that of a site (norms, attention, activations of one), or "model" for what
    runs once (embedding, head, the loop). model: digest of the configuration. Of a factor, `kind` is a format.
    """

    model: str
    kind: SiteKind | str
    workload: Workload


@dataclass(frozen=True, slots=True)
class Factor:
    """What the matrices of a format take within a whole model, over what their cells say: beside other work, and with other bytes in the
    caches, a kernel is some per cent slower or faster than alone. kernels: that ran there, by shape, with their versions.
    """

    value: float
    kernels: Mapping[tuple[int, int], tuple[str, str]]


@dataclass(frozen=True)
class LatencyTable:
    """cells: by what is multiplied, one measurement a kernel. parts: seconds of one such part. about: the machine and its libraries.

    factors: by format, as a Part. dtype, device: of the activations, and where they were. threads: that ran.
    """

    cells: Mapping[Cell, Sequence[Measured]] = field(default_factory=dict)
    parts: Mapping[Part, Measured] = field(default_factory=dict)
    factors: Mapping[Part, Factor] = field(default_factory=dict)
    about: str = ""
    dtype: str = ""
    device: str = "cpu"
    threads: int = 1

    def best(self, cell: Cell) -> Measured:
        """The fastest kernel of a cell. Raises NotFound."""
        found = self.cells.get(cell)
        if not found:
            raise NotFound(
                f"{cell.format} of {cell.shape[0]}x{cell.shape[1]} at {cell.tokens} tokens was never timed on {self.about}.",
                f"Run: evopress kernels bench --workload decode --format {cell.format}, with the workload and model in question.",
            )
        return min(found, key=lambda measured: (measured.median, measured.kernel))

    def only(self, keep: Callable[[Cell, Measured], bool]) -> LatencyTable:
        """The table with those measurements of cells alone."""
        return replace(self, cells={cell: tuple(one for one in found if keep(cell, one)) for cell, found in self.cells.items()})

    def part(self, part: Part) -> Measured:
        """What a model does beside its matrices. Raises NotFound."""
        if part not in self.parts:
            raise NotFound(
                f"What the model takes beside its matrices ({part.kind}) was never timed for {part.workload} on {self.about}.",
                f"Run: evopress kernels bench --workload {part.workload}, with the model in question.",
            )
        return self.parts[part]

    def seconds(self, cell: Cell, model: str, workload: Workload, kernel: str | None = None) -> float:
        """Of one matrix within a model, with the fastest kernel or the named one. Raises NotFound, also where another kernel ran there."""
        measured = next((one for one in self.cells.get(cell, ()) if one.kernel == kernel), None) if kernel else self.best(cell)
        if measured is None:
            what = f"{cell.format} of {cell.shape[0]}x{cell.shape[1]} at {cell.tokens:,} tokens"
            raise NotFound(f"{what} was never timed with {kernel} on {self.about}.")
        factor = self.factors.get(Part(model, cell.format, workload))
        if factor is None or factor.kernels.get(cell.shape) != (measured.kernel, measured.version):
            raise NotFound(
                f"{cell.format} with {measured.kernel} was never timed within the whole model for {workload} on {self.about}.",
                f"Run: evopress kernels bench --workload {workload} --format {cell.format}, with the model in question.",
            )
        return measured.median * factor.value

    def sum(self, kinds: Iterable[str], cells: Iterable[tuple[Cell, str | None]], model: str, workload: Workload) -> float:
        """Seconds of one pass that keeps sites of these kinds, and multiplies these cells, each with a kernel as `seconds` takes it."""
        parts = sum(self.part(Part(model, kind, workload)).median for kind in ("model", *kinds))
        return parts + sum(self.seconds(cell, model, workload, kernel) for cell, kernel in cells)

    def missing(self, cells: Iterable[Cell], kinds: Iterable[str], model: str, workload: Workload) -> tuple[list[Cell], list[str]]:
        """What the table does not hold: cells, and kinds of sites, or formats that were not timed within the model as they would run."""
        wanted = sorted(set(cells))
        known = [cell for cell in wanted if self.cells.get(cell)]
        unscaled = {cell.format for cell in known if not self._scaled(cell, model, workload)}
        lost = [kind for kind in kinds if Part(model, kind, workload) not in self.parts]
        return [cell for cell in wanted if cell not in known], lost + sorted(unscaled)

    def _scaled(self, cell: Cell, model: str, workload: Workload) -> bool:
        try:
            self.seconds(cell, model, workload)
        except NotFound:
            return False
        return True


def cell_format(format: str, density: float) -> str:
    """How a table names a format whose time depends on how much is kept: `bitmask@0.5`; any other as it is."""
    return f"bitmask@{density:.4g}" if format == "bitmask" else format


def kept_kinds(profile: Profile, sites: Iterable[Site]) -> list[str]:
    """Kind of every site but linear ones that a profile does not drop."""
    return [site.kind for site in sites if site.kind != "linear" and profile[site.name] not in (ABSENT, DROP)]
