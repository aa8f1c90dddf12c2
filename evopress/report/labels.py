"""Where to write labels beside lines so that none covers another. Pure arithmetic; called by the pictures of a contest."""

from __future__ import annotations

from collections.abc import Sequence


def spread(places: Sequence[float], least: float, low: float, high: float) -> list[float]:
    """Places at least `least` apart and within [low, high], in the order given, each as near as possible to where it was.

    Merges neighbours that touch into blocks, each centred on the mean of what its members wanted (isotonic regression by pooling).
    Where they do not all fit, they are spread evenly.
    """
    order = sorted(range(len(places)), key=lambda at: places[at])
    if len(places) > 1 and least * (len(places) - 1) > high - low:
        step = (high - low) / (len(places) - 1)
        ranked = [low + step * rank for rank in range(len(places))]
    else:
        # Minus rank times least, "at least so far apart" becomes "rising": then pooling gives the nearest rising sequence.
        blocks: list[tuple[float, int]] = []
        for rank, at in enumerate(order):
            blocks.append((places[at] - rank * least, 1))
            while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
                (b, m), (a, n) = blocks.pop(), blocks.pop()
                blocks.append(((a * n + b * m) / (n + m), n + m))
        flat = [value for value, count in blocks for _ in range(count)]
        ceiling = high - least * (len(places) - 1)
        ranked = [min(max(value, low), ceiling) + rank * least for rank, value in enumerate(flat)]
    found = [0.0] * len(places)
    for rank, at in enumerate(order):
        found[at] = ranked[rank]
    return found
