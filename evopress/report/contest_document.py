"""The result of a contest as a JSON document: what was run, what it cost, and per-document values of every profile on the way.

Reads, writes and looks things up; computes no statistics (`claims`, `curves`) and measures nothing. Its keys are told in
results/README.md. Called by `evopress.contest`, the claims, the reports and the command line.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evopress.api import Level, NotFound, Profile, UsageError
from evopress.api.trial import weighted_mean
from evopress.report.files import write_text

if TYPE_CHECKING:
    from evopress.api.contest import Contest

Document = dict[str, Any]
Entry = Mapping[str, Any]
"""One run of the document: one entrant with one seed."""
KEYS = frozenset({"bank", "contest", "heldout", "levels", "model", "quick", "runs", "sites"})
WIDTH = 160
"""Short items of a run share a line up to so many columns."""


def render(document: Document) -> str:
    """Sorted keys; a top-level key a line, a run a few lines."""
    lines = ["{"]
    for key in sorted(document):
        if key == "runs":
            runs = ",\n".join(f" {{\n{_run_text(run)}\n }}" for run in document["runs"])
            lines.append(f'"runs": [\n{runs}\n],' if runs else '"runs": [],')
        else:
            lines.append(f"{json.dumps(key)}: {_text(document[key])},")
    lines[-1] = lines[-1].rstrip(",")
    return "\n".join([*lines, "}"]) + "\n"


def _run_text(run: Entry) -> str:
    lines: list[str] = []
    for key in sorted(run):
        item = f"{json.dumps(key)}: {_text(run[key])}"
        if lines and len(lines[-1]) + len(item) + 2 <= WIDTH:
            lines[-1] += f", {item}"
        else:
            lines.append(f"  {item}")
    return ",\n".join(lines)


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False)


def write_document(document: Document, path: Path) -> None:
    """Write it whole or not at all. Raises StorageError."""
    write_text(render(document), path, "Everything measured is in the store: run the same command with another --result.")


def read_document(path: Path) -> Document:
    """Read what `write_document` wrote. Raises NotFound, and UsageError for a file that is none."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise NotFound(f"There is no result {path}.", "Make it: evopress study run FILE --result RESULT.json.") from error
    except IsADirectoryError as error:
        raise UsageError(f"{path} is a folder.", "Name the file in it, e.g. search-bits.json.") from error
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read as JSON: {error}.", "Move it away and run the contest again.") from error
    if not is_contest(document):
        raise UsageError(f"{path} is not the result of a contest.", "Name another file, or make it: evopress study run FILE.")
    return dict(document)


def is_contest(document: object) -> bool:
    """Has it the keys of a contest's result?"""
    return isinstance(document, dict) and document.keys() >= KEYS


def check_belongs(document: Document, contest: Contest, path: Path) -> None:
    """Raise UsageError, naming the keys, unless the document is of this contest. Its entrants may be others by now."""
    found = document["contest"]
    if found["base_digest"] != contest.base_digest:
        keys = sorted(key for key in contest.base if found.get(key) != contest.base[key])
        parts = "; ".join(f"{key}: {found.get(key)!r} there, {contest.base[key]!r} now" for key in keys)
        raise UsageError(
            f"{path} is the result of another contest than {contest.name}. Different: {parts or 'the keys that there are'}.",
            "Put the old values back, or name another file with --result.",
        )


def check_same_bank(document: Document, model: str, recipe: str, path: Path) -> None:
    """Raise UsageError unless model (digest) and bank (digest of its recipe) are those of the document."""
    for what, then, now in (("model", document["model"]["digest"], model), ("bank", document["bank"]["recipe"], recipe)):
        if then != now:
            raise UsageError(
                f"{path} was measured on {what} {then[:12]}, and this is {now[:12]}: weights, calibration or arithmetic differ.",
                "Give the --device and --dtype it was measured with, or name another file with --result.",
            )


def runs_of(document: Document, contest: Contest, label: str) -> dict[int, Entry]:
    """Seed -> run of an entrant as the contest defines it now; one that asks nothing stands for every seed."""
    entrant = contest.entrants[label]
    wanted = (label, entrant.searcher, entrant.tokens)
    found = {run["seed"]: run for run in document["runs"] if (run["label"], run["searcher"], run["stop_tokens"]) == wanted}
    still = next((run for run in found.values() if asks_nothing(run)), None)
    return {seed: run for seed in contest.seeds if (run := found.get(seed, still)) is not None}


def adopt(document: Document, other: Document, contest: Contest) -> None:
    """Add the runs of another document of the contest that this one lacks, and sort all by entrant and seed."""
    for label in contest.entrants:
        for seed, run in runs_of(other, contest, label).items():
            if seed not in runs_of(document, contest, label):
                document["runs"].append({**run, "final": packed(final_profile(other, run), document["levels"])})
    document["heldout"]["weights"] = document["heldout"]["weights"] or other["heldout"]["weights"]
    sort_runs(document, contest)


def sort_runs(document: Document, contest: Contest) -> None:
    """By entrant, as the contest lists them, and seed."""
    labels = list(contest.entrants)
    document["runs"].sort(key=lambda run: (labels.index(run["label"]), run["seed"]))


def asks_nothing(run: Entry) -> bool:
    """Did it finish without a measurement? Then its seed does not matter either."""
    return bool(run["reason"] == "finished" and run["evaluations"] == 0)


def mean(document: Document, run: Entry, profile: str) -> float:
    """Held-out mean of a profile of a run, weighted by positions."""
    return weighted_mean(run["profiles"][profile], document["heldout"]["weights"])


def final_values(run: Entry) -> list[float]:
    """Per held-out document, what the run ended at."""
    values: list[float] = run["profiles"][run["marks"][-1]["profile"]]
    return values


def final_profile(document: Document, run: Entry) -> Profile:
    """The profile the run ended at, from the document alone."""
    levels = [Level.parse(text) for text in document["levels"]]
    numbers = map(int, run["final"].split())
    return Profile(tuple((site, levels[number]) for site, number in zip(document["sites"], numbers, strict=True)))


def packed(profile: Profile, levels: list[str]) -> str:
    """A profile as numbers of levels in `levels`, in the order of its sites; levels that are new are added there."""
    numbers = []
    for _, level in profile:
        if str(level) not in levels:
            levels.append(str(level))
        numbers.append(levels.index(str(level)))
    return " ".join(map(str, numbers))
