"""Writes the C source of a kernel for one machine, one width of codes and one type of activations. Compiles nothing.

The loops stand in integers.c, bitmask.c and dense.c; what depends on the machine and the width is written here and put in front of them.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files

from evopress_native.machine import Machine
from evopress_native.words import UNITS, bias, expand_source, straight_source

LEAST_TILE_TOKENS = 2
"""From so many tokens on the tiles are quicker than dot products."""


@cache
def integer_source(machine: Machine, bits: int, bfloat: bool) -> str:
    """Source of `run` and `unpack` for codes of `bits` bits and bfloat16 or float32 activations."""
    words, codes = UNITS[bits]
    offsets = bias(bits)
    constants = {
        "BITS": bits, "WORDS": words, "CODES": codes, "COLUMNS": 2 * codes, "PARTS": len(offsets), "BIAS": f"{sum(offsets)}f",
        "BIAS_OF_LOW": f"{offsets[0]}f", "BIAS_OF_HIGH": f"{offsets[-1]}f", "LEAST_TILE_TOKENS": LEAST_TILE_TOKENS,
    }  # fmt: skip
    parts = (_read("common.h"), expand_source(bits), straight_source(bits), _read("integers.c"))
    return _constants(_of_machine(machine, bfloat) | constants) + _whole(*parts)


@cache
def bitmask_source(machine: Machine, bfloat: bool) -> str:
    """Source of `run` and `unpack` for bitmasks and bfloat16 or float32 activations."""
    constants = _of_machine(machine, bfloat) | {"LEAST_TILE_TOKENS": LEAST_TILE_TOKENS}
    return _constants(constants) + _whole(_read("common.h"), _read("bitmask.c"))


@cache
def dense_source(machine: Machine, bfloat: bool) -> str:
    """Source of `run` for dense weights and bfloat16 or float32 activations."""
    return _constants(_of_machine(machine, bfloat)) + _whole(_read("common.h"), _read("dense.c"))


def _whole(*parts: str) -> str:
    joined = "\n".join(parts)
    for name in ("tiles.h", "run.h"):
        joined = joined.replace(f'#include "{name}"\n', _read(name))
    return joined


def _of_machine(machine: Machine, bfloat: bool) -> dict[str, object]:
    # The memory answers a request after about 100 ns, in which a core at 15 GB/s reads 1.5 KiB; further ahead helps against pages that
    # the processor's own prefetcher does not cross, up to a share of the inner cache.
    ahead = min(4096, machine.first_bytes // 8)
    # Sixteen token tiles of 1 KiB a step share half of the second cache.
    chunk = max(4, machine.second_bytes // 2 // (16 * 1024))
    return {
        "WIDTH": machine.width, "BFLOAT_DOT": int(machine.dot), "QUICK_DOT": int(machine.quick_dot and not machine.tiles and bfloat),
        "TILES": int(machine.tiles and bfloat), "X_BFLOAT": int(bfloat),
        "AHEAD": ahead, "CHUNK": chunk,
    }  # fmt: skip


def _constants(values: dict[str, object]) -> str:
    return "".join(f"#define {name} {value}\n" for name, value in values.items())


@cache
def _read(name: str) -> str:
    return files("evopress_native").joinpath(name).read_text()
