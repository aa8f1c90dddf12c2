"""How integer codes lie in 16-bit words, and the C that moves them from there into floating point. Compiles nothing and packs nothing.

Called by layout.py (to pack) and generate.py (for the C). After QIGen (2307.03738), which generates the unpacking for every bit width; the
layout and the way into floating point are our own.

A *unit* is a few words that hold a few codes of one row and parity of column: 16 // bits codes stand whole in each word, and where bits
are left over at its top (3, 5, 6 and 7 bits), those of several words together make further codes. So every width is stored without a
wasted bit.
"""

from __future__ import annotations

import struct
from functools import cache
from typing import NamedTuple

UNITS = {1: (1, 16), 2: (1, 8), 3: (3, 16), 4: (1, 4), 5: (5, 16), 6: (3, 8), 7: (7, 16), 8: (1, 2)}
"""Bits of a code -> words a unit, codes a unit."""
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
