"""A whole study in seconds: a tiny random Llama with a tokenizer and a text on disk, its study keys, and what a store holds of a run.

Not a fixture file: tests write `from tiny_study import …`. `make(folder)` writes model and text, `values(tiny)` are the keys of a study,
`run(tiny, home)` executes it in this process, and `contents(url)` is everything measured, without times, to compare two stores.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

WORDS = tuple(f"{head}{tail}" for head in "bcdfghjklmnprst" for tail in ("a", "e", "i", "o", "u", "an", "en", "in", "on", "un"))
METHODS = ("rtn(bits=2..4,group=32)", "gptq(bits=2..4,group=32)", "drop")
SEARCHER = "evolve(generations=6,offspring=4,rungs=2x64|1x160)"


@dataclass(frozen=True)
class Tiny:
    """Where the model folder and the text file lie."""

    model: Path
    text: Path


def make(folder: Path, seed: int = 0) -> Tiny:
    """Write a model of 4 blocks of width 64 with a word tokenizer, and a .jsonl text of 120 documents of 40 words."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(WORDS) + 2, hidden_size=64, intermediate_size=96, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=128, bos_token_id=0, eos_token_id=None, pad_token_id=None, initializer_range=0.25,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        LlamaForCausalLM(config).save_pretrained(folder / "model")
    write_tokenizer(folder / "model")
    text = folder / "text.jsonl"
    write_text(text, documents=120)
    return Tiny(folder / "model", text)


def write_tokenizer(folder: Path) -> None:
    """One token a word, `<s>` and `<unk>` beside them."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: number for number, word in enumerate(("<s>", "<unk>", *WORDS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", unk_token="<unk>").save_pretrained(folder)


def write_text(path: Path, documents: int, words: int = 40, seed: int = 0) -> None:
    """A .jsonl file of random documents; word i is likelier than word i + 1."""
    rng = random.Random(seed)
    weights = [1 / (1 + number) for number in range(len(WORDS))]
    lines = [json.dumps({"text": " ".join(rng.choices(WORDS, weights, k=words))}) for _ in range(documents)]
    path.write_text("\n".join(lines), encoding="utf-8")


def values(tiny: Tiny, **changed: Any) -> dict[str, Any]:
    """Keys of a study that runs in a second or two; `changed` overrides them."""
    return {
        "name": "tiny", "model": str(tiny.model), "text": str(tiny.text), "methods": METHODS, "budgets": ("bits=3.8",),
        "searcher": SEARCHER, "window": 16, "calibration_tokens": 256, "search_tokens": 320, "heldout_tokens": 320, **changed,
    }  # fmt: skip


def study(tiny: Tiny, **changed: Any) -> Any:
    """The Study of these keys."""
    from evopress.api.study import Study

    return Study.make(values(tiny, **changed))


def url(home: Path) -> str:
    """The default store of a home."""
    return f"sqlite:///{home / 'evopress.db'}"


def run(tiny: Tiny, home: Path, listen: Callable[[Any], None] | None = None, **changed: Any) -> Any:
    """Execute a study in this process, in float32 and without speed, with the default store; returns the Run."""
    from evopress.events import silent
    from evopress.run import execute

    return execute(study(tiny, **changed), url(home), home, listen=listen or silent, dtype="float32", speed=False, command="test")


def arguments(tiny: Tiny, **changed: Any) -> list[str]:
    """The same study as options of `evopress search start`."""
    names = {"name": "study", "budgets": "budget", "methods": "method", "baselines": "baseline", "links": "link",
             "stop_generations": "generations", "stop_tokens": "max-tokens", "stop_seconds": "max-seconds"}  # fmt: skip
    options = ["--dtype", "float32", "--no-speed"]
    for key, value in values(tiny, **changed).items():
        option = "--" + names.get(key, key).replace("_", "-")
        for item in value if isinstance(value, tuple) else (value,):
            options += [option, str(item)]
    return options


def toml(path: Path, keys: Mapping[str, Any]) -> Path:
    """Write a study file; JSON values of strings, numbers and lists are TOML too, and tables are written inline."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(f"{key} = {_toml_value(value)}" for key, value in keys.items()), encoding="utf-8")
    return path


def _toml_value(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{json.dumps(key)} = {_toml_value(own)}" for key, own in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_toml_value, value)) + "]"
    return json.dumps(value)


@dataclass(frozen=True)
class Contents:
    """Everything a store holds of its studies, without times, ids and run numbers.

    trials: key -> (values, weights, bytes). steps: (searcher, ordinal, position) -> (generation, stage, key). results: label -> profile and
    the paired test. claims: how many are left.
    """

    trials: Mapping[str, Any]
    steps: Mapping[tuple[str, int, int], Any]
    results: Mapping[str, Any]
    claims: int


def contents(storage: str) -> Contents:
    """Read a whole store."""
    from sqlalchemy import select

    from evopress.store import Store
    from evopress.store.schema import Claims, Profiles, Trials

    with Store.open(storage, create=False) as store:
        columns = select(Trials.id, Trials.key, Profiles.bytes).join(Profiles, Profiles.id == Trials.profile_id)
        rows = store.database.read(lambda conn: conn.execute(columns).all())
        measured = store.document_values([row.id for row in rows])
        keys = {row.id: row.key for row in rows}
        steps = {
            (step.searcher, step.ordinal, step.position): (step.generation, step.stage, keys[step.trial_id])
            for study in store.studies()
            for step in store.trajectory(study.id)
        }
        results = {(row.study, row.label): (row.role, row.profile, row.bytes, dict(row.details)) for row in store.results()}
        claims = len(store.database.read(lambda conn: conn.execute(select(Claims.__table__)).all()))
        return Contents({row.key: (*measured[row.id], row.bytes) for row in rows}, steps, results, claims)


class Whole(NamedTuple):
    """An uninterrupted run: what it returned, its home, and everything it stored."""

    run: Any
    home: Path
    contents: Contents


class Answer(NamedTuple):
    """What a command did."""

    code: int
    out: str
    err: str
