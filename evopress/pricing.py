"""Puts this machine's LatencyTable on a space, so that nanoseconds are a field of its costs like bytes. Times nothing.

Called by the plan, the run and the command line. A cell that was never measured is an error with the command that measures it.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evopress.api import DENSE, DROP, Cost, Kernel, Method, NotFound, Site, Space, UsageError
from evopress.api.workload import Workload
from evopress.latency.table import Cell, Factor, LatencyTable, Measured, Part, cell_format

if TYPE_CHECKING:
    from evopress.store import LatencyRow, Store

KERNEL, PART = "kernel", "part"
"""Phases of stored rows: one matrix alone, and what a model does beside its matrices."""
CELLS, KERNELS = "cells_seconds", "kernels"
"""Under these, the row of a format within a whole model keeps what its cells summed up to, and (rows, columns, kernel, version) of each."""
WORKING_SET_BYTES = 2**26
"""Weights that are cycled through while a cell is timed: more than the inner caches, as in a model. A table holds no other times."""
ABOUT = ("cpu", "gpu", "flags", "capability", "threads", "usable_cores", "torch", "transformers", "dtype")
"""What two rows must share to stand in one table."""


def environment(device: str, dtype: str) -> dict[str, Any]:
    """Fingerprint of the machine and its libraries, with the type of the activations."""
    from evopress.latency.clock import fingerprint

    return {**fingerprint(device), "dtype": dtype}


def tables(storage: str, home: Path, device: str, dtype: str, clock: Callable[[], float] = time.perf_counter) -> Callable[[], LatencyTable]:
    """What `make_plan` asks for the table of this machine, if a study needs one. dtype: `auto` is what a run would take."""

    def read() -> LatencyTable:
        from evopress.precision import remembered_dtype
        from evopress.store import Store

        name = str(remembered_dtype(home, device, clock)).removeprefix("torch.") if dtype == "auto" else dtype
        with Store.open(storage) as store:
            return read_table(store, device, name)

    return read


def read_table(store: Store, device: str, dtype: str) -> LatencyTable:
    """What was measured on this machine, with these libraries and threads; the last measurement of each kernel counts."""
    here = environment(device, dtype)
    rows = [row for phase in (KERNEL, PART) for row in store.latencies(phase=phase)]
    return table_of(sorted(rows, key=lambda row: row.created), here)  # rows of a file may come later than those measured since


def table_of(rows: Sequence[LatencyRow], here: Mapping[str, Any]) -> LatencyTable:
    """A table of stored rows, oldest first, that were measured under `here`."""
    cells: dict[Cell, dict[str, Measured]] = {}
    parts: dict[Part, Measured] = {}
    factors: dict[Part, Factor] = {}
    for row in rows:
        if row.device != here["device"] or any(row.environment.get(key) != here.get(key) for key in ABOUT):
            continue
        version = row.environment.get("version", "")
        measured = Measured(row.kernel, row.median_seconds, row.low_seconds, row.high_seconds, row.samples, version)
        if row.phase == PART:
            workload = Workload.parse(row.environment["workload"], "a stored row")
            part = Part(row.environment["model"], row.format, workload)
            if CELLS in row.environment:
                ran = {(rows, columns): (name, version) for rows, columns, name, version in row.environment.get(KERNELS, ())}
                factors[part] = Factor(row.median_seconds / row.environment[CELLS], ran)
            else:
                parts[part] = measured
        elif not row.environment.get("rounding") and row.environment.get("working_set_bytes", WORKING_SET_BYTES) == WORKING_SET_BYTES:
            cells.setdefault(Cell(row.format, row.shape, row.tokens), {})[row.kernel] = measured
    about = f"{here['cpu']} with {here['threads']} threads in {here['dtype']}, torch {here['torch']}"
    found = {cell: tuple(measured.values()) for cell, measured in cells.items()}
    return LatencyTable(found, parts, factors, about, here["dtype"], here["device"], here["threads"])


def runnable(table: LatencyTable, kernels: Iterable[Kernel]) -> LatencyTable:
    """The table without what no kernel runs here now: of another version, uninstalled, or without its compiler."""
    import torch

    from evopress.latency.bench import split_cell
    from evopress.latency.runtime import label

    by_label: dict[str, list[Kernel]] = {}
    for kernel in kernels:
        by_label.setdefault(label(kernel), []).append(kernel)
    device = torch.device(table.device).type

    def runs(cell: Cell, measured: Measured) -> bool:
        asked = split_cell(cell.format)[0], cell.shape, device, getattr(torch, table.dtype)
        return any(kernel.version == measured.version and kernel.supports(*asked) for kernel in by_label.get(measured.kernel, ()))

    return table.only(runs)


def cell_of(site: Site, format: str, cost: Cost, workload: Workload) -> Cell:
    """What a linear site multiplies at a level of this format and cost."""
    return Cell(cell_format(format, cost.params / site.weights), site.shape, workload.tokens)


def bench_command(table: LatencyTable, workload: Workload, model: str, formats: Sequence[str]) -> str:
    """The command that fills a table. model: what `-m` takes, empty for the demo's."""
    where = f"--dtype {table.dtype} --threads {table.threads}{'' if table.device == 'cpu' else f' --device {table.device}'}"
    command = f"evopress kernels bench --workload {workload}{f' --model {shlex.quote(model)}' if model else ''} {where}"
    return " ".join((command, *(f"--format {format}" for format in formats)))


def priced(space: Space, methods: Mapping[str, Method], table: LatencyTable, workload: Workload, model: str, name: str) -> Space:
    """The space with nanoseconds in all its costs. model, name: digest of its configuration, and what `-m` takes.

    Raises NotFound, naming the command that measures what the table lacks; UsageError for a mixture of experts.
    """
    if any(site.expert for site in space.sites):
        raise UsageError(
            "A latency budget cannot price a mixture of experts: a token takes a few of them, and no packed kernel runs one.",
            "Limit size=0.5x or bits=4 instead.",
        )
    kinds = {site.kind for site in space.sites if site.kind != "linear"}
    cells: dict[tuple[int, int], Cell] = {}
    for position, site in enumerate(space.sites):
        for place, (level, cost) in enumerate(zip(space.levels[position], space.costs[position], strict=True)):
            if site.kind == "linear":
                format = "dense" if level == DENSE else "absent" if level == DROP else methods[level.method].format(site, level)
                cells[position, place] = cell_of(site, format, cost, workload)
    lost_cells, lost_parts = table.missing(cells.values(), (*sorted(kinds), "model"), model, workload)
    if lost_cells or lost_parts:
        formats = sorted({cell.format for cell in cells.values()} - {"dense", "absent"})
        what = [f"{cell.format} of {cell.shape[0]}x{cell.shape[1]}" for cell in lost_cells[:3]]
        what += [f"the model's {part}" if part in (*kinds, "model") else f"{part} within the model" for part in lost_parts[:1]]
        left = len(lost_cells) + len(lost_parts) - len(what)
        more = f" and {left} more" if left else ""
        raise NotFound(
            f"A latency budget needs measured times, and {', '.join(what)}{more} were never timed on {table.about} as it would run now.",
            f"Run: {bench_command(table, workload, name, formats)}",
        )

    def nanoseconds(position: int, place: int) -> int:
        site, level = space.sites[position], space.levels[position][place]
        if site.kind != "linear":
            return 0 if level == DROP else round(table.part(Part(model, site.kind, workload)).median * 1e9)
        return round(table.seconds(cells[position, place], model, workload) * 1e9)

    costs = tuple(
        tuple(replace(cost, nanoseconds=nanoseconds(position, place)) for place, cost in enumerate(row))
        for position, row in enumerate(space.costs)
    )
    fixed = replace(space.fixed, nanoseconds=round(table.part(Part(model, "model", workload)).median * 1e9))
    return replace(space, costs=costs, fixed=fixed)


def without_useless(space: Space, fields: Sequence[str]) -> Space:
    """The space without levels that take no less than `dense` in any of the fields: dense is as quick, and loses nothing.

    Linked sites keep a level that is of use at one of them. Raises UsageError when nothing is left to choose.
    """

    def useful(position: int, place: int) -> bool:
        own, prices = space.levels[position], space.costs[position]
        dense = prices[own.index(DENSE)]
        return own[place] in (DENSE, DROP) or any(getattr(prices[place], field) < getattr(dense, field) for field in fields)

    levels, costs = list(space.levels), list(space.costs)
    for sites in space.genes:
        kept = [place for place in range(len(levels[sites[0]])) if any(useful(site, place) for site in sites)]
        for site in sites:
            levels[site] = tuple(space.levels[site][place] for place in kept)
            costs[site] = tuple(space.costs[site][place] for place in kept)
    if all(len(own) == 1 for own in levels):
        raise UsageError("No level of the study is faster than the dense model here.", "See: evopress kernels bench.")
    return replace(space, levels=tuple(levels), costs=tuple(costs))
