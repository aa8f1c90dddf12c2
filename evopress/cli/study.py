"""`evopress study`: run, compare, claims. Several searchers on one bank with equal budgets and seeds, and what they are said to show.

Parses, calls `evopress.contest` and the reports, prints.
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from evopress.api.errors import NotFound, QualityGateFailed, UsageError
from evopress.cli.options import Device, Dtype, Json, Quota, Storage, writable
from evopress.cli.output import error_document, print_json, print_table, say, storage_url
from evopress.home import home

if TYPE_CHECKING:
    from evopress.api.contest import Contest
    from evopress.report.contest_document import Document

app = typer.Typer(help="Compare searchers on one bank, and check what is claimed of them.", no_args_is_help=True, rich_markup_mode=None)
File = Annotated[Path, typer.Argument(metavar="FILE", help="Study file with a table [entrants]; studies/README.md lists every key.")]
Result = Annotated[
    Path | None, typer.Option("--result", help="The contest's JSON document; default: results/NAME.json beside the folder of FILE.")
]


@app.command()
def run(
    file: File,
    result: Result = None,
    only: Annotated[list[str] | None, typer.Option("--only", help="Run this entrant alone; repeatable.")] = None,
    seeds: Annotated[str | None, typer.Option("--seeds", help="Run these seeds alone, e.g. 0,1.")] = None,
    quick: Annotated[
        bool,
        typer.Option("--quick", help="First seed and an eighth of all tokens, but at least 16,384 a search; writes no default result."),
    ] = False,
    device: Device = None,
    dtype: Dtype = None,
    bank_quota: Quota = None,
    storage: Storage = None,
    as_json: Json = False,
) -> None:
    """Run every entrant with every seed; what is finished in the result is kept. The same command again goes on."""
    from evopress.api.budget import parse_bytes
    from evopress.api.contest import Contest
    from evopress.api.speed_study import read_speed_study
    from evopress.cli.live import listening
    from evopress.contest import compete
    from evopress.report.contest_document import write_document

    speed = read_speed_study(file)
    if speed is not None:
        from evopress.cli.speed_study import run_speed

        refuse(
            bool(only or seeds or quick), "A speed study has no entrants, seeds or quick form.", "Leave out --only, --seeds and --quick."
        )
        run_speed(speed, file, result, device, dtype, bank_quota, storage, as_json)
        return
    contest = Contest.read(file)
    contest = contest.small() if quick else contest
    target = result or (None if quick else _default(file, contest))
    writable(target)
    quota = parse_bytes(bank_quota, "--bank-quota") if bank_quota else None

    def latest() -> Document | None:
        return None if target is None or not target.exists() else _belonging(target, contest)

    def save(document: Document) -> None:
        if target is not None:
            write_document(document, target)

    command = shlex.join(["evopress", *sys.argv[1:]])
    with listening(contest.name) as listen:
        document = compete(
            contest, storage_url(storage), home(), None, listen, device or "cpu", dtype or "auto", quota, latest, save,
            only or [], _numbers(seeds), command, target or Path("the result"),
        )  # fmt: skip
    say("no result file: name one with --result, or it is read from the store again" if target is None else f"result: {target}")
    if as_json:
        print_json(document)
    else:
        _print_standings(document)


@app.command()
def compare(
    file: File,
    result: Result = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for NAME.png and NAME.html.")] = Path(),
    device: Device = None,
    dtype: Dtype = None,
    storage: Storage = None,
    as_json: Json = False,
) -> None:
    """Draw quality against token-forwards and against seconds, with intervals, as PNG and HTML; print the leaderboard."""
    from evopress.api.speed_study import read_speed_study
    from evopress.report.contest_html import write_html
    from evopress.report.contest_png import check_plots, write_png
    from evopress.report.contest_table import standing_json, standings

    speed = read_speed_study(file)
    if speed is not None:
        from evopress.cli.speed_study import compare_speed

        compare_speed(speed, file, result, out, as_json)
        return
    check_plots()
    contest, document = _measured(file, result, device, dtype, storage)
    if not document["runs"]:
        raise NotFound(f"Nothing of contest {contest.name} is measured yet.", f"Run it: evopress study run {file}")
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out {out} is no folder.", "Name a folder.")
    out.mkdir(parents=True, exist_ok=True)
    name = document["contest"]["name"]
    pictures = [out / f"{name}.png", out / f"{name}.html"]
    write_png(document, pictures[0])
    write_html(document, pictures[1])
    if as_json:
        rows = [standing_json(row) for row in standings(document)]
        print_json({"contest": name, "quick": document["quick"], "bank": document["bank"], "rows": rows, "files": [*map(str, pictures)]})
        return
    _print_standings(document)
    say(f"drawn: {', '.join(map(str, pictures))}")


@app.command()
def claims(
    file: File,
    result: Result = None,
    device: Device = None,
    dtype: Dtype = None,
    storage: Storage = None,
    as_json: Json = False,
) -> None:
    """Compute every claim anew from what was measured. Exit 6 unless all are measured and hold."""
    from evopress.api.speed_study import read_speed_study
    from evopress.report.claims import HEADER, all_hold, claim_cells, claim_json, judge

    speed = read_speed_study(file)
    if speed is not None:
        from evopress.cli.speed_study import speed_claims

        speed_claims(speed, file, result, as_json)
        return
    contest, document = _measured(file, result, device, dtype, storage)
    if not contest.claims:
        raise NotFound(f"Contest {contest.name} makes no claim.", "State one in [[claims]]; studies/README.md lists every key.")
    verdicts = judge(document, contest)
    wrong = sum(verdict.state != "holds" for verdict in verdicts)
    failed = QualityGateFailed(
        f"{wrong} of {len(verdicts)} claims of contest {contest.name} are not shown to hold.",
        "Run what is missing (evopress study run), or state what was found.",
    )
    held = all_hold(verdicts)
    if as_json:
        answer: dict[str, Any] = {"contest": contest.name, "quick": document["quick"], "claims": [*map(claim_json, verdicts)]}
        print_json(answer if held else answer | error_document(failed))
        if not held:
            raise typer.Exit(failed.exit_code)
        return
    print_table(HEADER, map(claim_cells, verdicts))
    if not held:
        raise failed


def refuse(condition: bool, message: str, hint: str) -> None:
    """Raise UsageError on a condition."""
    if condition:
        raise UsageError(message, hint)


def _default(file: Path, contest: Contest) -> Path | None:
    """results/NAME.json beside the folder of the file, where there is such a folder."""
    folder = file.absolute().parent.parent / "results"
    return folder / f"{contest.name}.json" if folder.is_dir() else None


def _numbers(seeds: str | None) -> list[int]:
    try:
        return [int(part) for part in seeds.split(",")] if seeds else []
    except ValueError as error:
        raise UsageError(f"Option --seeds is {seeds!r}.", "Give whole numbers joined by commas, e.g. 0,1.") from error


def _belonging(path: Path, contest: Contest) -> Document:
    """The document at a path. Raises UsageError when it is of another contest."""
    from evopress.report.contest_document import check_belongs, read_document

    document = read_document(path)
    check_belongs(document, contest, path)
    return document


def _measured(file: Path, result: Path | None, device: str | None, dtype: str | None, storage: str | None) -> tuple[Contest, Document]:
    """The contest and its document: the one named, else the default one, else made from the store. A quick one makes the contest quick."""
    from evopress.api.contest import Contest
    from evopress.cli.live import listening
    from evopress.contest import replay
    from evopress.report.contest_document import check_belongs, read_document

    contest = Contest.read(file)
    path = result or _default(file, contest)
    if path is not None and (result is not None or path.exists()):
        document = read_document(path)
        contest = contest.small() if document["quick"] else contest
        check_belongs(document, contest, path)
        return contest, document
    with listening(contest.name) as listen:
        say("there is no result file yet; reading the store")
        return contest, replay(contest, storage_url(storage), home(), None, listen, device or "cpu", dtype or "auto")


def _print_standings(document: Document) -> None:
    from evopress.report.contest_table import cells, header, notes, standings, title

    print(title(document))
    print_table(header(document), [cells(document, row) for row in standings(document)], "no finished run yet")
    for note in notes(document):
        print(note)
