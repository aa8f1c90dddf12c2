"""Token slices: which documents a stage of a search is measured on. Called by `selection` and `nsga2`; knows no text."""

from __future__ import annotations

import random

from evopress.api import Problem, Slice, UsageError

LEAST = 2
"""Tokens of the shortest piece: its first token is predicted by nothing, so one token alone would hold no position to score."""

Pieces = list[tuple[int, int]]


def draw_slice(rng: random.Random, problem: Problem, tokens: int) -> Slice:
    """Draw whole documents without repetition, the last one cut, so that the total is exactly `tokens` and no piece has fewer than 2.

    Documents of fewer than 2 tokens are never drawn. Where a single token would be left for the last document, an earlier piece gives it
    one of its own, or, where all of them have 2, the last of these goes and a longer document takes 3. Raises UsageError when fewer than
    2 tokens or more than the pool holds are asked for, and for an odd number where every document has 2.
    """
    order = [index for index, length in enumerate(problem.document_tokens) if length >= LEAST]
    available = sum(problem.document_tokens[index] for index in order)
    if tokens < LEAST:
        raise UsageError(f"A stage of the search asks for {tokens} tokens.", "Ask for at least 2: the first has nothing to predict it.")
    if tokens > available:
        raise UsageError(
            f"A stage of the search asks for {tokens:,} tokens, but the search set holds {available:,}.",
            f"Ask for at most {available:,} tokens a stage or give more text.",
        )
    rng.shuffle(order)
    pieces: Pieces = []
    left = tokens
    for index in order:
        taken = min(problem.document_tokens[index], left)
        pieces.append((index, taken))
        left -= taken
        if not left:
            break
    if pieces[-1][1] < LEAST:
        pieces = _without_single_token(problem, order, pieces)
    return Slice(problem.token_set, tuple(pieces))


def _without_single_token(problem: Problem, order: list[int], pieces: Pieces) -> Pieces:
    """The pieces, of which only the last has one token, shared out anew; `order` begins with their documents."""
    *whole, (last, _) = pieces
    for place in reversed(range(len(whole))):
        index, taken = whole[place]
        if taken > LEAST:
            return [*whole[:place], (index, taken - 1), *whole[place + 1 :], (last, LEAST)]
    longer = next((index for index in order[len(whole) :] if problem.document_tokens[index] > LEAST), None)
    if longer is None:
        tokens = sum(taken for _, taken in pieces)
        raise UsageError(
            f"A stage of the search asks for {tokens:,} tokens, but every document has 2, which make no odd number.",
            f"Ask for {tokens - 1:,} tokens, or give longer documents.",
        )
    return [*whole[:-1], (longer, LEAST + 1)]
