"""Tasks that are .jsonl files: reads and checks their rows, and writes them as a task that lm-eval knows how to load.

Scores nothing. Called by `tasks`.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from evopress.api import NotFound, UsageError

_SPLITS = frozenset({"test", "validation", "valid", "val", "dev", "train", "data"})
_CHOICE = '{"query": "…", "choices": ["…", "…"], "gold": 0}'
_CONTINUE = '{"context": "…", "continuation": "…"}'
_ACC = {"metric": "acc", "aggregation": "mean", "higher_is_better": True}
_CHOICES = {
    "output_type": "multiple_choice",
    "doc_to_choice": "choices",
    "doc_to_target": "gold",
    "metric_list": [_ACC, {"metric": "acc_norm", "aggregation": "mean", "higher_is_better": True}],
}
_CONTINUATIONS = {
    "output_type": "loglikelihood",
    "doc_to_target": "continuation",
    "metric_list": [_ACC, {"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False}],
}


def read(task: str, shots: int) -> list[dict[str, Any]]:
    """The rows of a task that is a .jsonl file, none for the name of a task."""
    path = Path(task).expanduser()
    if path.suffix in (".yaml", ".yml"):
        raise UsageError(f"Task {task!r} is a YAML file.", "Give its folder with --task-dir and the name that its key 'task' holds.")
    if path.suffix != ".jsonl":
        return []
    if not path.is_file():
        raise NotFound(f"Task file {task} does not exist.", "Give an existing .jsonl file, or the name of a task.")
    rows = _rows(path)
    if shots >= len(rows):
        raise UsageError(
            f"Option num_fewshot is {shots}, and {path} has {len(rows)} questions.",
            f"The examples are the other questions of the file: at most {len(rows) - 1}.",
        )
    return rows


def write(path: Path, rows: list[dict[str, Any]], scratch: Path) -> str:
    """Write a YAML file (JSON is YAML) and its rows, and return the task's name."""
    from datasets import Dataset

    path = path.expanduser().resolve()
    name = f"{path.parent.name}/{path.name}" if path.stem.lower() in _SPLITS else path.name
    folder = scratch / hashlib.sha256(name.encode()).hexdigest()[:16]
    if folder.exists():
        raise UsageError(f"Two task files are called {name}.", "Rename one, or evaluate them one after the other.")
    folder.mkdir()
    # Not as JSON: its reader would guess that a column of dates is no text.
    data = folder / "rows.parquet"
    Dataset.from_list(rows).to_parquet(data)
    digest = hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()
    config: dict[str, Any] = {
        "task": name,
        "dataset_path": "parquet",
        # Kept in memory, so that nothing stays mapped when the folder goes.
        "dataset_kwargs": {"data_files": {"test": str(data)}, "cache_dir": str(folder / "cache"), "keep_in_memory": True},
        "test_split": "test",
        "fewshot_split": "test",  # said outright, because only then lm-eval keeps a question out of its own prompt
        "target_delimiter": "",
        "doc_to_text": "prompt",
        "metadata": {"version": f"sha256:{digest[:16]}"},
    }
    config |= _CHOICES if "choices" in rows[0] else _CONTINUATIONS
    (folder / "task.yaml").write_text(json.dumps(config), encoding="utf-8")
    return name


def _rows(path: Path) -> list[dict[str, Any]]:
    """The checked rows of a .jsonl file. Raises UsageError naming the line."""
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise UsageError(f"Task file {path} is not UTF-8 text: {error}.", "Save it as UTF-8.") from error
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            row = _row(line, f"Line {number} of {path}")
            if rows and row.keys() != rows[0].keys():
                raise UsageError(f"Line {number} of {path} is of another kind than the first.", f"All are {_CHOICE} or all {_CONTINUE}.")
            rows.append(row)
    if not rows:
        raise UsageError(f"Task file {path} is empty: line 1 holds no object.", f"Write one object a line, like {_CHOICE} or {_CONTINUE}.")
    return rows


def _row(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise UsageError(f"{where} is not JSON: {error.msg}.", f"Write one object a line, like {_CHOICE} or {_CONTINUE}.") from error
    match row:
        case {"query": str(query), "choices": [_, _, *_] as choices, "gold": int(gold)} if not isinstance(gold, bool):
            if not all(isinstance(choice, str) and choice for choice in choices):
                raise UsageError(f"{where} has a choice that is empty or no text.", "Every choice is a text of at least one character.")
            if not 0 <= gold < len(choices):
                raise UsageError(f"{where} has gold {gold} and {len(choices)} choices.", f"Allowed: 0 to {len(choices) - 1}.")
            return {"prompt": _spaced(query), "choices": choices, "gold": gold}
        case {"context": str(context), "continuation": str(continuation)} if continuation:
            return {"prompt": _spaced(context), "continuation": continuation}
    has = f"the fields {', '.join(map(str, row))}" if isinstance(row, dict) else f"a {type(row).__name__}"
    raise UsageError(
        f"{where} is not a question: it holds {has}.", f"Write {_CHOICE} with at least two choices, or {_CONTINUE} with a continuation."
    )


def _spaced(prompt: str) -> str:
    # lm-eval moves white space from the end of the prompt to the start of the answer before it tokenizes. Kept out of the answer here,
    # because acc_norm divides by the characters of the answer.
    return prompt if not prompt or prompt[-1].isspace() else prompt + " "
