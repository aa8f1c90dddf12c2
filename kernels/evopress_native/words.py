"""How integer codes lie in 16-bit words, and the C that moves them from there into floating point. Compiles nothing and packs nothing.

Called by layout.py (to pack) and generate.py (for the C). After QIGen (2307.03738), which generates the unpacking for every bit width; the
layout and the way into floating point are our own.

A *unit* is a few words that hold a few codes of one row and parity of column: 16 // bits codes stand whole in each word, and where bits
are left over at its top (3, 5, 6 and 7 bits), those of several words together make further codes. So every width is stored without a
wasted bit.
"""

from __future__ import annotations

import struct
from collections import Counter
from functools import cache
from itertools import combinations
from typing import NamedTuple

UNITS = {1: (1, 16), 2: (1, 8), 3: (3, 16), 4: (1, 4), 5: (5, 16), 6: (3, 8), 7: (7, 16), 8: (1, 2)}
"""Bits of a code -> words a unit, codes a unit."""
SINGLE = 23
"""Bits of a float32 mantissa."""
MANTISSA = 7
"""Bits of a bfloat16 mantissa: a code of up to so many is brought into it whole, 8 bits as two halves."""


class Piece(NamedTuple):
    """`bits` bits of a code, from bit `at` of the code on, stand in `word` from bit `low` on."""

    word: int
    low: int
    bits: int
    at: int


@cache
def pieces(bits: int) -> tuple[tuple[Piece, ...], ...]:
    """Where each code of a unit stands."""
    words, codes = UNITS[bits]
    whole = 16 // bits
    found: list[tuple[Piece, ...]] = [(Piece(word, place * bits, bits, 0),) for word in range(words) for place in range(whole)]
    spare = [(word, low) for word in range(words) for low in range(whole * bits, 16)]
    while len(found) < codes:
        own, spare = spare[:bits], spare[bits:]
        found.append(_joined(own))
    return tuple(found)


def _joined(places: list[tuple[int, int]]) -> tuple[Piece, ...]:
    """Single bits (word, bit) of a code, lowest first, as pieces of neighbouring bits."""
    joined: list[Piece] = []
    for at, (word, low) in enumerate(places):
        last = joined[-1] if joined else None
        if last is not None and last.word == word and last.low + last.bits == low:
            joined[-1] = last._replace(bits=last.bits + 1)
        else:
            joined.append(Piece(word, low, 1, at))
    return tuple(joined)


def bias(bits: int) -> tuple[float, ...]:
    """What the floating-point value of a code has too much: of the whole code, or of its lower and its upper half."""
    return (16.0, 256.0) if bits == 8 else (float(2**bits),)


def expand_source(bits: int) -> str:
    """C function `expand`: the words of a unit at p to bfloat16 values BIAS + code, two columns a lane; 8 bits as two halves."""
    words, codes = UNITS[bits]
    lines = [f"    VI w{word} = LOAD(p + {64 * word});" for word in range(words)]
    if bits == 8:
        for code in range(codes):
            lines += [f"    v[{2 * code + half}] = {_move(Piece(0, 8 * code + 4 * half, 4, 0), top, 4, offset)};"
                      for half, (top, offset) in enumerate(((MANTISSA, 16.0), (MANTISSA, 256.0)))]  # fmt: skip
    else:
        lines += [f"    v[{code}] = {_place(found, bits)};" for code, found in enumerate(pieces(bits))]
    return "INLINE void expand(const uint8_t *p, VI *v) {\n" + "\n".join(lines) + "\n}\n"


class Straight(NamedTuple):
    """A code of a unit in a 32-bit lane: of `word` shifted left by `shift` (right below zero), lowest bit at `low`; bias 2^(23 - low)."""

    word: int
    shift: int
    low: int

    @property
    def bias(self) -> float:
        """What its float32 value has too much."""
        return float(2 ** (SINGLE - self.low))


@cache
def straights(bits: int) -> tuple[Straight, ...]:
    """Where every column of a unit stands as float32, with few shifts: a code is masked into the mantissa wherever it lies.

    A code whose lowest bit is bit l of a float32 with exponent 23 - l is worth 2^(23 - l) + code. So most codes need no shift of their own,
    only one AND-OR. The bias may be 2^(bits + 8) at most: subtracted again after the sum of a group, it leaves an error of some 1e-5 of the
    weights.
    Words beyond those of the unit are the codes made of left-over bits, both parities at the top of a bfloat16 mantissa.
    """
    lowest, highest = 15 - bits, SINGLE - bits
    words = UNITS[bits][0]
    fields: dict[int, list[tuple[int, int]]] = {}
    for code, found in enumerate(pieces(bits)):
        word, low = (found[0].word, found[0].low) if len(found) == 1 else (words + code, MANTISSA - bits)
        fields.setdefault(word, []).extend((2 * code + odd, low + 16 * odd) for odd in range(2))
    chosen: dict[int, Straight] = {}
    for word, places in fields.items():
        moved = _moves(tuple(low for _, low in places), lowest, highest)
        chosen |= {column: Straight(word, to - low, to) for (column, low), to in zip(places, moved, strict=True)}
    return tuple(chosen[column] for column in range(2 * UNITS[bits][1]))


CONSTANT = 0.3
"""What a further place costs, two more constants in registers, in shifts."""


def _moves(lows: tuple[int, ...], lowest: int, highest: int) -> tuple[int, ...]:
    """To which bit between `lowest` and `highest` each bit goes, with few shifts and few different places."""
    best: tuple[float, tuple[int, ...]] = (float("inf"), ())
    for count in range(4):
        if count >= best[0]:
            break
        for shifts in combinations([shift for shift in range(-31, 24) if shift], count):
            ways = [[low + shift for shift in (0, *shifts) if lowest <= low + shift <= highest] for low in lows]
            if all(ways):
                # The places that most bits can take, one after the other.
                places: list[int] = []
                while open_ways := [way for way in ways if not set(way) & set(places)]:
                    places.append(Counter(place for way in open_ways for place in way).most_common(1)[0][0])
                moved = tuple(next(place for place in places if place in way) for way in ways)
                best = min(best, (count + CONSTANT * len(set(moved)), moved))
    return best[1]


def straight_source(bits: int) -> str:
    """C macro `STRAIGHTEN(p, USE)`: USE(turn, column, value) for every column of the unit at p, bias + code in float32; and `bias_of`.

    Word by word and shift by shift, so that few registers are in use at a time.
    """
    words, found = UNITS[bits][0], straights(bits)
    lines, loaded, moved = [], set(), set()
    order = sorted(range(len(found)), key=lambda column: (found[column].word, found[column].shift != 0, found[column].shift, column))
    for turn, column in enumerate(order):
        word, shift, low = found[column]
        spread = pieces(bits)[word - words] if word >= words else ()
        for own in [piece.word for piece in spread] or [word]:
            if own not in loaded:
                lines.append(f"VI w{own} = LOAD(p + {64 * own});")
                loaded.add(own)
        if spread and word not in loaded:
            lines.append(f"VI w{word} = {_place(spread, bits)};")
            loaded.add(word)
        if shift and (word, shift) not in moved:
            lines.append(f"VI {_moved(word, shift)} = {'LEFT32' if shift > 0 else 'RIGHT32'}(w{word}, {abs(shift)});")
            moved.add((word, shift))
        exponent = hex((127 + SINGLE - low) << SINGLE)
        lines.append(f"USE({turn}, {column}, AS_FLOATS(AND_OR32({_moved(word, shift)}, {hex(((1 << bits) - 1) << low)}, {exponent})));")
    biases = ", ".join(f"{straight.bias}f" for straight in found)
    body = " \\\n    ".join(lines)
    return f"static const float bias_of[COLUMNS] = {{{biases}}};\n#define STRAIGHTEN(p, USE) \\\n    {body}\n"


def _moved(word: int, shift: int) -> str:
    return f"w{word}" if not shift else f"w{word}{'l' if shift > 0 else 'r'}{abs(shift)}"


def _place(found: tuple[Piece, ...], bits: int) -> str:
    """The pieces of a code, each shifted to the top of the mantissa, with the exponent of 2^bits."""
    if len(found) == 1:
        return _move(found[0], MANTISSA, bits, float(2**bits))
    parts = [f"AND({_shift(piece, MANTISSA - bits)}, {_mask(piece.bits, MANTISSA - bits + piece.at)})" for piece in found]
    joined = parts[0]
    for part in parts[1:]:
        joined = f"OR({joined}, {part})"
    return f"OR_WITH({joined}, {_exponent(float(2**bits))})"


def _move(piece: Piece, top: int, bits: int, offset: float) -> str:
    return f"AND_OR({_shift(piece, top - bits)}, {_mask(piece.bits, top - bits)}, {_exponent(offset)})"


def _shift(piece: Piece, base: int) -> str:
    by = piece.low - base - piece.at
    return f"w{piece.word}" if by == 0 else f"{'RIGHT' if by > 0 else 'LEFT'}(w{piece.word}, {abs(by)})"


def _mask(bits: int, low: int) -> str:
    return hex(((1 << bits) - 1) << low)


def _exponent(value: float) -> str:
    """A power of two as the bits of a bfloat16."""
    (whole,) = struct.unpack("<I", struct.pack("<f", value))
    return hex(whole >> 16)
