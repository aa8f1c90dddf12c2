"""How a weight is cut into programs: one pure function from the shape, the bits and the size of the GPU. Runs nothing.

Not triton.autotune: its choice depends on the clock, so two processes would add in another order and give other bits, and a first call
would time dozens of launches. Here the same shape on the same kind of GPU always gives the same launch.

The model: few tokens are bound by memory, so there must be enough programs for every multiprocessor to have loads in flight; where the
rows alone do not give them, the columns are split, as long as writing and reading the sums of the splits stays small beside the weights.
"""

from __future__ import annotations

from dataclasses import dataclass

DECODE_TOKENS = 2
"""Up to so many tokens, a program a token reads the weights again (from the cache); beyond, tiles of the matrix units share them."""
TILE_UNITS = 16
"""Units of columns a tile covers at once: the shortest inner dimension of the matrix units."""
COMPILER = {"num_stages": 1, "enable_fp_fusion": True}
"""No software pipeline: it would keep every load of a step twice in shared memory, more than most GPUs have; several programs a
multiprocessor hide the latency instead. A product and a sum are one instruction, which Triton is to stop doing by itself."""
SUMS_SHARE = 4
"""The sums of the splits may move 1/4 of the bytes of the weights; most of that stays in the cache."""


@dataclass(frozen=True)
class Launch:
    """A launch. A program takes block_rows rows, block_tokens tokens and `steps` steps of block_units units of columns.

    tiles: by matrix units, else by multiply-adds. splits: parts of the columns; their sums are added afterwards.
    """

    tiles: bool
    block_rows: int
    block_tokens: int
    block_units: int
    steps: int
    splits: int
    warps: int


def power(value: int, low: int, high: int) -> int:
    """Smallest power of two that is at least `value`, kept within low..high."""
    return min(max(1 << max(value - 1, 0).bit_length(), low), high)


def plan(rows: int, units: int, unit_bits: int, tokens: int, multiprocessors: int, lanes: str, wide: bool) -> Launch:
    """The launch for a weight of so many rows and units of columns, each of unit_bits bits a row in memory.

    lanes: what neighbouring lanes of a decoding program take, `rows` (256 a warp) or `units` (one each, for a few rows).
    wide: float32 activations, whose tiles go through multiply-adds and must be small to stay in registers.
    """
    tiles = tokens > DECODE_TOKENS
    if tiles:
        tokens_a_program = 16 if wide else power(tokens, 16, 64)
        rows_a_program = 64 if tokens_a_program == 16 else power(rows, 64, 128)
        units_a_step, warps, programs_an_sm = TILE_UNITS, 4, 4
    elif lanes == "rows":
        rows_a_program, tokens_a_program, units_a_step, warps, programs_an_sm = power(rows, 32, 256), 1, 1, 1, 16
    else:
        rows_a_program, tokens_a_program, units_a_step, warps, programs_an_sm = power(rows, 1, 8), 1, power(units, 32, 128), 4, 4
    programs = -(-rows // rows_a_program) * -(-tokens // tokens_a_program)
    all_steps = -(-units // units_a_step)
    affordable = units * unit_bits // (64 * SUMS_SHARE * tokens)  # a sum is 8 bytes a row and token, written once and read once
    splits = max(1, min(-(-programs_an_sm * multiprocessors // programs), affordable, all_steps))
    steps = -(-all_steps // splits)
    return Launch(tiles, rows_a_program, tokens_a_program, units_a_step, steps, -(-all_steps // steps), warps)
