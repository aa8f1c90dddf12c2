"""Benchmark scores of a live model, through lm-eval: tasks from a .jsonl file, a folder of YAML files, or lm-eval's own list by name.

It is not a Fitness: a search never minimises it. It does not stitch profiles or store scores; `profile evaluate` does both around it.
lm-eval is an optional dependency and is imported when the first task is scored. Random states, environment variables, the log settings and
the tokenizer are left as they were found; what lm-eval prints goes to the debug log, so that standard output stays the caller's.
"""

from __future__ import annotations

import copy
import difflib
import hashlib
import importlib
import io
import logging
import math
import os
import random
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from importlib.metadata import version
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from evopress.api import EvopressError, MissingDependency, NotFound, NumericalError, UsageError
from evopress.fitness.task_files import read, write

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from evopress.store.rows import TaskScore

log = logging.getLogger(__name__)

SEED = 1234
"""lm-eval's own default seed, for the choice of examples in the prompt and for what tasks shuffle."""
BOOTSTRAPS = 1000
"""Resamples behind the standard error of a metric that is not a mean: two digits; lm-eval's 100,000 take minutes for a perplexity."""


def evaluate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[str],
    task_dirs: Sequence[Path] = (),
    limit: int | None = None,
    num_fewshot: int | None = None,
    batch_size: int = 8,
) -> list[TaskScore]:
    """Score `model`, as it computes now, on every task; one score a task, metric and filter, groups of tasks included.

    tasks: names known to lm-eval or defined in `task_dirs`, or .jsonl files with one object a line, either {"query", "choices", "gold"},
        scored by `acc` and `acc_norm` (log-likelihood per character), or {"context", "continuation"}, scored by `acc` (the continuation is
        the most likely text) and `perplexity` (of a whole continuation). One space stands between the two parts unless the first is empty
        or ends in white space. Such a task is called by its file name, with the folder in front of a name like test.jsonl; its version is
        the digest of its rows.
    task_dirs: folders of lm-eval YAML files, searched before lm-eval's own.
    limit: score the first so many documents of each task. num_fewshot: examples in the prompt, where the task does not fix them at zero.
    The model is left in evaluation mode; both standard streams of the process are held back. `samples` counts the documents behind a score;
    `environment["documents"]` is the digest of documents and prompts: equal digests mean scores on the same text.
    Raises MissingDependency, UsageError (unknown task, malformed file or option), NotFound (missing file or folder, data out of reach) and
    NumericalError (log-likelihood or score that is not a number).
    """
    wanted = _wanted(tasks, task_dirs, limit, num_fewshot, batch_size)
    harness = _harness()
    with tempfile.TemporaryDirectory(prefix="evopress-tasks-") as scratch:
        with _held_back():  # lm-eval warns about every model that is given as an object
            specs = [write(Path(task), rows, Path(scratch)) if rows else task for task, rows in wanted.items()]
            lm = _wrap(harness, model, tokenizer, batch_size)
        with _held_back() as said, _contained():
            loaded = _load(harness, specs, [*task_dirs, Path(scratch)])
            for task in loaded["tasks"].values():
                said += _set_fewshot(task, num_fewshot)
            try:
                results = harness.evaluate(lm, loaded, limit=limit, bootstrap_iters=BOOTSTRAPS, log_samples=True)
            except OverflowError as error:
                raise NumericalError(
                    f"A score of {', '.join(loaded['tasks'])} is too large for a number: {error}.",
                    "The model finds a continuation all but impossible; give shorter continuations or a less compressed profile.",
                ) from error
    if said:
        log.warning("lm-eval gave %d warning(s), the first: %s", len(said), said[0])
    return _scores(results, _environment(model, batch_size, limit))


def check(
    tasks: Sequence[str],
    task_dirs: Sequence[Path] = (),
    limit: int | None = None,
    num_fewshot: int | None = None,
    batch_size: int = 8,
) -> None:
    """Refuse what `evaluate` would refuse of these arguments (names, files, folders, options), without a model and in seconds."""
    wanted = _wanted(tasks, task_dirs, limit, num_fewshot, batch_size)
    harness = _harness()
    names = [task for task, rows in wanted.items() if not rows]
    if names:
        with _held_back():
            _find(harness, names, task_dirs)


def _wanted(
    tasks: Sequence[str], task_dirs: Sequence[Path], limit: int | None, num_fewshot: int | None, batch_size: int
) -> dict[str, list[dict[str, Any]]]:
    """The rows of tasks that are files, none for names."""
    _check(tasks, limit, num_fewshot, batch_size)
    for folder in task_dirs:
        if not folder.is_dir():
            raise NotFound(f"Task folder {folder} does not exist.", "Give a folder of lm-eval YAML files with --task-dir.")
    return {task: read(task, num_fewshot or 0) for task in tasks}


def _check(tasks: Sequence[str], limit: int | None, num_fewshot: int | None, batch_size: int) -> None:
    if not tasks:
        raise UsageError("No task was given.", "Give names or files, e.g. --tasks arc_easy or --tasks my_questions.jsonl.")
    for name, value, least in (("limit", limit, 1), ("num_fewshot", num_fewshot, 0), ("batch_size", batch_size, 1)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
            raise UsageError(f"Option {name} is {value!r}; it must be a whole number of at least {least}.")


class _Harness(NamedTuple):
    """The three things used of lm-eval."""

    evaluate: Any
    model: Any
    manager: Any


def _harness() -> _Harness:
    before = dict(os.environ)
    try:
        with _held_back():
            return _Harness(
                importlib.import_module("lm_eval.evaluator").evaluate,
                importlib.import_module("lm_eval.models.huggingface").HFLM,
                importlib.import_module("lm_eval.tasks").TaskManager,
            )
    except ImportError as error:
        raise MissingDependency(
            f"Scoring tasks needs the package lm-eval, which cannot be imported: {error}.", "Install it: pip install 'evopress[tasks]'"
        ) from error
    finally:
        for name in os.environ.keys() - before.keys():  # lm-eval sets switches of the hub's downloader at import
            del os.environ[name]


def _index(harness: _Harness, folders: Sequence[Path], hub: bool) -> Any:
    """lm-eval's index of tasks; with its own ones (`hub`) it reads some ten thousand files, so only when a local name does not do."""
    return harness.manager(include_path=[str(folder) for folder in folders], include_defaults=hub)


def _find(harness: _Harness, specs: Sequence[str], folders: Sequence[Path]) -> Any:
    """The index that knows every task. Raises UsageError for one that is unknown."""
    index = _index(harness, folders, hub=False)
    local = dict(index.task_index)
    if any(spec not in local or local[spec].kind.name == "GROUP" for spec in specs):  # a group may name members outside its folder
        index = _index(harness, folders, hub=True)
    for spec in specs:
        if spec not in index.task_index:
            raise _unknown(spec, index.task_index, local, folders)
    return index


def _load(harness: _Harness, specs: Sequence[str], folders: Sequence[Path]) -> Any:
    """Tasks and their data. Raises UsageError, NotFound and MissingDependency."""
    index = _find(harness, specs, folders)
    loaded: dict[str, Any] = {"tasks": {}, "groups": {}, "group_map": {}}
    for spec in specs:
        try:
            found = index.load([spec])
        except Exception as error:  # the YAML files, the functions they name and the hub's client are not ours: any error can come
            raise _explained(spec, error) from error
        for part in loaded:
            loaded[part].update(found.get(part, {}))
    return loaded


def _unknown(task: str, index: Mapping[str, Any], local: Mapping[str, Any], folders: Sequence[Path]) -> UsageError:
    close = difflib.get_close_matches(task, list(index), n=5, cutoff=0.7)
    guess = f"Did you mean {', '.join(map(repr, close))}? " if close else ""
    own = f"Local tasks: {', '.join(sorted(local))}." if local else "There are no local tasks (--task-dir)."
    used = {entry.yaml_path for entry in index.values()}
    unused = sorted(str(path) for folder in folders for path in folder.rglob("*.yaml") if path not in used)
    skipped = f" Files without a readable task of their own: {', '.join(unused)}." if unused else ""
    return UsageError(f"Unknown task {task!r}.", f"{guess}{own}{skipped}")


def _explained(task: str, error: Exception) -> EvopressError:
    said = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    if isinstance(error, ImportError):
        return MissingDependency(f"Task {task!r} needs a package that is not installed: {said}.", "Install that package.")
    if isinstance(error, OSError):  # the errors of sockets, of files and of the hub's client are all of this kind
        return NotFound(
            f"The data of task {task!r} could not be fetched: {said}.",
            "Check the network and HF_HUB_OFFLINE, log in if the data set is gated, or use local files with absolute paths:"
            " --tasks FILE.jsonl or --task-dir.",
        )
    return UsageError(f"Task {task!r} cannot be loaded: {said}.", "Correct its YAML file; `lm-eval validate` tells more.")


def _set_fewshot(task: Any, num_fewshot: int | None) -> list[str]:
    """Follow lm-eval's rule that a task whose file says 0 keeps 0; returns a warning where that overrules the caller."""
    fixed = task.get_config("num_fewshot")
    task.set_fewshot_seed(seed=SEED)
    if num_fewshot and fixed == 0:
        return [f"task {task.task_name} fixes its examples in the prompt at 0, so num_fewshot={num_fewshot} does not apply"]
    if num_fewshot is not None or fixed is None:
        task.set_config(key="num_fewshot", value=num_fewshot or 0)
    return []


def _wrap(harness: _Harness, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch_size: int) -> Any:
    # The tokenizer is copied because lm-eval may give it a padding token. Log-probabilities in 16 bits would tie close choices.
    own = copy.deepcopy(tokenizer)
    return harness.model(pretrained=model, tokenizer=own, backend="causal", batch_size=batch_size, softmax_dtype="float32")


def _scores(results: Mapping[str, Any], environment: Mapping[str, Any]) -> list[TaskScore]:
    from evopress.store.rows import TaskScore

    found: list[TaskScore] = []
    for task, metrics in results["results"].items():
        samples = results["samples"].get(task, [])  # a group has none of its own
        _check_numbers(task, samples)
        named = str(results["versions"].get(task, ""))
        own = dict(environment) | ({"documents": _digest(samples)} if samples else {})
        for key, value in metrics.items():
            metric, comma, kind = key.partition(",")
            if not comma or metric.endswith("_stderr"):
                continue
            if not isinstance(value, Real) or not math.isfinite(value):
                raise NumericalError(f"Metric {metric} of task {task!r} is {value!r}, not a finite number.", "Check the profile.")
            stderr = metrics.get(f"{metric}_stderr,{kind}")
            count = sum(sample["filter"] == kind and metric in sample["metrics"] for sample in samples)
            found.append(
                TaskScore(
                    task=task,
                    metric=metric,
                    value=float(value),
                    stderr=float(stderr) if isinstance(stderr, Real) and math.isfinite(stderr) else None,
                    samples=count if samples else int(metrics["sample_len"]),
                    shots=int(results["n-shot"].get(task) or 0),
                    filter=kind,
                    version="" if named == "N/A" else named,
                    environment=own,
                )
            )
    return found


def _check_numbers(task: str, samples: Sequence[Mapping[str, Any]]) -> None:
    """Accuracy hides NaN: the largest of NaN is some choice. Raises NumericalError at the first document with one."""
    for sample in samples:
        numbers = (answer[0] if isinstance(answer, tuple) else answer for answers in sample["resps"] for answer in answers)
        if any(isinstance(number, float) and math.isnan(number) for number in numbers):
            raise NumericalError(
                f"The model gives a log-likelihood of NaN on document {sample['doc_id']} of task {task!r}.",
                "The profile is broken; evaluate the dense model, then the levels of the profile one by one.",
            )


def _digest(samples: Sequence[Mapping[str, Any]]) -> str:
    parts = "".join(f"{each['doc_id']}:{each['doc_hash']}:{each['prompt_hash']}:{each['target_hash']};" for each in samples)
    return hashlib.sha256(parts.encode()).hexdigest()


def _environment(model: PreTrainedModel, batch_size: int, limit: int | None) -> dict[str, Any]:
    versions = {name: version(name) for name in ("lm-eval", "torch", "transformers")}
    return versions | {"device": str(model.device), "dtype": str(model.dtype), "batch_size": batch_size, "limit": limit}


class _Heard(logging.Handler):
    """Keeps the warnings of a logger."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


@contextmanager
def _held_back() -> Iterator[list[str]]:
    """Keep prints and progress bars from both streams (they go to the debug log) and lm-eval's warnings, which are yielded."""
    printed, heard, logger = io.StringIO(), _Heard(), logging.getLogger("lm_eval")
    propagate = logger.propagate
    logger.addHandler(heard)
    logger.propagate = False
    try:
        with redirect_stdout(printed), redirect_stderr(printed):
            yield heard.messages
    finally:
        logger.propagate = propagate
        logger.removeHandler(heard)
        if printed.getvalue():
            log.debug("lm-eval printed: %s", printed.getvalue())


@contextmanager
def _contained() -> Iterator[None]:
    """Seed the global generators that tasks draw from, keep `datasets` from counting loads on the network, undo both."""
    import numpy as np
    import torch
    from datasets import config

    states = random.getstate(), np.random.get_state(), config.HF_UPDATE_DOWNLOAD_COUNTS
    with torch.random.fork_rng():
        try:
            config.HF_UPDATE_DOWNLOAD_COUNTS = False
            random.seed(SEED)
            np.random.seed(SEED)
            torch.manual_seed(SEED)
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])
            config.HF_UPDATE_DOWNLOAD_COUNTS = states[2]
