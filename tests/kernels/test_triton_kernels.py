"""The GPU kernels: layouts, launches, the Triton code interpreted and compiled without a GPU, and everything on one if there is one."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from evopress_triton import bitmask_layout, evopress_kernels, runtime
from evopress_triton.int_layout import chunks, pack_codes, unpack_codes
from evopress_triton.launch import DECODE_TOKENS, SUMS_SHARE, plan, power
from evopress_triton.torch_two_of_four import TorchTwoOfFourKernel
from evopress_triton.triton_bitmask import TritonBitmaskKernel
from evopress_triton.triton_int import TritonIntKernel
from hypothesis import given, settings
from hypothesis import strategies as st

from evopress.api.formats import unpack_bits
from evopress.latency.sample import random_variant
from evopress.testing.kernels import check_kernel

TRITON = importlib.util.find_spec("triton") is not None
needs_triton = pytest.mark.skipif(not TRITON, reason="Triton is not installed: pip install 'evopress[triton]'")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU: torch.cuda.is_available() is False")
SCRIPT = Path(__file__).parent / "interpreted_triton.py"


# Layouts --------------------------------------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 8), st.integers(1, 40), st.integers(32, 140), st.integers(1, 4), st.integers(0, 2**31))
def test_codes_read_back_what_was_packed(bits, rows, group, groups, seed):
    codes = torch.randint(2**bits, (rows, group * groups), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    words = pack_codes(codes, bits, group)
    assert words.shape == (bits * chunks(codes.shape[1], group), rows)
    assert torch.equal(unpack_codes(words, bits, group, codes.shape[1]), codes)


@pytest.mark.parametrize("bits", range(1, 9))
def test_codes_of_whole_chunks_waste_no_bit(bits):
    variant = random_variant(f"int{bits}-g64", (48, 192), torch.Generator().manual_seed(0))
    packed = TritonIntKernel().pack(variant, torch.bfloat16)
    assert packed["codes"].numel() * 32 == 48 * 192 * bits
    assert TritonIntKernel().read_bytes(packed, 1) == 48 * 192 * bits // 8 + 48 * 3 * 3


@pytest.mark.parametrize("shape", [(1, 1), (5, 63), (7, 64), (9, 200), (3, 1000)])
def test_the_offsets_of_a_mask_count_the_values_before(shape):
    variant = random_variant("bitmask", shape, torch.Generator().manual_seed(1))
    keep = unpack_bits(variant.tensors["mask"], 1, shape[1]).bool()
    packed = bitmask_layout.pack_mask(variant.tensors, shape)
    for row in range(shape[0]):
        assert packed["starts"][row] == keep[:row].sum()
        for word in range(packed["mask"].shape[1]):
            assert packed["offsets"][row, word] == keep[row, : 64 * word].sum()
            columns = range(64 * word, min(64 * word + 64, shape[1]))
            assert int(packed["mask"][row, word]) % 2**64 == sum(int(keep[row, c]) << (c % 64) for c in columns)


def test_offsets_beyond_15_bits_are_kept_unsigned():
    columns = bitmask_layout.MAX_COLUMNS
    variant = random_variant("bitmask", (2, columns), torch.Generator().manual_seed(1), density=1.0)
    offsets = bitmask_layout.pack_mask(variant.tensors, (2, columns))["offsets"]
    assert offsets[1, -1] < 0
    assert int(offsets[1, -1]) & 0xFFFF == columns // 64 * 64


@pytest.mark.parametrize(("columns", "groups", "unit", "steps"), [(96, 2, 32, 1), (96, 3, 32, 1), (1100, 1, 8, 9), (1024, 8, 32, 3)])
def test_side_by_side_puts_every_column_once(columns, groups, unit, steps):
    x = torch.arange(1, 2 * columns + 1).view(2, columns).float()
    wide = -(-columns // groups // unit) * unit
    tiles = runtime.side_by_side(x, groups, unit, steps)
    assert tiles.shape == (2, steps, unit, 16)
    assert tiles.count_nonzero() == x.numel()
    for column in range(0, columns, 7):
        group, inside = divmod(column, columns // groups)
        place, k = divmod(group * wide + inside, unit)
        assert torch.equal(tiles[:, place // 16, k, place % 16], x[:, column])


# Launches -------------------------------------------------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(
    rows=st.integers(1, 50000), units=st.integers(1, 4000), unit_bits=st.sampled_from([32, 72, 96, 256]), tokens=st.integers(1, 5000),
    multiprocessors=st.integers(1, 160), lanes=st.sampled_from(["rows", "units"]), wide=st.booleans(),
)  # fmt: skip
def test_a_launch_covers_every_unit_once_and_moves_few_sums(rows, units, unit_bits, tokens, multiprocessors, lanes, wide):
    way = plan(rows, units, unit_bits, tokens, multiprocessors, lanes, wide)
    assert way == plan(rows, units, unit_bits, tokens, multiprocessors, lanes, wide)
    assert way.tiles == (tokens > DECODE_TOKENS)
    assert (way.splits - 1) * way.steps * way.block_units < units <= way.splits * way.steps * way.block_units
    assert way.splits == 1 or 8 * way.splits * rows * tokens * SUMS_SHARE <= rows * units * unit_bits / 8
    for block in (way.block_rows, way.block_tokens, way.block_units, way.warps):
        assert block == power(block, 1, 1024)
    assert not way.tiles or min(way.block_rows, way.block_tokens, way.block_units) >= 16


def test_launches_of_a_large_layer():
    """4096×4096 at 4 bits on 132 multiprocessors: enough programs for one token, shared tiles for a batch, larger ones for a prompt."""
    one, batch, prompt = (plan(4096, 128, 128, tokens, 132, "rows", False) for tokens in (1, 8, 2048))
    assert (one.tiles, one.block_rows, one.splits) == (False, 256, 64)
    assert (batch.tiles, batch.block_rows, batch.block_tokens, batch.splits) == (True, 64, 16, 8)
    assert (prompt.tiles, prompt.block_rows, prompt.block_tokens, prompt.splits) == (True, 128, 64, 1)


# Where they run -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", evopress_kernels(), ids=lambda cls: cls.name)
def test_nothing_runs_on_a_cpu_without_the_interpreter(kernel):
    for format in ("int4-g32", "bitmask", "sparse-2:4", "dense"):
        assert not kernel().supports(format, (64, 64), "cpu", torch.bfloat16)


def test_without_triton_nothing_runs_and_nothing_breaks(monkeypatch):
    monkeypatch.setattr(runtime.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for answer in (runtime._compiles, runtime.interprets):
        answer.cache_clear()
    assert not any(runtime.runs(device, torch.bfloat16) for device in ("cpu", "cuda"))
    for answer in (runtime._compiles, runtime.interprets):
        answer.cache_clear()


def test_naming_and_asking_the_kernels_on_a_cpu_loads_no_triton():
    code = (
        "import sys, torch\nfrom evopress_triton import evopress_kernels\n"
        "for kernel in evopress_kernels():\n"
        "    for format in ('sparse-2:4', 'int4-g32', 'bitmask'):\n"
        "        kernel().supports(format, (64, 64), 'cpu', torch.bfloat16)\n"
        "assert 'triton' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_two_of_four_takes_what_both_back_ends_take(monkeypatch):
    monkeypatch.setattr("evopress_triton.torch_two_of_four._has_operator", lambda: True)
    kernel = TorchTwoOfFourKernel()
    assert kernel.supports("sparse-2:4", (96, 192), "cuda", torch.bfloat16)
    for format, shape, device, dtype in (
        ("sparse-2:4", (48, 192), "cuda", torch.bfloat16),
        ("sparse-2:4", (96, 96), "cuda", torch.bfloat16),
        ("sparse-2:4", (96, 192), "cuda", torch.float32),
        ("sparse-2:4", (96, 192), "cpu", torch.bfloat16),
        ("bitmask", (96, 192), "cuda", torch.bfloat16),
    ):
        assert not kernel.supports(format, shape, device, dtype)


# Interpreted ----------------------------------------------------------------------------------------------------------------------------

INTERPRETED = ("int1", "int2", "int3", "int4", "int5", "int6", "int7", "int8", "bitmask-narrow", "bitmask-odd", "bitmask-words",
               "split-int", "split-bitmask", "densities", "types")  # fmt: skip


@pytest.fixture(scope="module")
def interpreted():
    """What is wrong with every case of the script, under Triton's interpreter."""
    if not TRITON:
        pytest.skip("Triton is not installed")
    script = [sys.executable, "-W", "ignore", str(SCRIPT)]
    done = subprocess.run(script, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("case", INTERPRETED)
def test_interpreted(interpreted, case):
    assert not interpreted[case], interpreted[case]


def test_every_interpreted_case_is_listed(interpreted):
    assert sorted(interpreted) == sorted(INTERPRETED)


# Compiled -------------------------------------------------------------------------------------------------------------------------------

POINTERS = {
    "codes": "i32",
    "scales": "fp16",
    "zeros": "u8",
    "mask": "i64",
    "starts": "i32",
    "offsets": "i16",
    "values": "fp16",
    "parts": "fp32",
}
CAPABILITIES = (80, 90)


@dataclass(frozen=True)
class Compiled:
    """A kernel's name, the types of x and out, its constants and its warps."""

    name: str
    x: str
    out: str
    constants: dict
    warps: int

    def __str__(self):
        return "-".join([self.name, self.x, self.out, *(f"{key}{value}".lower() for key, value in self.constants.items())])


def int_decode(bits, group=128, x="bf16", rows=256):
    return Compiled("int_decode", x, "fp32", {"BITS": bits, "GROUP": group, "EXACT": x == "fp32", "BLOCK_R": rows}, 1)


def int_tiles(bits, tokens=16, rows=64, x="bf16", out="fp32"):
    return Compiled("int_tiles", x, out, {"BITS": bits, "CHUNKS": 4, "WIDE": False, "BLOCK_T": tokens, "BLOCK_R": rows, "BLOCK_K": 16}, 4)


def bitmask_tiles(tokens=16, rows=64, x="bf16"):
    return Compiled("bitmask_tiles", x, x, {"WIDE": False, "BLOCK_T": tokens, "BLOCK_R": rows, "BLOCK_B": 16}, 4)


DECODE_MASK = {"BLOCK_R": 8, "BLOCK_B": 128}
# Triton makes a constant of an argument that is one.
ONE_ROW = Compiled("int_decode", "bf16", "bf16", {"BITS": 4, "GROUP": 32, "EXACT": False, "BLOCK_R": 32, "rows": 1}, 1)
ONE_WEIGHT = Compiled("bitmask_decode", "bf16", "bf16", {"BLOCK_R": 1, "BLOCK_B": 32, "rows": 1, "columns": 1}, 4)
QUICK = (
    ONE_ROW, ONE_WEIGHT, int_decode(3), int_tiles(3), Compiled("bitmask_decode", "bf16", "bf16", DECODE_MASK, 4), bitmask_tiles(),
    Compiled("sum_splits", "", "bf16", {"BLOCK": 512}, 4),
)  # fmt: skip
THOROUGH = (
    *(int_decode(bits) for bits in range(1, 9)), *(int_decode(bits, x="fp32") for bits in (3, 8)),
    int_decode(4, 48), int_decode(4, rows=32),
    *(int_tiles(bits) for bits in range(1, 9)), *(int_tiles(bits, 64, 128, out="bf16") for bits in (3, 4, 8)), int_tiles(4, x="fp16"),
    int_tiles(4, 32, 128), int_tiles(4, x="fp32"), *(bitmask_tiles(tokens, rows) for tokens in (32, 64) for rows in (64, 128)),
    *(bitmask_tiles(x=x) for x in ("fp16", "fp32")), Compiled("bitmask_decode", "fp32", "fp32", {"BLOCK_R": 1, "BLOCK_B": 32}, 4),
)  # fmt: skip


def compiled(case, capability):
    """Machine code, shared memory in bytes, and bytes of stack a thread (0 where nothing spills) for a GPU that need not be there."""
    import triton
    from evopress_triton import bitmask_code, common_code, int_code
    from evopress_triton.launch import COMPILER
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    function = {**vars(int_code), **vars(bitmask_code), **vars(common_code)}[case.name]
    types, hints = {}, {}
    for place, name in enumerate(function.arg_names):
        pointer = {"x_ptr": case.x, "out_ptr": case.out}.get(name) or POINTERS.get(name.removesuffix("_ptr"))
        types[name] = "constexpr" if name in case.constants else f"*{pointer}" if name.endswith("_ptr") else "i32"
        if types[name] != "constexpr" and (name.endswith("_ptr") or name in ("rows", "columns")):
            hints[place,] = [["tt.divisibility", 16]]
    source = ASTSource(function, types, constexprs=case.constants, attrs=hints)
    options = {"num_warps": case.warps, **COMPILER}
    kernel = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    return kernel.asm["cubin"], kernel.metadata.shared, stack_bytes(kernel.asm["cubin"])


def stack_bytes(cubin):
    """What `cuobjdump`, which comes with Triton, says a thread keeps on the stack."""
    import tempfile

    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    if not tool.is_file():
        pytest.skip(f"this Triton comes without {tool.name}")
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        shown = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    return int(re.search(r"STACK:(\d+)", shown).group(1))


def check_compiled(case, capability, monkeypatch, folder):
    if os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("TRITON_INTERPRET is set: nothing is compiled")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(folder))
    cubin, shared, stack = compiled(case, capability)
    assert cubin[:4] == b"\x7fELF"
    assert shared <= 48 * 1024, f"{shared} bytes of shared memory"
    assert stack <= 32, f"{stack} bytes of stack a thread: registers spill"


@needs_triton
@pytest.mark.parametrize("case", QUICK, ids=str)
def test_compiles_for_hopper_without_spilling(case, monkeypatch, tmp_path):
    check_compiled(case, 90, monkeypatch, tmp_path)


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("case", QUICK + THOROUGH, ids=str)
def test_compiles_for_every_width_and_block(case, capability, monkeypatch, tmp_path):
    check_compiled(case, capability, monkeypatch, tmp_path)


# On a GPU -------------------------------------------------------------------------------------------------------------------------------


GPU_FORMATS = ("bitmask", "sparse-2:4", "int1-g64", "int2-g256", "int3-g48", "int4-g128", "int5-g32", "int6-g64", "int7-g48", "int8-g128")
"""Every width and a few groups: each pair is compiled anew."""


@needs_gpu
@pytest.mark.parametrize("kernel", evopress_kernels(), ids=lambda cls: cls.name)
def test_kernels_conform_on_a_gpu(kernel):
    assert check_kernel(kernel(), formats=GPU_FORMATS, device="cuda") >= 2


@needs_gpu
@pytest.mark.parametrize(
    ("kernel", "format"),
    [(TritonIntKernel, "int2-g64"), (TritonIntKernel, "int3-g128"), (TritonIntKernel, "int8-g128"), (TritonBitmaskKernel, "bitmask"),
     (TorchTwoOfFourKernel, "sparse-2:4")],
)  # fmt: skip
def test_large_layers_on_a_gpu(kernel, format):
    """The size of a real layer, where columns are split over many programs: near the exact answer, and the same bits twice."""
    generator = torch.Generator().manual_seed(0)
    variant = random_variant(format, (4096, 11008), generator)
    packed = {key: tensor.cuda() for key, tensor in kernel().pack(variant, torch.bfloat16).items()}
    for tokens in (1, 2, 8, 300):
        x = torch.randn(tokens, 11008, generator=generator).bfloat16()
        result = kernel().run(x.cuda(), packed)
        exact = kernel().reference(x, variant)
        assert (result.cpu().double() - exact).norm() / exact.norm() < 0.006
        assert torch.equal(kernel().run(x.cuda(), packed), result)
