"""Words of the native kernels: every bit is used once, and the C that is generated turns words into exactly bias + code."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from evopress_native.layout import _words
from evopress_native.words import MANTISSA, SINGLE, UNITS, bias, expand_source, pieces, straight_source, straights

WIDTHS = range(1, 9)
LANES = 256
"""Rows that are simulated, so that every code comes; a unit of the kernels has 16."""


@pytest.mark.parametrize("bits", WIDTHS)
def test_pieces_cover_every_bit_of_a_unit_and_of_every_code_once(bits):
    words, codes = UNITS[bits]
    assert words * 16 == codes * bits
    stored = [(piece.word, piece.low + i) for found in pieces(bits) for piece in found for i in range(piece.bits)]
    assert sorted(stored) == [(word, bit) for word in range(words) for bit in range(16)]
    assert len(pieces(bits)) == codes
    for found in pieces(bits):
        assert sorted(piece.at + i for piece in found for i in range(piece.bits)) == list(range(bits))


@pytest.mark.parametrize("bits", WIDTHS)
def test_a_unit_divides_a_step_of_32_columns(bits):
    assert 32 % (2 * UNITS[bits][1]) == 0


@pytest.mark.parametrize("bits", WIDTHS)
def test_straight_codes_lie_in_the_mantissa_with_a_small_bias(bits):
    found = straights(bits)
    assert len(found) == 2 * UNITS[bits][1]
    for straight in found:
        assert straight.low >= 0
        assert straight.low + bits <= SINGLE
        assert 2**bits <= straight.bias == 2.0 ** (SINGLE - straight.low) <= 2.0 ** (bits + 8)
    assert len({(straight.word, straight.shift, straight.low) for straight in found}) == len(found)


@pytest.mark.parametrize("bits", WIDTHS)
def test_a_shifted_word_serves_two_codes_at_least(bits):
    assert 2 * len({(straight.word, straight.shift) for straight in straights(bits) if straight.shift}) <= len(straights(bits))


def test_bias_is_a_power_of_two_that_leaves_the_mantissa_to_the_code():
    for bits in WIDTHS:
        assert sum(bias(bits)) == (272.0 if bits == 8 else 2.0**bits)
        part = bits if bits < 8 else 4
        for step, offset in zip((1, 16), bias(bits), strict=False):
            assert offset * 2.0**-MANTISSA <= step  # the spacing of bfloat16 there
            assert offset >= step * 2**part  # bias + code keeps the exponent of the bias


class Machine:
    """What the generated text calls, on numpy: vectors of lanes, each 32 bits with the even column in the low half."""

    def __init__(self, words):
        """words: (words, lanes, 2) uint16."""
        self.words = words

    def names(self):
        halves = {
            "RIGHT": lambda v, n: v >> n,
            "LEFT": lambda v, n: v << n,
            "AND": lambda v, m: v & np.uint16(m),
            "OR": lambda a, b: a | b,
            "OR_WITH": lambda v, m: v | np.uint16(m),
            "AND_OR": lambda v, m, o: v & np.uint16(m) | np.uint16(o),
        }
        wholes = {
            "LEFT32": lambda v, n: v << np.uint32(n),
            "RIGHT32": lambda v, n: v >> np.uint32(n),
            "AND_OR32": lambda v, m, o: v & np.uint32(m) | np.uint32(o),
        }
        as_halves = {name: self._as(np.uint16, call) for name, call in halves.items()}
        return as_halves | {name: self._as(np.uint32, call) for name, call in wholes.items()} | {
            "LOAD": lambda offset: self.words[offset // 64].reshape(-1).view(np.uint8),
            "AS_FLOATS": lambda v: v.view(np.float32),
            "p": 0,
        }  # fmt: skip

    @staticmethod
    def _as(kind, call):
        def called(v, *more):
            more = [other.view(kind) if isinstance(other, np.ndarray) else other for other in more]
            return call(v.view(kind), *more).view(np.uint8)

        return called


def packed(bits):
    """Codes (lanes, columns) of one unit, all of them somewhere, and its words as layout.py packs them."""
    columns = 2 * UNITS[bits][1]
    codes = torch.randint(2**bits, (LANES, columns), generator=torch.Generator().manual_seed(bits))
    codes[:, 0], codes[:, -1], codes[0], codes[1] = torch.arange(LANES) % 2**bits, torch.arange(LANES).flip(0) % 2**bits, 0, 2**bits - 1
    words = _words(codes.view(LANES // 16, 16, columns).to(torch.uint8), bits).view(LANES // 16, UNITS[bits][0], 16, 2, 2)
    words = words.permute(1, 0, 2, 3, 4).reshape(UNITS[bits][0], LANES, 4).contiguous().numpy().view(np.uint16)
    return codes.numpy(), words


def run(text, words, **more):
    """Execute lines such as `VI w0 = LOAD(p + 0);` as Python."""
    lines = [re.sub(r"^VI ", "", line.strip().removesuffix("\\").strip()).removesuffix(";") for line in text.splitlines()]
    exec("\n".join(lines), {**Machine(words).names(), **more})


@pytest.mark.parametrize("bits", WIDTHS)
def test_the_generated_expand_gives_bias_plus_code(bits):
    codes, words = packed(bits)
    values = {}
    run(expand_source(bits).partition("{\n")[2].rpartition("}")[0], words, v=values)
    parts = len(bias(bits))
    assert sorted(values) == list(range(parts * UNITS[bits][1]))
    for code in range(UNITS[bits][1]):
        for odd in range(2):
            halves = [values[parts * code + part].view(np.uint16)[odd::2].astype(np.uint32) << 16 for part in range(parts)]
            floats = [half.view(np.float32) for half in halves]
            expected = codes[:, 2 * code + odd]
            if parts == 1:
                assert np.array_equal(floats[0] - bias(bits)[0], expected)
            else:
                assert np.array_equal(floats[0] - 16, expected % 16)
                assert np.array_equal(floats[1] - 256, expected // 16 * 16)


@pytest.mark.parametrize("bits", WIDTHS)
def test_the_generated_straighten_gives_bias_plus_code(bits):
    codes, words = packed(bits)
    source = straight_source(bits)
    biases = [float(number.rstrip("f")) for number in re.search(r"\{(.*)\}", source).group(1).split(", ")]
    assert biases == [straight.bias for straight in straights(bits)]
    seen = []

    def use(turn, column, value):
        assert turn == len(seen)
        seen.append(column)
        assert np.array_equal(value - np.float32(biases[column]), codes[:, column]), f"column {column}"

    run(source.partition("USE) \\\n")[2], words, USE=use)
    assert sorted(seen) == list(range(2 * UNITS[bits][1]))
