"""`evopress study` on planted results: claims with their exit codes, the comparison with its files, and what is refused."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from planted_store import invoke

import evopress.cli.study as command
import evopress.contest
from evopress.api import NotFound, QualityGateFailed, UsageError
from evopress.api.contest import Contest
from evopress.report.contest_document import read_document, write_document

CLAIMS = """
[[claims]]
says = "fast needs a fifth of the tokens"
metric = "tokens"
entrant = "fast"
baseline = "slow"
comparator = ">="
goal = {goal}

[[claims]]
says = "fast ends lower"
metric = "fitness"
entrant = "fast"
baseline = "slow"
comparator = "<="
goal = 0
"""
TEXT = 'methods = ["gptq(bits=2..4,group=64)"]\nbudgets = ["bits=3.0"]\nseeds = {seeds}\ntokens = 1000\n[entrants]\n{entrants}'


def study_file(folder: Path, goal: float = 5, seeds: str = "[0]", claims: bool = True) -> Path:
    """A contest `race` in a folder `studies`, with an empty folder `results` beside it."""
    for name in ("studies", "results"):
        (folder / name).mkdir(exist_ok=True)
    entrants = 'slow = "evolve"\nfast = "guided"\n'
    file = folder / "studies" / "race.toml"
    file.write_text(TEXT.format(seeds=seeds, entrants=entrants) + (CLAIMS.format(goal=goal) if claims else ""))
    return file


def run(label: str, searcher: str, steps: list[tuple[int, list[float]]], stop: int = 1000) -> dict[str, Any]:
    marks = [{"tokens": at, "evaluations": 1, "seconds": at / 10, "profile": f"p{at}", "bytes": 1, "bits": 3.0} for at, _ in steps]
    return {
        "label": label, "searcher": searcher, "seed": 0, "stop_tokens": stop, "commit": "abc", "environment": {}, "reason": "tokens",
        "evaluations": 1, "tokens": marks[-1]["tokens"], "seconds": marks[-1]["seconds"], "marks": marks, "final": "0",
        "profiles": {f"p{at}": values for at, values in steps},
    }  # fmt: skip


def measured(contest: Contest, quick: bool = False, stop: int = 1000) -> dict[str, Any]:
    """The document: slow ends at 0.5 after 1,000 tokens, fast is there after 200 and ends at 0.3 on both documents."""
    return {
        "bank": {"recipe": "r" * 64, "calibration_tokens": 100, "bytes": 5000, "seconds": 1.0},
        "contest": {"name": contest.name, "digest": contest.digest, "base_digest": contest.base_digest, **contest.definition},
        "heldout": {"slice": "s" * 64, "documents": [2, 2], "origins": [0, 1], "weights": [1, 1]},
        "levels": ["dense"], "model": {"name": "Tiny", "digest": "m" * 64}, "quick": quick, "sites": ["a"],
        "runs": [
            run("slow", "evolve", [(500, [0.9, 0.7]), (1000, [0.6, 0.4])], stop),
            run("fast", "guided", [(100, [0.8, 0.6]), (200, [0.5, 0.5]), (400, [0.4, 0.2])], stop),
        ],
    }  # fmt: skip


@pytest.fixture
def planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Write the contest and its result; returns the file."""
    monkeypatch.setattr(evopress.contest, "replay", lambda *_: pytest.fail("the store was read"))

    def plant(**options: Any) -> Path:
        file = study_file(tmp_path, **options)
        write_document(measured(Contest.read(file)), tmp_path / "results" / "race.json")
        return file

    return plant


# Claims ---------------------------------------------------------------------------------------------------------------------------------


def test_claims_that_hold_are_printed_and_exit_0(planted: Callable[..., Path]) -> None:
    answer = invoke(command.app, "claims", str(planted()))
    assert answer.exit_code == 0
    lines = answer.stdout.splitlines()
    assert lines[0].split() == ["claim", "value", "interval", "n", "goal", "with", "bank", "verdict"]
    assert "5.0x" in lines[2]
    assert "[5.0x, 5.0x]" in lines[2]
    assert lines[2].endswith("holds")
    assert "-0.2000  [-0.2000, -0.2000]  2 documents" in lines[3]


def test_a_claim_that_fails_exits_6(planted: Callable[..., Path]) -> None:
    file = planted(goal=5.5)
    answer = invoke(command.app, "claims", str(file))
    assert isinstance(answer.exception, QualityGateFailed)
    assert answer.exception.exit_code == 6
    assert answer.exception.message == "1 of 2 claims of contest race are not shown to hold."
    assert answer.stdout.splitlines()[2].endswith("fails")
    answer = invoke(command.app, "claims", str(file), "--json")
    assert answer.exit_code == 6
    document = json.loads(answer.stdout)
    assert document["error"]["code"] == "quality-gate"
    assert [(found["state"], found["value"]) for found in document["claims"]] == [("fails", 5.0), ("holds", pytest.approx(-0.2))]
    assert document["claims"][0]["claim"]["goal"] == 5.5


def test_what_is_not_measured_exits_6_and_is_named(planted: Callable[..., Path]) -> None:
    answer = invoke(command.app, "claims", str(planted(seeds="[0, 1]")))
    assert isinstance(answer.exception, QualityGateFailed)
    assert "not measured yet: fast seed 1, slow seed 1" in answer.stdout


def test_a_quick_result_is_no_evidence(planted: Callable[..., Path], tmp_path: Path) -> None:
    file = planted()
    small = Contest.read(file).small()
    write_document(measured(small, quick=True, stop=1000), tmp_path / "quick.json")
    answer = invoke(command.app, "claims", str(file), "--result", str(tmp_path / "quick.json"))
    assert isinstance(answer.exception, QualityGateFailed)
    assert answer.stdout.count("quick, no evidence") == 2


def test_claims_of_nothing_and_of_another_result_are_refused(planted: Callable[..., Path], tmp_path: Path) -> None:
    assert isinstance(invoke(command.app, "claims", str(planted(claims=False))).exception, NotFound)
    file = planted()
    file.write_text("window = 256\n" + file.read_text())
    answer = invoke(command.app, "claims", str(file))
    assert isinstance(answer.exception, UsageError)
    assert "Different: window: 512 there, 256 now" in str(answer.exception)
    absent = invoke(command.app, "claims", str(file), "--result", str(tmp_path / "none.json"))
    assert isinstance(absent.exception, NotFound)


def test_without_a_result_the_store_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = study_file(tmp_path)
    seen: list[Contest] = []

    def replay(contest: Contest, *_: object) -> dict[str, Any]:
        seen.append(contest)
        return measured(contest)

    monkeypatch.setattr(evopress.contest, "replay", replay)
    answer = invoke(command.app, "claims", str(file), "--storage", "sqlite:///unused.db")
    assert answer.exit_code == 0
    assert "there is no result file yet; reading the store" in answer.stderr
    assert seen[0].name == "race"


# Compare --------------------------------------------------------------------------------------------------------------------------------


def test_compare_prints_the_leaderboard_and_draws_two_files(planted: Callable[..., Path], tmp_path: Path) -> None:
    out = tmp_path / "new" / "pictures"
    answer = invoke(command.app, "compare", str(planted()), "-o", str(out))
    assert answer.exit_code == 0
    assert sorted(path.name for path in out.iterdir()) == ["race.html", "race.png"]
    lines = answer.stdout.splitlines()
    assert [line.split()[0] for line in lines[3:5]] == ["fast", "slow"]
    assert "0.3000 [0.2000, 0.4000]" in lines[3]
    assert "the bank, used by every entrant: 100 calibration tokens, 5,000 bytes, built in 1 s" in answer.stdout
    document = json.loads(invoke(command.app, "compare", str(planted()), "-o", str(out), "--json").stdout)
    assert [row["label"] for row in document["rows"]] == ["fast", "slow"]
    assert document["bank"]["seconds"] == 1.0
    assert all(Path(file).exists() for file in document["files"])


def test_compare_needs_a_run_and_a_folder(planted: Callable[..., Path], tmp_path: Path) -> None:
    file = planted()
    assert isinstance(invoke(command.app, "compare", str(file), "-o", str(file)).exception, UsageError)
    result = tmp_path / "results" / "race.json"
    write_document({**read_document(result), "runs": []}, result)
    assert "Nothing of contest race is measured yet" in str(invoke(command.app, "compare", str(file), "-o", str(tmp_path)).exception)


# Run ------------------------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def competed(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What `study run` asks for; the contest is not run, but its document is saved."""
    seen: list[dict[str, Any]] = []
    names = inspect.signature(evopress.contest.compete).parameters

    def compete(*arguments: Any) -> dict[str, Any]:
        given = dict(zip(names, arguments, strict=False))
        seen.append({**given, "kept": given["latest"]()})
        document = measured(given["contest"], given["contest"].quick)
        given["save"](document)
        return document

    monkeypatch.setattr(evopress.contest, "compete", compete)
    return seen


def test_run_writes_the_default_result_and_keeps_it_the_next_time(competed: list[dict[str, Any]], tmp_path: Path) -> None:
    file = study_file(tmp_path)
    answer = invoke(command.app, "run", str(file), "--only", "fast", "--only", "slow", "--seeds", "0", "--dtype", "float32")
    assert answer.exit_code == 0, answer.stderr
    result = tmp_path / "results" / "race.json"
    assert read_document(result)["contest"]["name"] == "race"
    assert f"result: {result}" in answer.stderr
    assert (competed[0]["kept"], competed[0]["only"], competed[0]["seeds"]) == (None, ["fast", "slow"], [0])
    assert (competed[0]["device"], competed[0]["dtype"], competed[0]["bank_quota_bytes"]) == ("cpu", "float32", None)
    document = json.loads(invoke(command.app, "run", str(file), "--json", "--bank-quota", "1KiB").stdout)
    assert document == read_document(result) == competed[1]["kept"]
    assert competed[1]["bank_quota_bytes"] == 1024


def test_quick_never_writes_the_default_result(competed: list[dict[str, Any]], tmp_path: Path) -> None:
    file = study_file(tmp_path)
    answer = invoke(command.app, "run", str(file), "--quick")
    assert competed[0]["contest"].name == "race-quick"
    assert list((tmp_path / "results").iterdir()) == []
    assert "no result file" in answer.stderr
    invoke(command.app, "run", str(file), "--quick", "--result", str(tmp_path / "q.json"))
    assert read_document(tmp_path / "q.json")["quick"]
    full = invoke(command.app, "run", str(file), "--result", str(tmp_path / "q.json"))
    assert isinstance(full.exception, UsageError), "the quick result is of another contest"


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        (["--seeds", "a"], UsageError, "Option --seeds is 'a'."),
        (["--result", "."], UsageError, "--result . is a folder."),
        (["--result", "no/such/file.json"], NotFound, "The folder of --result no/such/file.json does not exist."),
    ],
)
def test_wrong_options_of_run(competed: list[Any], tmp_path: Path, options: list[str], kind: type, message: str) -> None:
    answer = invoke(command.app, "run", str(study_file(tmp_path)), *options)
    assert isinstance(answer.exception, kind)
    assert message in str(answer.exception)
    assert competed == []
