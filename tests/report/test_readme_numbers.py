"""The README's tables of the contests are what the committed results say; a failing test prints the lines that should stand there."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean, median

import pytest

from evopress.api.contest import Contest
from evopress.api.speed_study import read_speed_study
from evopress.report.claims import Verdict, judge
from evopress.report.contest_document import Document, mean, read_document, runs_of
from evopress.report.contest_table import standings
from evopress.report.speed_claims import judge_speed, speed_cells

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
TITLES = {
    "search-bits": ("3 bits (GPTQ, levels 2 to 6)", "guided"),
    "search-sparsity": ("60 % sparsity (SparseGPT)", "guided"),
    "search-drop": ("8 + 8 of 30 + 30 sublayers dropped", "guided-sixth"),
}
"""Contest -> how the README calls it, and the entrant it compares with the published search."""


def measured(name: str) -> tuple[Contest, Document]:
    return Contest.read(ROOT / "studies" / f"{name}.toml"), read_document(ROOT / "results" / f"{name}.json")


def finals(contest: Contest, document: Document, label: str) -> str:
    """What every seed ended at on held-out documents."""
    runs = runs_of(document, contest, label)
    return ", ".join(f"{mean(document, runs[seed], runs[seed]['marks'][-1]['profile']):.3f}" for seed in contest.seeds)


def ratio(verdict: Verdict) -> str:
    assert verdict.value is not None
    assert verdict.low is not None
    assert verdict.high is not None
    return f"{verdict.value:.0f} times fewer [{verdict.low:.0f}, {verdict.high:.0f}]"


@pytest.mark.parametrize("name", TITLES)
def test_the_published_search_and_guided(name: str) -> None:
    contest, document = measured(name)
    title, label = TITLES[name]
    tokens, seconds, quarter, *_ = judge(document, contest)
    assert (tokens.claim.metric, seconds.claim.metric, quarter.claim.metric) == ("tokens", "seconds", "fitness")
    assert quarter.value is not None
    spent = contest.entrants[label].tokens
    cells = (title, finals(contest, document, "evolve-parity"), f"{finals(contest, document, label)} ({spent:,})")
    row = f"| {' | '.join(cells)} | {ratio(tokens)} | {ratio(seconds)} | {quarter.value:+.3f} |"
    assert row in README


def test_what_is_left_with_the_bank_paid_by_both() -> None:
    verdicts = [judge(document, contest) for contest, document in map(measured, TITLES)]
    tokens, seconds = ([f"{found[at].with_bank or 0:.0f}" for found in verdicts] for at in (0, 1))
    wanted = (
        f"it is {tokens[0]}, {tokens[1]} and {tokens[2]} times fewer tokens, and {seconds[0]}, {seconds[1]} and {seconds[2]} times less"
    )
    assert wanted in README
    assert max(found[2].p or 1.0 for found in verdicts) < 1e-5


def test_what_certainty_costs_in_a_race() -> None:
    contest, document = measured("search-races")
    ends = {row.label: f"{row.fitness.mean:.3f}" for row in standings(document)}
    text = " ".join((ROOT / "docs" / "method.md").read_text(encoding="utf-8").split())
    fixed, strict = ends["fixed-rungs"], ends["strict"]
    wanted = f"α = 0.3 ends at {ends['guided']} nats, whoever-is-ahead-wins (α = 1, fixed rungs) at {fixed}, and α = 0.05 at {strict}"
    assert wanted in text, (wanted, ends)
    assert contest.seeds == (0, 1, 2)


def test_every_searcher_at_80_000_token_forwards() -> None:
    """And what asks nothing; best first by the mean rank over the contests that it is in."""
    table: dict[str, list[str]] = {}
    ranks: dict[str, list[int]] = {}
    for number, name in enumerate(TITLES):
        contest, document = measured(name)
        rows = [row for row in standings(document) if contest.entrants[row.label].tokens == contest.tokens]
        for rank, row in enumerate(rows):
            table.setdefault(row.label, ["-"] * len(TITLES))[number] = f"{row.fitness.mean:.3f}"
            ranks.setdefault(row.label, []).append(rank)
    order = sorted(table, key=lambda label: sum(ranks[label]) / len(ranks[label]))
    rows_text = "\n".join(f"| `{label}` | {' | '.join(table[label])} |" for label in order)
    assert rows_text in README, rows_text


def held_out(path: Path, label: str) -> float:
    """Held-out KL of a row of a search's result."""
    found: float = next(row["kl"]["mean"] for row in json.loads(path.read_text(encoding="utf-8"))["rows"] if row["label"] == label)
    return found


def test_what_calibration_tokens_buy() -> None:
    """One row a number of tokens: one column a seed, their mean, and the median of the bank's seconds."""
    files = sorted((ROOT / "results" / "calibration").glob("*.json"), key=lambda file: tuple(map(int, file.stem.split("-"))))
    table: dict[int, list[tuple[float, float]]] = {}
    for file in files:
        seconds = json.loads(file.read_text(encoding="utf-8"))["bank"]["seconds"]
        table.setdefault(int(file.stem.split("-")[0]), []).append((held_out(file, "uniform"), seconds))
    lines = []
    for tokens, found in table.items():
        values, seconds = zip(*found, strict=True)
        cells = " | ".join(f"{value:.3f}" for value in (*values, fmean(values)))
        lines.append(f"| {tokens:,} | {cells} | {median(seconds):.0f} |")
    rows = "\n".join(lines)
    assert rows, "there are no results"
    assert rows in README, rows


def test_what_the_store_saves() -> None:
    """One row a budget and stop: what a search ended at, from nothing and from what an earlier one left."""
    files = sorted((ROOT / "results" / "memory").glob("cold-*.json"), key=lambda file: tuple(map(float, file.stem.split("-")[1:])))
    rows = []
    for file in files:
        _, bits, tokens = file.stem.split("-")
        cold, warm = (held_out(file.with_name(f"{kind}-{bits}-{tokens}.json"), "guided") for kind in ("cold", "warm"))
        rows.append(f"| {bits} | {int(tokens):,} | {cold:.3f} | {warm:.3f} |")
    text = "\n".join(rows)
    assert text, "there are no results"
    assert text in README, text


def test_how_fast_candidates_are_measured() -> None:
    found = json.loads((ROOT / "results" / "engine.json").read_text(encoding="utf-8"))
    ratio, tokens = found["ratio"], found["tokens"]
    sentences = (
        f"{tokens / found['engine']['median']:,.0f} tokens/s, {ratio['median']:.2f}x [{ratio['low']:.2f}, {ratio['high']:.2f}] of a bare",
        f"(n = {len(ratio['samples'])} rounds in turns, {found['environment']['threads']} threads)",
        f"{found['reused']:.0%} of the blocks reused and {found['matmul']:.0%} of the time".replace("%", " %"),
        f"is {tokens / found['floor_seconds']:,.0f} tokens/s",
        f"memory is {found['peak_bytes'] / 2**30:.2f} GiB",
    )
    assert ratio["median"] >= 0.8, "no slower than four fifths of a bare pass"
    text = " ".join(README.split())
    for sentence in sentences:
        assert sentence in text


@pytest.mark.parametrize("name", ["kernels-cpu", "search-latency"])
def test_claims_on_speed(name: str) -> None:
    """Every claim of a speed study as it is judged now, a row each."""
    study = read_speed_study(ROOT / "studies" / f"{name}.toml")
    assert study is not None
    document = json.loads((ROOT / "results" / f"{name}.json").read_text(encoding="utf-8"))
    assert document["digest"] == study.digest, "the committed result is of the committed study"
    findings = judge_speed(document, study.claims)
    assert all(finding.state == "holds" for finding in findings)
    rows = "\n".join(f"| {' | '.join(speed_cells(finding))} |" for finding in findings)
    assert rows in README, rows
