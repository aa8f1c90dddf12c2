"""The processor as the code generator sees it: vector width, what it multiplies bfloat16 with, caches. Read from Linux; measures nothing.

Called by generate.py and by the kernels' `supports`.
"""

from __future__ import annotations

import ctypes
import platform
import re
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

CPU_INFO = Path("/proc/cpuinfo")
CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
ARCH_PRCTL, REQUEST_PERMISSION, TILE_DATA = 158, 0x1023, 18
BASE = frozenset({"avx2", "fma", "f16c"})
WIDE = frozenset({"avx512f", "avx512bw", "avx512vl", "avx512dq"})
DOT = WIDE | {"avx512_bf16", "avx512_vbmi2"}
TILES = DOT | {"amx_tile", "amx_bf16"}


@dataclass(frozen=True)
class Machine:
    """width: vector bits, 256 or 512. dot: bfloat16 dot products and expanding loads of 16-bit values. tiles: AMX.

    quick_dot: a dot product takes no longer than a float32 multiply-add, which does half as much. So it is on AMD's processors; on Intel's
        it is two steps of one port.
    first_bytes, second_bytes: data caches of one core.
    """

    width: int
    dot: bool
    tiles: bool
    first_bytes: int = 32 * 2**10
    second_bytes: int = 2**20
    quick_dot: bool = False

    def __post_init__(self) -> None:
        if (
            self.width not in (256, 512)
            or (self.dot and self.width != 512)
            or (self.tiles and not self.dot)
            or (self.quick_dot and not self.dot)
        ):
            raise ValueError(f"no processor has {self}")

    @property
    def lesser(self) -> Machine | None:
        """The same processor without its newest feature, for a compiler or a system that does not know it; None where none is left."""
        if self.tiles:
            return replace(self, tiles=False)
        if self.dot:
            return replace(self, dot=False, quick_dot=False)
        return replace(self, width=256) if self.width == 512 else None

    @property
    def flags(self) -> tuple[str, ...]:
        """What the compiler may use, no more: the same code on every processor with these features."""
        features = BASE | (WIDE if self.width == 512 else set()) | (DOT if self.dot else set()) | (TILES if self.tiles else set())
        names = {"avx512_bf16": "avx512bf16", "avx512_vbmi2": "avx512vbmi2", "amx_tile": "amx-tile", "amx_bf16": "amx-bf16"}
        return tuple(f"-m{names.get(feature, feature)}" for feature in sorted(features))

    def __str__(self) -> str:
        return (
            "amx"
            if self.tiles
            else "avx512-quick-bf16"
            if self.quick_dot
            else "avx512-bf16"
            if self.dot
            else "avx512"
            if self.width == 512
            else "avx2"
        )


@cache
def this_machine() -> Machine | None:
    """This processor; None where the kernels have no code for it: no x86-64 under Linux with AVX2."""
    if platform.system() != "Linux" or platform.machine() != "x86_64" or not CPU_INFO.is_file():
        return None
    return read_machine(CPU_INFO.read_text(), {path.parent.name: path.read_text() for path in CACHES.glob("index*/size")}, _levels())


def tiles_allowed() -> bool:
    """Does Linux let this process use AMX tiles? It must be asked once (arch_prctl ARCH_REQ_XCOMP_PERM, XTILEDATA)."""
    return bool(ctypes.CDLL(None, use_errno=True).syscall(ARCH_PRCTL, REQUEST_PERMISSION, TILE_DATA) == 0)


def _levels() -> dict[str, str]:
    return {path.name: f"{(path / 'level').read_text().strip()} {(path / 'type').read_text().strip()}" for path in CACHES.glob("index*")}


def read_machine(cpu_info: str, sizes: dict[str, str], levels: dict[str, str]) -> Machine | None:
    """From the text of /proc/cpuinfo, and size and `level type` of every cache of a core by its folder's name."""
    found = re.search(r"^flags\s*:(.*)$", cpu_info, re.MULTILINE)
    flags = set(found.group(1).split()) if found else set()
    if not flags >= BASE:
        return None
    by_level = {levels.get(name, ""): _bytes(size) for name, size in sizes.items()}
    caches = {key: by_level[level] for key, level in (("first_bytes", "1 Data"), ("second_bytes", "2 Unified")) if by_level.get(level)}
    quick = flags >= DOT and re.search(r"^vendor_id\s*:\s*AuthenticAMD", cpu_info, re.MULTILINE) is not None
    return Machine(512 if flags >= WIDE else 256, flags >= DOT, flags >= TILES, quick_dot=quick, **caches)


def _bytes(size: str) -> int:
    match = re.fullmatch(r"(\d+)([KMG]?)", size.strip())
    return int(match.group(1)) * {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}[match.group(2)] if match else 0
