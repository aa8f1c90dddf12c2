"""`evopress leaderboard`: what has been measured so far, best first."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from evopress.api.errors import NotFound, UsageError, unknown
from evopress.cli.options import Json, Storage
from evopress.cli.output import print_json, print_table, say, storage_url

if TYPE_CHECKING:
    from evopress.report.leaderboard import Table
    from evopress.store import BoardRow, ReferenceRow, Store


def leaderboard(
    study: Annotated[str | None, typer.Option(help="Only the profiles this study holds.")] = None,
    model: Annotated[str | None, typer.Option(help="Only profiles of this model (name or digest).")] = None,
    metric: Annotated[str, typer.Option(help="Fitness to rank by: kl, perplexity, or one of a plugin.")] = "kl",
    where: Annotated[str | None, typer.Option(help="Filter on columns, e.g. 'bytes<70e6 and kl<0.5', 'estimated_seconds<0.03'.")] = None,
    sort: Annotated[str | None, typer.Option(help="Column to sort by, -COLUMN for descending; default: the metric.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many rows.")] = None,
    pareto: Annotated[bool, typer.Option("--pareto", help="Only rows that none beats in bytes, metric and decoding speed.")] = False,
    reference: Annotated[bool, typer.Option("--reference", help="Also the numbers others reported, in a table of their own.")] = False,
    from_results: Annotated[Path | None, typer.Option(help="Read the JSON files of this folder, not the store; as Markdown.")] = None,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="A Markdown page.")] = False,
    as_json: Json = False,
    storage: Storage = None,
) -> None:
    """Everything measured on held-out documents, best first."""
    if as_markdown and as_json:
        raise UsageError("--markdown and --json are two answers.", "Ask for one of them.")
    if from_results is not None:
        if any((study, model, where, sort, limit, pareto, reference)) or metric != "kl":
            raise UsageError("--from-results prints whole files and takes no filter.", "Leave the other options out, or use the store.")
        _print_results(from_results, as_json)
        return

    from evopress.report import leaderboard as report
    from evopress.report.pareto import pareto_rows
    from evopress.store import Store

    with Store.open(storage_url(storage), create=False) as store:
        slice_ = None if study is None else _held_out(store, study)
        most = None if pareto else limit
        rows = store.leaderboard(metric, model=model, study=study, slice=slice_, where=where, sort=sort, limit=most)
        if not any(metric in row.values for row in rows):
            _explain(store, metric, model, study, slice_)
        if pareto:
            rows = pareto_rows(rows, metric)[:limit]
        reported = _reported(store) if reference else []
        where_from = store.describe()
    if as_json:
        answer: dict[str, Any] = {
            "storage": where_from,
            "metric": metric,
            "pareto": pareto,
            "rows": [report.board_json(row) for row in rows],
        }
        print_json(answer | ({"reported": [_reported_json(row) for row in reported]} if reference else {}))
    elif as_markdown:
        print(report.board_markdown(rows, metric, reported), end="")
    else:
        _print_tables(rows, metric, reported)
        texts = {row.slices[metric] for row in rows if metric in row.slices}
        if len(texts) > 1:
            say(f"note: these rows were measured on {len(texts)} different texts; compare within one study: --study NAME")
        if pareto:
            say(
                f"note: no other row is as small, as low in {metric} and as fast at decoding; one without a speed counts as slowest,"
                " and near medians may be equal"
            )
        say(f"{len(rows)} rows from {where_from}; evopress profile show PROFILE prints one")


def _held_out(store: Store, study: str) -> str | None:
    """The slice a study was judged on: its profiles may have been measured on longer texts of other studies too."""
    found = [row.details.get("slice") for row in store.results(store.find_study(study).id)]
    return next((str(digest) for digest in found if digest), None)


def _print_results(folder: Path, as_json: bool) -> None:
    from evopress.report.leaderboard import leaderboard_markdown, read_results

    if as_json:
        leaderboard_markdown(folder)  # refuses files that are no results
        print_json([{"file": str(path), **document} for path, document in read_results(folder)])
    else:
        print(leaderboard_markdown(folder), end="")


def _explain(store: Store, metric: str, model: str | None, study: str | None, slice_: str | None) -> None:
    """Raise NotFound when there is nothing to rank, and UsageError when nothing has the metric. An answer that a filter emptied is one."""
    everything = store.leaderboard(metric)
    if not everything:
        raise NotFound(f"The store {store.describe()} holds no measured profile yet.", "Measure some: evopress search start")
    if model is not None and not store.leaderboard(metric, model=model):
        error = unknown("model", model, {row.model for row in everything}, "the store")
        raise NotFound(error.message, error.hint)
    if study is not None and not store.leaderboard(metric, study=study):
        raise NotFound(f"Study {study!r} has no result yet.", f"Let it finish: evopress search resume {study}")
    rows = store.leaderboard(metric, model=model, study=study, slice=slice_)
    if not rows:
        raise NotFound(f"Study {study!r} holds no profile of model {model!r}.", "Leave out --model or --study.")
    measured = {name for row in rows for name in row.values}
    if metric not in measured:
        raise unknown("fitness", metric, measured, f"--metric: nothing in {'the store' if study is None else f'study {study!r}'} has it")


def _reported(store: Store) -> list[ReferenceRow]:
    """The paper's numbers that come with evopress, and what else the store was given."""
    from evopress.store import reported_rows

    return list(dict.fromkeys([*reported_rows(), *store.reference_rows()]))


def _reported_json(row: ReferenceRow) -> dict[str, Any]:
    names = ("source", "model", "budget", "method", "metric", "value", "state")
    return {name: getattr(row, name) for name in names}


def _print_tables(rows: list[BoardRow], metric: str, reported: list[ReferenceRow]) -> None:
    from evopress.report.leaderboard import REPORTED_TITLE, board_table, reported_table

    _print(board_table(rows, metric), "no row matches the filter")
    if reported:
        print(f"\n{REPORTED_TITLE}")
        _print(reported_table(reported), "none")


def _print(table: Table, empty: str) -> None:
    print_table(table.header, table.rows, empty)
