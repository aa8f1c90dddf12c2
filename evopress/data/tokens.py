"""Token sets: the exact tokens an experiment calibrates on, searches with and is judged by.

A source's documents are dealt to three roles, whole documents to one role only, so calibration, search and held-out text never overlap. A
token set is then windows of one role's documents. Called by the run; imports no model code.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from evopress.api import UsageError

Role = Literal["calibration", "search", "heldout"]
ROLES: tuple[Role, ...] = ("calibration", "search", "heldout")
SHARES = (0.35, 0.4, 0.25)
"""Share of the source's documents each role is dealt."""

Encode = Callable[[str], Sequence[int]]


@dataclass(frozen=True)
class TokenSet:
    """Windows of token ids.

    role: calibration, search or heldout. documents: token ids, one tuple a window. origins: index of the source document of each window.
    """

    name: str
    role: Role
    source: str
    seed: int
    documents: tuple[tuple[int, ...], ...] = field(repr=False)
    origins: tuple[int, ...] = field(repr=False)

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


def deal(count: int, seed: int) -> dict[Role, list[int]]:
    """Deal `count` documents to the three roles by a seeded shuffle; every role gets at least one. Raises UsageError below three."""
    if count < len(ROLES):
        raise UsageError(
            f"The text has {count} document(s), but calibration, search and held-out text need one each.",
            "Give a longer text with blank lines between paragraphs, or a .jsonl file with one document a line.",
        )
    order = list(range(count))
    random.Random(f"deal:{seed}").shuffle(order)
    first = max(1, min(count - 2, round(count * SHARES[0])))
    second = max(first + 1, min(count - 1, round(count * (SHARES[0] + SHARES[1]))))
    return {"calibration": order[:first], "search": order[first:second], "heldout": order[second:]}


def build(source: str, texts: Sequence[str], encode: Encode, role: Role, tokens: int, window: int, seed: int) -> TokenSet:
    """Draw `tokens` tokens of one role in windows of `window` tokens, the last cut so that the total is exact.

    One window of every document is taken before any document gives a second, so that windows are as independent as the text allows.
    Windows of one document do not overlap. Raises UsageError when the role's documents hold fewer tokens (never loops or repeats).
    """
    if tokens < 2 or window < 8:
        raise UsageError(f"A token set of {tokens} tokens in windows of {window} is too small.", "Ask for 2 in windows of 8 or more.")
    members = deal(len(texts), seed)[role]
    rng = random.Random(f"windows:{role}:{seed}")
    pools: list[tuple[int, list[tuple[int, ...]]]] = []
    have = first = 0
    for index in members:
        ids = tuple(encode(texts[index]))
        windows = [ids[start : start + window] for start in range(0, len(ids), window)]
        windows = [piece for piece in windows if len(piece) >= min(window, max(2, window // 2))]
        rng.shuffle(windows)
        pools.append((index, windows))
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
    documents: list[tuple[int, ...]] = []
    origins: list[int] = []
    left = tokens
    depth = 0
    while left > 0:
        for index, windows in pools:
            if depth < len(windows) and left > 0:
                piece = windows[depth][:left]
                if left - len(piece) == 1:  # never leave a last window of one token: it has nothing to predict
                    piece = piece[:-1]
                documents.append(piece)
                origins.append(index)
                left -= len(piece)
        depth += 1
    return TokenSet(f"{role}:{tokens}", role, source, seed, tuple(documents), tuple(origins))
