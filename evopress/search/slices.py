"""Token slices: which documents a stage of a search is measured on. Called by the searchers that measure; knows no text."""

from __future__ import annotations

import random

from evopress.api import Problem, Slice, UsageError


def draw_slice(rng: random.Random, problem: Problem, tokens: int) -> Slice:
    """Draw whole documents without repetition, the last one cut, so that the total is exactly `tokens`.

    A last piece of one token would hold no position to score, so it takes a second token from the document before it, where that one can
    spare it. Raises UsageError when fewer than 2 tokens or more than the pool holds are asked for.
    """
    available = sum(problem.document_tokens)
    if tokens < 2:
        raise UsageError(f"A stage of the search asks for {tokens} tokens.", "Ask for at least 2: the first has nothing to predict it.")
    if tokens > available:
        raise UsageError(
            f"A stage of the search asks for {tokens:,} tokens, but the search set holds {available:,}.",
            f"Ask for at most {available:,} tokens a stage or give more text.",
        )
    order = [index for index, length in enumerate(problem.document_tokens) if length > 0]
    rng.shuffle(order)
    pieces: list[tuple[int, int]] = []
    left = tokens
    for index in order:
        taken = min(problem.document_tokens[index], left)
        pieces.append((index, taken))
        left -= taken
        if not left:
            break
    last, previous = pieces[-1], pieces[-2] if len(pieces) > 1 else (0, 0)
    if last[1] == 1 and problem.document_tokens[last[0]] > 1 and previous[1] > 2:
        pieces[-2:] = [(previous[0], previous[1] - 1), (last[0], 2)]
    return Slice(problem.token_set, tuple(pieces))
