"""LatencyTable: what a matrix of a format and shape, and the rest of a model, take on this machine. A missing cell is an error.

Measures nothing and knows no store; filled by `evopress.pricing` from stored measurements, written by `evopress kernels bench`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from evopress.api import NotFound, SiteKind
from evopress.api.workload import Workload


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


@dataclass(frozen=True)
class LatencyTable:
    """cells: by what is multiplied, one measurement a kernel. parts: seconds of one such part. about: the machine and its libraries.

    factors: what the matrices of a format take within a whole model, over what their cells say: beside other work and other bytes a
    kernel is some per cent slower or faster than alone. dtype, device: of the activations, and where they were.
    """

    cells: Mapping[Cell, Sequence[Measured]] = field(default_factory=dict)
    parts: Mapping[Part, Measured] = field(default_factory=dict)
    factors: Mapping[Part, float] = field(default_factory=dict)
    about: str = ""
    dtype: str = ""
    device: str = "cpu"

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

    def factor(self, format: str, model: str, workload: Workload) -> float:
        """By which cells of a format are multiplied within a model. Raises NotFound."""
        part = Part(model, format, workload)
        if part not in self.factors:
            raise NotFound(
                f"{format} was never timed within the whole model for {workload} on {self.about}.",
                f"Run: evopress kernels bench --workload {workload} --format {format}, with the model in question.",
            )
        return self.factors[part]

    def seconds(self, cell: Cell, model: str, workload: Workload) -> float:
        """Of one matrix within a model, with the fastest kernel. Raises NotFound."""
        return self.best(cell).median * self.factor(cell.format, model, workload)

    def missing(self, cells: Iterable[Cell], parts: Iterable[Part]) -> tuple[list[Cell], list[Part]]:
        """What the table does not hold. parts: those of factors, too."""
        known = {*self.parts, *self.factors}
        return sorted({cell for cell in cells if not self.cells.get(cell)}), [part for part in parts if part not in known]


def cell_format(format: str, density: float) -> str:
    """How a table names a format whose time depends on how much is kept: `bitmask@0.5`; any other as it is."""
    return f"bitmask@{density:.4g}" if format == "bitmask" else format
