"""Token sets: the exact tokens an experiment calibrates on, searches with and is judged by.

A source's documents are dealt to three roles, whole documents to one role only, so calibration, search and held-out text never share a
document. A token set is then windows of one role's documents. A text of one or two documents cannot be dealt: its windows are cut in order
and each role gets one stretch of them, so roles share an author but no token. Called by the run; imports no model code.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from evopress.api import UsageError

Role = Literal["calibration", "search", "heldout"]
ROLES: tuple[Role, ...] = ("calibration", "search", "heldout")
SHARES = (0.35, 0.4, 0.25)
"""Share of the source's documents each role is dealt; of its windows where the documents are too few."""

Encode = Callable[[str], Sequence[int]]
Window = tuple[int, ...]


@dataclass(frozen=True)
class TokenSet:
    """Windows of token ids.

    role: calibration, search or heldout. documents: token ids, one tuple a window. origins: what each window came from: the index of its
    source document, or its own place in the text where that has too few documents to deal. Windows of equal origin are no independent
    evidence; where every window has an origin of its own, intervals over them speak of this one text.
    texts: what it may have been drawn from, whatever the source is called: the digest of every source document, with the window and its
    place where there were too few to deal. Compared by `overlap`.
    """

    name: str
    role: Role
    source: str
    seed: int
    documents: tuple[tuple[int, ...], ...] = field(repr=False)
    origins: tuple[int, ...] = field(repr=False)
    texts: tuple[str, ...] = field(repr=False, default=())

    @property
    def tokens(self) -> int:
        """Total tokens."""
        return sum(map(len, self.documents))

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the token ids, hexadecimal: equal digests, equal tokens in equal order."""
        hasher = hashlib.sha256()
        for document in self.documents:
            hasher.update(len(document).to_bytes(8, "little"))
            hasher.update(b"".join(token.to_bytes(4, "little") for token in document))
        return hasher.hexdigest()


def overlap(one: Collection[str], other: Collection[str]) -> bool:
    """May two token sets (their `texts`) share text? Of two stretches of one text that were cut differently nobody knows, so they may."""
    theirs: dict[str, set[str]] = {}
    for text in other:
        document, _, cut = text.partition("@")
        theirs.setdefault(document, set()).add(cut)
    for text in one:
        document, _, cut = text.partition("@")
        cuts = theirs.get(document, set())
        if cut in cuts or any(_grid(cut) != _grid(known) for known in cuts):
            return True
    return False


def _grid(cut: str) -> str:
    """How a text was cut: all but the place of the window."""
    return cut.rpartition(":")[0]


def _named(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def deal(count: int, seed: int) -> dict[Role, list[int]]:
    """Deal three or more documents to the three roles by a seeded shuffle; every role gets at least one."""
    order = list(range(count))
    random.Random(f"deal:{seed}").shuffle(order)
    first, second = _cuts(count)
    return {"calibration": order[:first], "search": order[first:second], "heldout": order[second:]}


def _cuts(count: int) -> tuple[int, int]:
    first = max(1, min(count - 2, round(count * SHARES[0])))
    return first, max(first + 1, min(count - 1, round(count * (SHARES[0] + SHARES[1]))))


def _windows(ids: Window, window: int) -> list[Window]:
    """Consecutive windows; a remainder of less than half a window is left out."""
    pieces = [ids[start : start + window] for start in range(0, len(ids), window)]
    return [piece for piece in pieces if len(piece) >= min(window, max(2, window // 2))]


def _dealt(
    texts: Sequence[str], encode: Encode, role: Role, window: int, seed: int, rng: random.Random
) -> Iterator[tuple[int, str, list[Window]]]:
    """Each document of a role with its name among `TokenSet.texts` and its windows, shuffled."""
    for index in deal(len(texts), seed)[role]:
        windows = _windows(tuple(encode(texts[index])), window)
        rng.shuffle(windows)
        yield index, _named(texts[index]), windows


def _stretch(
    source: str, texts: Sequence[str], encode: Encode, role: Role, window: int, rng: random.Random
) -> list[tuple[int, str, list[Window]]]:
    """A role's stretch of a text of one or two documents: each window alone with its place in the text and its name, shuffled."""
    windows: list[tuple[str, Window]] = []
    for text in texts:
        ids = tuple(encode(text))
        # Equally many tokens of one text tell that the same tokenizer made them, so that equal places are equal stretches.
        pieces = _windows(ids, window)
        windows += [(f"{_named(text)}@{window}/{len(ids)}:{place}", piece) for place, piece in enumerate(pieces)]
    if len(windows) < len(ROLES):
        raise UsageError(
            f"Text source {source!r} has {len(texts)} document(s) with {len(windows)} window(s) of {window} tokens in all, but calibration,"
            " search and held-out text need one each.",
            "Give a longer text, a .jsonl file with one document a line, or a smaller window.",
        )
    first, second = _cuts(len(windows))
    bounds = {"calibration": (0, first), "search": (first, second), "heldout": (second, len(windows))}
    found = [(place, windows[place][0], [windows[place][1]]) for place in range(*bounds[role])]
    rng.shuffle(found)
    return found


def build(source: str, texts: Sequence[str], encode: Encode, role: Role, tokens: int, window: int, seed: int) -> TokenSet:
    """Draw `tokens` tokens of one role in windows of `window` tokens, the last cut so that the total is exact.

    One window of every document is taken before any document gives a second, so that windows are as independent as the text allows.
    Windows of one document do not overlap. Raises UsageError when the role's share holds fewer tokens (never loops or repeats), and for
    one or two documents with fewer than three windows.
    """
    if tokens < 2 or window < 8:
        raise UsageError(f"A token set of {tokens} tokens in windows of {window} is too small.", "Ask for 2 in windows of 8 or more.")
    rng = random.Random(f"windows:{role}:{seed}")
    pools: list[tuple[int, str, list[Window]]] = []
    have = first = 0
    few = len(texts) < len(ROLES)
    drawn = _stretch(source, texts, encode, role, window, rng) if few else _dealt(texts, encode, role, window, seed, rng)
    for index, named, windows in drawn:
        pools.append((index, named, windows))
        have += sum(map(len, windows))
        first += len(windows[0]) if windows else 0
        # Encoding is the slow part: stop once the first window of every document so far is enough, as no later one is needed then.
        if first >= tokens:
            break
    if have < tokens:
        raise UsageError(
            f"Token set {role!r} asks for {tokens:,} tokens, but its share of {source!r} holds {have:,}.",
            f"Ask for at most {have:,} tokens, or give a longer text.",
        )
    documents: list[Window] = []
    origins: list[int] = []
    used: set[str] = set()
    left = tokens
    depth = 0
    while left > 0:
        for index, named, windows in pools:
            if depth < len(windows) and left > 0:
                piece = windows[depth][:left]
                if left - len(piece) == 1:  # never leave a last window of one token: it has nothing to predict
                    piece = piece[:-1]
                documents.append(piece)
                origins.append(index)
                used.add(named)
                left -= len(piece)
        depth += 1
    return TokenSet(f"{role}:{tokens}", role, source, seed, tuple(documents), tuple(origins), tuple(sorted(used)))
