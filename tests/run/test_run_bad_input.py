"""Bad input of every kind, through the command line: one clear message, the right exit code, and nothing lost."""

from __future__ import annotations

import errno
import json
import os
import random
import re
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_study
import torch
from tiny_study import Answer, Tiny, Whole

from evopress.api import StorageError
from evopress.bank.bank import Bank
from evopress.fitness import KL
from evopress.hooks.registry import Registry
from evopress.store import Store, database
from evopress.store.schema import VERSION_TABLE, Trials

Command = Callable[..., Answer]
Start = Callable[..., Answer]


@pytest.fixture
def start(tiny: Tiny, home: Path, evopress_command: Command) -> Start:
    """`evopress search start` of the tiny study with some keys changed; every error must be one message, never a traceback."""

    def call(*options: str, **changed: Any) -> Answer:
        answer = evopress_command("search", "start", *tiny_study.arguments(tiny, **changed), *options)
        if answer.code:
            assert answer.err.count("error: ") == 1
            assert "Traceback" not in answer.err
            assert answer.out == ""
        return answer

    return call


@pytest.fixture
def no_weights(no_model: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading weights in any way fails the test."""
    monkeypatch.setattr("evopress.workbench.weights_digest", lambda *_: pytest.fail("weights were read"))


# The request itself ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_weights")
@pytest.mark.parametrize(
    ("changed", "code", "message"),
    [
        ({"methods": ("gtpq(bits=3)",)}, 2, "Unknown method 'gtpq' in study tiny.\n  Did you mean 'gptq'? Known: drop, gptq,"),
        ({"methods": ("gptq(bit=3)",)}, 2, "Unknown option of method gptq 'bit'.\n  Did you mean 'bits'?"),
        ({"methods": ("gptq(bits=17)",)}, 2, "Option bits=17 of method 'gptq' is not allowed.\n  Give a whole number from 2 to 8."),
        ({"methods": ("rtn(bits=3", "drop")}, 2, "Cannot read method 'rtn(bits=3'."),
        ({"methods": ("drop", "drop")}, 2, "Method 'drop' stands twice in study tiny."),
        ({"methods": ("rtn(bits=3,group=50)",)}, 2, "Method 'rtn' offers no level at any site of this model."),
        ({"searcher": "evovle"}, 2, "Unknown searcher 'evovle' in study tiny.\n  Did you mean 'evolve'? Known: baq, bayes, erk,"),
        ({"searcher": "evolve(ofspring=3)"}, 2, "Unknown option of searcher evolve 'ofspring'.\n  Did you mean 'offspring'?"),
        ({"baselines": ("uniform", "randmo")}, 2, "Unknown searcher 'randmo'"),
        ({"baselines": ("random", "random(candidates=3)")}, 2, "stands under the name of another searcher"),
        ({"baselines": ("uniform", "evolve(mode=parity)")}, 2, "Baseline 'evolve(mode=parity)' of study tiny stands under the name"),
        ({"fitness": "klx"}, 2, "Unknown fitness 'klx' in study tiny.\n  Did you mean 'kl'? Known: kl, perplexity."),
        ({"links": ("q_proj+k_pro",)}, 2, "Unknown role 'k_pro' in link 'q_proj+k_pro'.\n  Did you mean 'k_proj'?"),
        ({"budgets": ("bist=3",)}, 2, "Unknown budget 'bist' in 'bist=3'.\n  Did you mean 'bits'?"),
        ({"budgets": ("bits=three",)}, 2, "Cannot read the number 'three' of budget 'bits=three'."),
        ({"budgets": ("size=gptq(bits=5,group=32)",)}, 2, "Unknown level 'gptq(bits=5,group=32)' in the budget."),
        ({"window": 4}, 2, "Key 'window' in the options is 4"),
        ({"window": 256}, 2, "Key 'window' of study tiny is 256, but model has 128 positions.\n  Lower the window."),
        ({"name": "no spaces"}, 2, "Key 'name' in the options is 'no spaces'"),
        ({"budgets": ("bits=0.001",), "methods": ("rtn(bits=2,group=32)",)}, 3, "less than the cheapest profile"),
        ({"budgets": ("bits=20",)}, 3, "more than the dearest profile"),
        ({"model": "/no/such/folder"}, 5, "There is no folder '/no/such/folder'."),
        ({"model": "no-such.gguf"}, 5, "There is no file 'no-such.gguf'."),
        ({"model": "org/no-such-model"}, 5, "Model 'org/no-such-model' is no local folder and could not be fetched from the hub"),
    ],
)  # fmt: skip
def test_a_wrong_request_is_told_before_any_weight_is_read(
    start: Start, home: Path, changed: dict[str, Any], code: int, message: str
) -> None:
    answer = start(**changed)
    assert answer.code == code
    assert message in answer.err
    assert not (home / "evopress.db").exists()


@pytest.mark.usefixtures("no_weights")
def test_an_infeasible_budget_names_the_feasible_interval(start: Start) -> None:
    answer = start(methods=("rtn(bits=2..4,group=32)",), budgets=("bits=1.5",))
    assert answer.code == 3
    # A row of 64 columns: 16 bytes of codes, 2 scales, 1 byte of zeros; a row of 96: 24, 3 scales, 1. Outside: embedding, head, 9 norms.
    low = 4 * (384 * (16 + 4 + 1) + 64 * (24 + 6 + 1)) + 2 * (2 * 152 * 64 + 9 * 64)
    high = 4 * 2 * (384 * 64 + 64 * 96) + 2 * (2 * 152 * 64 + 9 * 64)
    assert f"Feasible: bits=2.617 to 16.000 ({low:,} to {high:,} bytes)." in answer.err


@pytest.mark.usefixtures("no_model")
def test_budgets_that_no_profile_meets_together_are_told_before_the_bank_is_built(start: Start) -> None:
    answer = start(methods=("rtn(bits=2,group=32)", "magnitude(sparsity=0.7)"), budgets=("bits=3", "params=0.5x"))
    assert answer.code == 3
    assert "No profile was found that meets bits=3" in answer.err


def test_a_wrong_key_in_a_study_file(tiny: Tiny, home: Path, evopress_command: Command) -> None:
    home.mkdir()
    file = tiny_study.toml(home / "mine.toml", {"model": str(tiny.model), "budget": ["bits=3"]})
    answer = evopress_command("search", "start", str(file))
    assert answer.code == 2
    assert f"Unknown key 'budget' in {file}.\n  Did you mean 'budgets'?" in answer.err
    file.write_text("model = [broken", encoding="utf-8")
    answer = evopress_command("search", "start", str(file))
    assert answer.code == 2
    assert f"Study file {file} is not TOML" in answer.err
    answer = evopress_command("search", "start", "absent.toml")
    assert answer.code == 5
    assert "Study file absent.toml does not exist." in answer.err


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"searcher": "evolve(rungs=2x64|2x160)"}, "does not end with one survivor"),
        ({"searcher": "evolve(rungs=1x5000)"}, "evolve asks for 5,000 tokens a stage, but the search set holds 320."),
        ({"searcher": "evolve"}, "evolve asks for 4,096 tokens a stage, but the search set holds 320."),
        ({"baselines": ("uniform", "random(candidates=0)")}, "Option candidates=0 is not an integer of at least 1."),
    ],
)
def test_b6_wrong_options_of_a_searcher_are_told_before_the_bank_is_built(start: Start, changed: dict[str, Any], message: str) -> None:
    answer = start(**changed)
    assert answer.code == 2
    assert message in answer.err


def test_a_folder_that_holds_no_model(start: Start, tmp_path: Path) -> None:
    answer = start(model=str(tmp_path))
    assert answer.code == 5
    assert f"The folder {tmp_path} has no config.json, so it holds no model." in answer.err


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("cuda", "Device 'cuda' is not there: torch"),
        ("cuda:7", "Device 'cuda:7' is not there"),
        ("tpu", "Unknown device 'tpu'."),
        ("meta", "Allowed: cpu, cuda"),
    ],
)
def test_a_device_that_is_not_there(start: Start, monkeypatch: pytest.MonkeyPatch, device: str, message: str) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    answer = start("--device", device)
    assert answer.code == 2
    assert message in answer.err


# Text -----------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "code", "message"),
    [
        ("empty.txt", b"", 2, "holds no text."),
        ("blank.txt", b"\n\n  \n", 2, "holds no text."),
        ("one.txt", b"ba be bi " * 5, 2, "calibration, search and held-out text need one each."),
        ("broken.jsonl", b'{"text": "ba"}\n{"text"', 2, "Line 2 of"),
        ("fieldless.jsonl", b'{"body": "ba"}', 2, "has no 'text' field."),
        ("latin.jsonl", b'{"text": "caf\xe9"}', 2, "is not UTF-8"),
        ("page.html", b"<p>", 2, "Unknown text file type '.html'"),
        (None, b"", 5, "is neither a file nor a known name."),
        ("folder.txt/", b"", 2, "is a folder.\n  Give one .txt or .jsonl file"),
    ],
)  # fmt: skip
def test_text_that_cannot_be_used(start: Start, tmp_path: Path, name: str | None, content: bytes, code: int, message: str) -> None:
    path = tmp_path / (name or "absent.txt")
    if name and name.endswith("/"):
        path.mkdir()
    elif name:
        path.write_bytes(content)
    answer = start(text=str(path))
    assert answer.code == code
    assert message in answer.err


@pytest.mark.usefixtures("no_model")
def test_b6_too_few_tokens_say_how_many_there_are(start: Start) -> None:
    answer = start(heldout_tokens=100_000)
    assert answer.code == 2
    assert "Token set 'heldout' asks for 100,000 tokens, but its share of" in answer.err
    assert "holds 1,200.\n  Ask for at most 1,200 tokens" in answer.err  # 30 of 120 documents of 40 tokens


# Damage ---------------------------------------------------------------------------------------------------------------------------------


def bank_file(home: Path, run: Any) -> Path:
    """The file of the first compressed matrix of the winner."""
    bench = run.best._bench
    site, level = next((site, level) for site, level in run.best.profile if level.method in ("rtn", "gptq"))
    return Bank(home / "bank").path(bench._tasks[(site, level)].key)


def test_a_damaged_bank_file_is_named_and_deleting_it_loses_nothing(start: Start, whole: Whole, home: Path) -> None:
    shutil.copytree(whole.home / "bank", home / "bank")
    file = bank_file(home, whole.run)
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    others = {path: path.stat().st_mtime_ns for path in (home / "bank").rglob("*.safetensors") if path != file}
    answer = start()
    assert answer.code == 1
    assert f"The bank file {file} is damaged: its checksum does not match.\n  Delete that file and run the same command again" in answer.err
    before = tiny_study.contents(tiny_study.url(home))
    assert before.trials.items() <= whole.contents.trials.items()

    file.unlink()
    assert start().code == 0
    assert tiny_study.contents(tiny_study.url(home)) == whole.contents
    assert {path: path.stat().st_mtime_ns for path in others} == others, "more than the missing file was built again"


def test_a_flipped_byte_anywhere_in_a_bank_file_is_found(whole: Whole, tmp_path: Path) -> None:
    origin = bank_file(whole.home, whole.run)
    bank, key = Bank(tmp_path), origin.stem
    bank.path(key).parent.mkdir()
    data = origin.read_bytes()
    site = whole.run.plan.sitemap.of_kind("linear")[0]
    level = whole.run.best.profile.levels[0][1]
    header = 8 + int.from_bytes(data[:8], "little")
    rng = random.Random(0)
    for position in {*range(0, header, 7), *(rng.randrange(header, len(data)) for _ in range(40))}:
        damaged = bytearray(data)
        damaged[position] ^= 1 << rng.randrange(8)
        bank.path(key).write_bytes(damaged)
        with pytest.raises(StorageError, match=f"{key}.*is damaged.*Delete that file"):
            bank.get(key, site, level)
        if position < header:
            assert error_of(bank, key) in (error_of(Bank(whole.home / "bank"), key), "damaged")


def error_of(bank: Bank, key: str) -> float | str:
    """The layer error of a variant, or that its file is damaged."""
    try:
        return bank.error(key)
    except StorageError as error:
        return "damaged" if "is damaged" in str(error) else str(error)


def test_a_damaged_database(start: Start, whole: Whole, home: Path) -> None:
    home.mkdir()
    file = home / "evopress.db"
    file.write_bytes(b"this is no database " * 300)
    before = file.read_bytes()
    answer = start()
    assert answer.code == 1
    assert f"The store {file} is damaged" in answer.err
    assert "Move it away" in answer.err
    assert file.read_bytes() == before


def test_a_newer_database(start: Start, whole: Whole, home: Path) -> None:
    home.mkdir()
    file = home / "evopress.db"
    shutil.copy(whole.home / "evopress.db", file)
    connection = sqlite3.connect(file)
    connection.execute(f"UPDATE {VERSION_TABLE} SET version_num = '9999'")
    connection.commit()
    answer = start()
    assert answer.code == 1
    assert f"The store sqlite:///{file} was written by a newer evopress (schema 9999" in answer.err
    assert "Upgrade evopress" in answer.err
    assert connection.execute(f"SELECT count(*) FROM {Trials.__tablename__}").fetchone()[0] == len(whole.contents.trials)
    connection.close()


# Disks ----------------------------------------------------------------------------------------------------------------------------------


def test_a_store_folder_that_cannot_be_made(start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("EVOPRESS_HOME", str(tmp_path / "file" / "home"))
    answer = start()
    assert answer.code == 1
    assert f"Cannot make the folder {tmp_path}/file/home of the store" in answer.err
    assert "--storage" in answer.err


def test_a_home_that_cannot_be_written(start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("EVOPRESS_HOME", str(tmp_path / "file"))
    storage = f"sqlite:///{tmp_path / 'store.db'}"
    answer = start("--storage", storage)
    assert answer.code == 1
    assert f"The bank {tmp_path}/file/bank cannot be written" in answer.err
    answer = start("--storage", storage, "--dtype", "auto")
    assert answer.code == 1
    assert f"The folder {tmp_path}/file/dtype cannot be written: Not a directory.\n  Set EVOPRESS_HOME" in answer.err


@pytest.mark.parametrize(
    ("code", "message"),
    [(errno.ENOSPC, "is full.\n  Free space"), (errno.EROFS, "cannot be written: Read-only file system.\n  Set EVOPRESS_HOME")],
)
def test_a_full_or_read_only_disk_of_the_bank_keeps_what_is_built(
    start: Start, whole: Whole, home: Path, monkeypatch: pytest.MonkeyPatch, code: int, message: str
) -> None:
    left = 30

    def fsync(_: int) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(code, os.strerror(code))

    with monkeypatch.context() as broken:
        broken.setattr("evopress.files.os.fsync", fsync)
        answer = start()
    assert answer.code == 1
    assert f"The bank {home / 'bank'} " in answer.err or f"The disk of the bank {home / 'bank'} " in answer.err
    assert message in answer.err
    built = {path: path.stat().st_mtime_ns for path in (home / "bank").rglob("*.safetensors")}
    assert len(built) == 30
    assert start().code == 0
    assert {path: path.stat().st_mtime_ns for path in built} == built
    assert tiny_study.contents(tiny_study.url(home)) == whole.contents


def test_a_full_disk_of_the_store_keeps_what_is_measured(
    tiny: Tiny, start: Start, whole: Whole, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(whole.home / "bank", home / "bank")
    Store.open(tiny_study.url(home)).close()
    pages = (home / "evopress.db").stat().st_size // 4096 + 28  # room for reported numbers, the bank and a few trials
    set_pragmas = database._set_pragmas

    def limited(connection: sqlite3.Connection, record: object) -> None:
        set_pragmas(connection, record)
        connection.execute(f"PRAGMA max_page_count = {pages}")

    with monkeypatch.context() as full:
        full.setattr(database, "_set_pragmas", limited)
        answer = start()
    assert answer.code == 1
    assert f"The store {home / 'evopress.db'} cannot grow: the disk is full.\n  Nothing stored so far is lost." in answer.err
    kept = tiny_study.contents(tiny_study.url(home))
    assert 0 < len(kept.trials) < len(whole.contents.trials)
    assert kept.trials.items() <= whole.contents.trials.items()
    assert start().code == 0
    assert tiny_study.contents(tiny_study.url(home)) == whole.contents


def test_the_quota_of_the_bank(start: Start, whole: Whole, home: Path) -> None:
    answer = start("--bank-quota", "60kB")
    assert answer.code == 1
    assert re.search(r"The bank of this study takes [\d,]+ bytes, more than its quota of 60,000\.", answer.err)
    assert "--bank-quota" in answer.err
    assert not list((home / "bank").rglob("*.safetensors")), "it is known beforehand"
    assert start("--bank-quota", "1MiB").code == 0
    assert tiny_study.contents(tiny_study.url(home)) == whole.contents
    answer = start("--bank-quota", "lots")
    assert answer.code == 2
    assert "Cannot read the number 'lots' of --bank-quota." in answer.err


# Numbers --------------------------------------------------------------------------------------------------------------------------------


class Breaking(KL):
    """KL that becomes NaN after some scores."""

    name = "breaking"
    left = 0

    def score(self, model: Any, documents: Any) -> tuple[list[float], list[int]]:
        """NaN on the last document when its time has come."""
        values, weights = super().score(model, documents)
        Breaking.left -= 1
        return [*values[:-1], float("nan") if Breaking.left < 0 else values[-1]], weights


@pytest.fixture
def breaking(monkeypatch: pytest.MonkeyPatch) -> type[Breaking]:
    """A registry that also knows the fitness `breaking`."""
    known = Registry.load()
    classes = {kind: dict(found) for kind, found in known.classes.items()}
    classes["fitness"]["breaking"] = Breaking
    monkeypatch.setattr(Registry, "load", staticmethod(lambda *_: Registry(classes, known.plugins)))
    return Breaking


def test_a_nan_fitness_stops_the_search_and_keeps_what_was_measured(start: Start, home: Path, breaking: type[Breaking]) -> None:
    breaking.left = 12
    answer = start(fitness="breaking")
    assert answer.code == 1
    assert "The fitness breaking of profile" in answer.err
    assert "is nan on slice" in answer.err
    assert "measurements so far are kept" in answer.err
    kept = tiny_study.contents(tiny_study.url(home))
    assert len(kept.trials) == 12 + 1  # and the gate, which is always in kl
    assert kept.claims == 0
    with Store.open(tiny_study.url(home)) as store:
        study = store.find_study("tiny")
        assert study.state == "failed"
        assert store.runs(study.id)[-1].error.startswith("NumericalError: The fitness breaking")
    breaking.left = 10**9
    assert start(fitness="breaking").code == 0
    assert kept.trials.items() <= tiny_study.contents(tiny_study.url(home)).trials.items()


def test_weights_with_nan_are_told_by_name(tiny: Tiny, start: Start, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    shutil.copytree(tiny.model, tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    tensors = load_file(file)
    tensors["model.layers.2.mlp.up_proj.weight"][3, 5] = torch.nan
    save_file(tensors, file, metadata={"format": "pt"})
    answer = start(model=str(tmp_path / "model"))
    assert answer.code == 1
    assert "The weight of 'model.layers.2.mlp.up_proj' holds NaN or infinity" in answer.err


def test_damaged_weights_are_a_storage_error(tiny: Tiny, start: Start, tmp_path: Path) -> None:
    shutil.copytree(tiny.model, tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    answer = start(model=str(tmp_path / "model"))
    assert answer.code == 1
    assert f"The weights in {tmp_path / 'model'} cannot be read" in answer.err


def test_an_error_under_json_is_one_document_on_stdout(tiny: Tiny, home: Path, evopress_command: Command) -> None:
    answer = evopress_command("search", "start", *tiny_study.arguments(tiny, methods=("gtpq",)), "--json")
    assert answer.code == 2
    assert json.loads(answer.out)["error"]["code"] == "usage"
    assert "gtpq" not in answer.err
