"""`evopress study run | claims` on a speed study: kernels on single matrices, or searched profiles as whole models."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from evopress.api.errors import NotFound, QualityGateFailed, UsageError
from evopress.api.speed_study import KernelStudy, SpeedStudy
from evopress.cli.options import writable
from evopress.cli.output import error_document, print_json, print_table, say, storage_url
from evopress.home import home

if TYPE_CHECKING:
    from evopress.report.speed_claims import Finding


def run_speed(
    study: SpeedStudy, file: Path, result: Path | None, device: str | None, dtype: str | None, bank_quota: str | None, storage: str | None,
    as_json: bool,
) -> None:  # fmt: skip
    """Measure, write the document whole, and print its claims."""
    from evopress.api.budget import parse_bytes
    from evopress.cli.live import listening
    from evopress.files import write_whole
    from evopress.hooks.registry import Registry

    target = result or _default(file, study)
    if target is None:
        raise UsageError(f"There is no folder for the result of {study.name}.", "Name a file: --result results/NAME.json.")
    writable(target)
    if isinstance(study, KernelStudy):
        from evopress.timing import run_study

        if device or dtype or bank_quota:
            raise UsageError("A kernel study is on the CPU, in the type of its file, without a bank.", "Leave the option out.")
        document = run_study(study, Registry.load().kernels(), storage_url(storage), home(), say)
    else:
        from evopress.frontier import run_frontier

        quota = parse_bytes(bank_quota, "--bank-quota") if bank_quota else None
        with listening(study.name) as listen:
            where, command = storage_url(storage), shlex.join(["evopress", *sys.argv[1:]])
            document = run_frontier(study, where, home(), listen, device or "cpu", dtype or "auto", quota, command)
    write_whole(target, (json.dumps(document, indent=1) + "\n").encode())
    say(f"result: {target}")
    if as_json:
        print_json(document)
    elif study.claims:
        from evopress.report.speed_claims import judge_speed

        _print_claims(judge_speed(document, study.claims))


def compare_speed(study: SpeedStudy, file: Path, result: Path | None, out: Path, as_json: bool) -> None:
    """Print what was measured; draw a frontier. Raises NotFound without a result."""
    from evopress.report.contest_png import check_plots
    from evopress.report.frontier_png import write_frontier
    from evopress.report.speed_document import header, notes, rows, title

    document = _document(study, file, result)
    files: list[str] = []
    if not isinstance(study, KernelStudy):
        check_plots()
        if out.exists() and not out.is_dir():
            raise UsageError(f"--out {out} is no folder.", "Name a folder.")
        out.mkdir(parents=True, exist_ok=True)
        files = [str(out / f"{study.name}.png")]
        write_frontier(document, Path(files[0]))
    if as_json:
        print_json({**document, "files": files})
        return
    print(title(document))
    print_table(header(document), rows(document))
    for note in notes(document):
        print(note)
    if files:
        say(f"drawn: {files[0]}")


def speed_claims(study: SpeedStudy, file: Path, result: Path | None, as_json: bool) -> None:
    """Judge every claim from the document. Raises QualityGateFailed unless all hold."""
    from evopress.report.speed_claims import judge_speed, speed_json

    if not study.claims:
        raise NotFound(f"{file} claims nothing.", "Write tables [[claims]] into it; studies/README.md has their keys.")
    findings = judge_speed(_document(study, file, result), study.claims)
    wrong = sum(finding.state != "holds" for finding in findings)
    failed = QualityGateFailed(
        f"{wrong} of {len(findings)} claims of {study.name} are not shown to hold.", f"Measure again: evopress study run {file}"
    )
    if as_json:
        answer: dict[str, Any] = {"study": study.name, "claims": [*map(speed_json, findings)]}
        print_json(answer | error_document(failed) if wrong else answer)
        if wrong:
            raise typer.Exit(failed.exit_code)
        return
    _print_claims(findings)
    if wrong:
        raise failed


def _document(study: SpeedStudy, file: Path, result: Path | None) -> dict[str, Any]:
    from evopress.report.speed_document import is_speed

    path = result or _default(file, study)
    if path is None or not path.is_file():
        raise NotFound(f"There is no result of {study.name}.", f"Measure it: evopress study run {file}")
    try:
        document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read as JSON: {error}.", f"Move it away and measure: evopress study run {file}") from error
    if not is_speed(document) or document["digest"] != study.digest:
        raise UsageError(f"{path} is the result of another study than {file}.", f"Measure it: evopress study run {file}")
    return document


def _print_claims(findings: Sequence[Finding]) -> None:
    from evopress.report.speed_claims import HEADER, speed_cells

    print_table(HEADER, map(speed_cells, findings))


def _default(file: Path, study: SpeedStudy) -> Path | None:
    """results/NAME.json beside the folder of the file, where there is such a folder."""
    folder = file.absolute().parent.parent / "results"
    return folder / f"{study.name}.json" if folder.is_dir() else None
