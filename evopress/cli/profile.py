"""`evopress profile`: one profile as a map, as text or as JSON, its benchmark scores, and how fast it runs."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from evopress.api.errors import NotFound, UsageError, unknown
from evopress.cli.options import Device, Dtype, Json, Storage
from evopress.cli.output import print_json, print_table, say, storage_url
from evopress.home import home

if TYPE_CHECKING:
    from collections.abc import Sequence

    from evopress.events import Progress
    from evopress.report.statistics import Interval
    from evopress.store import LatencyRow, ProfileRow, ResultRow, Store, StudyRow, TaskScore

app = typer.Typer(
    help="Show a profile as a map of levels over depth; score it on benchmarks; time it.", no_args_is_help=True, rich_markup_mode=None
)
Id = Annotated[str, typer.Argument(metavar="ID", help="Start of a digest, a study (its winner), or STUDY/LABEL such as demo/uniform.")]
HEX_DIGITS = 4
"""A digest is named by at least so many digits."""


@app.command()
def show(
    id: Id,
    text: Annotated[bool, typer.Option("--text", help="One `site: level` a line: the form a profile is read from.")] = False,
    as_json: Json = False,
    storage: Storage = None,
) -> None:
    """Print a profile: size, measured fitness and a map of levels over depth."""
    from evopress.report.profile_map import build_map, map_lines
    from evopress.store import Store

    if text and as_json:
        raise UsageError("--text and --json are two answers.", "Ask for one of them.")
    with Store.open(storage_url(storage), create=False) as store:
        row = find(store, id)
        about = _about(store, row)
        sites = store.sites_of(row.model_digest)
    if text:
        print(row.profile)
        return
    found = build_map(row.profile, sites)
    if as_json:
        rows = [{"role": r.label, "kind": r.kind, "cells": [c.text for c in r.cells], "mean_bits": r.mean_bits} for r in found.rows]
        levels = {site: str(level) for site, level in row.profile}
        print_json({**_about_json(row, about), "map": {"depths": found.depths, "rows": rows, "legend": found.legend}, "levels": levels})
        return
    _print_header(row, about)
    terminal = sys.stdout.isatty()
    width = shutil.get_terminal_size().columns if terminal else None
    print("\n".join(map_lines(found, width, color=terminal and not os.environ.get("NO_COLOR"))))


@app.command()
def evaluate(
    id: Id,
    tasks: Annotated[str, typer.Option(help="Tasks of lm-eval, comma-separated: arc_easy,hellaswag.")],
    task_dir: Annotated[list[Path] | None, typer.Option(help="Folder with task files of your own; repeatable.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many items of each task.")] = None,
    num_fewshot: Annotated[int | None, typer.Option(min=0, help="Examples in the prompt; default: the task's own.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Sequences a forward pass.")] = 8,
    device: Device = None,
    dtype: Dtype = None,
    as_json: Json = False,
    storage: Storage = None,
) -> None:
    """Run lm-eval benchmarks on the compressed model and keep the scores."""
    names = [name.strip() for name in tasks.split(",") if name.strip()]
    if not names:
        raise UsageError("--tasks names no task.", "Write e.g. --tasks arc_easy,hellaswag.")
    folders = task_dir or []

    from evopress.store import Store

    with Store.open(storage_url(storage), create=False) as store:
        row = find(store, id)
        from evopress.fitness import tasks as benchmarks

        # Before the model is loaded and its bank completed, which takes minutes.
        benchmarks.check(names, folders, limit, num_fewshot, batch_size)
        from evopress.reopening import open_profile

        def listen(progress: Progress) -> None:
            say(f"{progress.phase}: {progress.text}")

        model, tokenizer = open_profile(store, row, home(), listen, device, dtype)
        scores = benchmarks.evaluate(model, tokenizer, names, folders, limit, num_fewshot, batch_size)
        store.put_task_scores(row.id, scores)
    if as_json:
        print_json({"profile": row.profile.digest, "model": row.model, "scores": [_score_json(score) for score in scores]})
        return
    print(f"profile {row.profile.digest[:12]} of {row.model}, {row.cost.bytes:,} bytes, {row.bits:.3f} bits a weight")
    _print_scores(scores)


@app.command()
def bench(
    id: Id,
    batch: Annotated[int, typer.Option(min=1, help="Sequences at a time.")] = 1,
    prompt: Annotated[int, typer.Option(min=1, help="Tokens of the prompt.")] = 512,
    decode: Annotated[int, typer.Option(min=1, help="Tokens that are decoded after it.")] = 64,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads both models run with; default: as torch chooses.")] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Times that the profile and the dense model run, in turns.")] = 7,
    device: Device = None,
    dtype: Dtype = None,
    as_json: Json = False,
    storage: Storage = None,
) -> None:
    """Run the packed model beside the dense one: tokens a second, memory, bytes read, the latency table's error; keep the times."""
    from evopress.store import Store

    with Store.open(storage_url(storage), create=False) as store:
        row = find(store, id)
        from evopress.cli.profile_bench import print_bench
        from evopress.profile_bench import Asked, bench_profile

        def listen(progress: Progress) -> None:
            say(f"{progress.phase}: {progress.text}")

        document = bench_profile(store, row, home(), Asked(batch, prompt, decode, repeats, threads), listen, device, dtype)
    if as_json:
        print_json(document)
    else:
        print_bench(document)


# Which profile is meant --------------------------------------------------------------------------------------------------


def find(store: Store, id: str) -> ProfileRow:
    """The profile a person means. Raises NotFound, and UsageError when the name could mean several."""
    id = id.strip()
    study_name, slash, label = id.partition("/")
    if slash:
        return _of_study(store, store.find_study(study_name), label)
    studies = {study.name: study for study in store.studies()}
    start = id.partition("@")[0]  # DIGEST@BANK names one of two calibrations of a profile
    digits = len(start) >= HEX_DIGITS and all(letter in "0123456789abcdef" for letter in start.lower())
    if id in studies:
        if digits and _is_digest(store, id):
            raise UsageError(f"{id!r} is a study and also the start of a digest.", f"Write {id}/LABEL or more digits of the digest.")
        return _of_study(store, studies[id], None)
    if digits:
        return store.find_profile(id)
    error = unknown("profile or study", id, studies, "the store")
    raise NotFound(error.message, f"{error.hint} Give a study, STUDY/LABEL, or {HEX_DIGITS} or more digits of a digest.")


def _is_digest(store: Store, start: str) -> bool:
    try:
        store.find_profile(start)
    except NotFound:
        return False
    except UsageError:
        return True
    return True


def _of_study(store: Store, study: StudyRow, label: str | None) -> ProfileRow:
    """The profile a study holds under a label; its winner for None."""
    held = {result.label: result for result in store.results(study.id)}
    if label is None:
        label = next((result.label for result in held.values() if result.role == "winner"), None)
        if label is None:
            raise NotFound(f"Study {study.name!r} has no winner yet.", f"Let it finish: evopress search resume {study.name}")
    elif label not in held:
        error = unknown("label", label, held, f"study {study.name!r}")
        raise NotFound(error.message, error.hint)
    return store.profiles([held[label].profile_id])[held[label].profile_id]


# What is known of it -----------------------------------------------------------------------------------------------------


class _About:
    """Everything the store knows of one profile beside its levels."""

    def __init__(
        self,
        held: list[ResultRow],
        fitness: dict[str, Interval],
        estimated: float | None,
        speeds: list[LatencyRow],
        scores: list[TaskScore],
    ) -> None:
        self.held, self.fitness, self.estimated, self.speeds, self.scores = held, fitness, estimated, speeds, scores


def _about(store: Store, row: ProfileRow) -> _About:
    from evopress.report.statistics import interval

    held = [result for result in store.results() if result.profile_id == row.id]
    board = next((line for line in store.leaderboard(model=row.model_digest) if line.profile_id == row.id), None)
    trials = dict(board.trials) if board else {}
    values = store.document_values(trials.values())
    latest = {speed.phase: speed for speed in store.latencies(profile_id=row.id)}
    return _About(
        held,
        {name: interval(*values[trial], groups=store.origins(board.slices[name])) for name, trial in sorted(trials.items()) if board},
        board.estimated_seconds if board else None,
        list(latest.values()),
        store.task_scores(row.id),
    )


def _about_json(row: ProfileRow, about: _About) -> dict[str, Any]:
    return {
        "profile": row.profile.digest,
        "model": row.model,
        "model_digest": row.model_digest,
        "bytes": row.cost.bytes,
        "params": row.cost.params,
        "bits": row.bits,
        "held_as": [f"{result.study}/{result.label}" for result in about.held],
        "fitness": {n: {"mean": f.mean, "low": f.low, "high": f.high, "documents": f.n} for n, f in about.fitness.items()},
        "estimated_seconds": about.estimated,
        "speed": {
            s.phase: {name: getattr(s, name) for name in ("tokens_per_second", "kernel", "device", "batch", "tokens", "threads")}
            for s in about.speeds
        },
        "tasks": [_score_json(score) for score in about.scores],
    }


def _print_header(row: ProfileRow, about: _About) -> None:
    lines = [
        ("profile", row.profile.digest),
        ("model", f"{row.model} ({row.model_digest[:12]})"),
        ("size", f"{row.cost.bytes:,} bytes, {row.cost.params:,} parameters, {row.bits:.3f} bits a weight"),
        ("held as", ", ".join(f"{result.study}/{result.label}" for result in about.held) or "nothing: a step of a search"),
        *((name, _measured(name, found)) for name, found in about.fitness.items()),
        *(() if about.fitness else (("fitness", "not measured on held-out documents"),)),
        *(() if about.estimated is None else (("estimated", _estimated(about.estimated)),)),
        *((speed.phase, _speed(speed)) for speed in about.speeds),
        *((score.task, f"{score.metric} {_value(score)}") for score in about.scores),
    ]
    width = max(len(name) for name, _ in lines)
    print("\n".join(f"{name.ljust(width)}  {text}" for name, text in lines) + "\n")


def _speed(speed: LatencyRow) -> str:
    """The last measurement, with what it was taken under."""
    under = f"batch {speed.batch}, {speed.tokens} tokens, {speed.threads} threads"
    return f"{speed.tokens_per_second:,.1f} tokens/s on {speed.device} ({under}), kernels: {speed.kernel}"


def _estimated(seconds: float) -> str:
    return f"{1e3 * seconds:,.2f} ms for one pass of its study's workload, by the latency table of the machine that searched"


def _measured(name: str, found: Interval) -> str:
    from evopress.report.comparison import ranged
    from evopress.report.result import perplexity

    over = f"over {found.n} held-out documents"
    # Perplexity is stored as its logarithm, because that is what averages over documents.
    return f"{ranged(perplexity(found), 2)} {over} ({found.mean:.4f} nats/token)" if name == "perplexity" else f"{ranged(found)} {over}"


def _score_json(score: TaskScore) -> dict[str, Any]:
    names = ("task", "metric", "filter", "value", "stderr", "samples", "shots", "version")
    return {name: getattr(score, name) for name in names}


def _value(score: TaskScore) -> str:
    return f"{score.value:.4f}" + ("" if score.stderr is None else f" ±{score.stderr:.4f}") + f" (n={score.samples}, {score.shots}-shot)"


def _print_scores(scores: Sequence[TaskScore]) -> None:
    rows = [
        (s.task, s.metric, s.filter, f"{s.value:.4f}", None if s.stderr is None else f"{s.stderr:.4f}", s.samples, s.shots) for s in scores
    ]
    print_table(("task", "metric", "filter", "value", "stderr", "n", "shots"), rows)
