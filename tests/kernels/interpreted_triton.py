"""Runs the Triton kernels on the CPU under Triton's interpreter; a script, because TRITON_INTERPRET must be set before they are decorated.

Prints one JSON object, case -> what is wrong, "" where nothing is. Called by test_triton_kernels.py. The interpreter is a Python loop
over programs, so shapes are small; it also cuts floats to bfloat16 instead of rounding them, which the tolerance covers.
"""

from __future__ import annotations

import json
import traceback

import torch
from evopress_triton import runtime
from evopress_triton.launch import Launch, plan
from evopress_triton.triton_bitmask import TritonBitmaskKernel
from evopress_triton.triton_int import TritonIntKernel

from evopress.latency.sample import random_variant
from evopress.testing import kernels as testing
from evopress.testing.kernels import check_kernel

CONFORM = {
    "int1": (TritonIntKernel, "int1-g32", (5, 32)),
    "int2": (TritonIntKernel, "int2-g64", (33, 64)),
    "int3": (TritonIntKernel, "int3-g48", (7, 48)),
    "int4": (TritonIntKernel, "int4-g32", (3, 64)),
    "int5": (TritonIntKernel, "int5-g64", (16, 64)),
    "int6": (TritonIntKernel, "int6-g33", (1, 33)),
    "int7": (TritonIntKernel, "int7-g32", (2, 64)),
    "int8": (TritonIntKernel, "int8-g64", (70, 64)),
    "bitmask-narrow": (TritonBitmaskKernel, "bitmask", (1, 1)),
    "bitmask-odd": (TritonBitmaskKernel, "bitmask", (7, 33)),
    "bitmask-words": (TritonBitmaskKernel, "bitmask", (18, 200)),
}
SPLIT = {"split-int": (TritonIntKernel, "int3-g64", (20, 640)), "split-bitmask": (TritonBitmaskKernel, "bitmask", (12, 2100))}
DENSITIES = (0.0, 0.05, 1.0)


def conform(kernel, format, shape):
    """The shipped check at one format and shape, without the larger shapes that it draws."""
    testing.RANDOM_SHAPES = 0
    assert check_kernel(kernel(), formats=(format,), shapes=(shape,)) == len(testing.DTYPES)


def split(kernel, format, shape):
    """A launch that splits the columns, for each path and type, against the exact answer, twice."""
    generator = torch.Generator().manual_seed(7)
    variant = random_variant(format, shape, generator)
    for tokens in (1, 3, 17, 64):
        for dtype, tolerance in ((torch.bfloat16, 0.009), (torch.float16, 6e-4), (torch.float32, 5e-7)):
            x = torch.randn(tokens, shape[1], generator=generator).to(dtype)
            packed = kernel().pack(variant, dtype)
            seen: list[Launch] = []
            result = run_and_see(kernel(), x, packed, seen)
            assert tokens > 3 or seen[0].splits > 1, f"{tokens} tokens were not split: {seen[0]}"
            exact = kernel().reference(x, variant)
            error = float((result.double() - exact).norm() / exact.norm())
            assert error < tolerance, f"{tokens} tokens, {dtype}: relative error {error}"
            assert torch.equal(result, kernel().run(x, packed))


def run_and_see(kernel, x, packed, seen):
    """Run, and keep the launch that was planned."""
    import evopress_triton.triton_bitmask as bitmask_module
    import evopress_triton.triton_int as int_module

    def planned(*args):
        seen.append(plan(*args))
        return seen[-1]

    bitmask_module.plan = int_module.plan = planned
    try:
        return kernel.run(x, packed)
    finally:
        bitmask_module.plan = int_module.plan = plan


def densities():
    """Masks with nothing, with little and with everything under them."""
    generator = torch.Generator().manual_seed(3)
    kernel = TritonBitmaskKernel()
    for density in DENSITIES:
        variant = random_variant("bitmask", (9, 130), generator, density=density)
        for tokens in (1, 5):
            x = torch.randn(tokens, 130, generator=generator)
            result = kernel.run(x, kernel.pack(variant, x.dtype))
            assert torch.allclose(result.double(), kernel.reference(x, variant), atol=1e-5), density


def types():
    """Only the three types of activation run, and only on the CPU."""
    kernel = TritonIntKernel()
    assert all(kernel.supports("int4-g32", (4, 32), "cpu", dtype) for dtype in (torch.bfloat16, torch.float16, torch.float32))
    assert not kernel.supports("int4-g32", (4, 32), "cpu", torch.float64)
    assert not kernel.supports("int4-g32", (4, 32), "cuda", torch.bfloat16)
    assert not kernel.supports("int4-g16", (4, 32), "cpu", torch.bfloat16)
    assert not kernel.supports("int4-g32", (4, 48), "cpu", torch.bfloat16)
    assert runtime.interprets()


CASES = {
    **{name: (conform, case) for name, case in CONFORM.items()},
    **{name: (split, case) for name, case in SPLIT.items()},
    "densities": (densities, ()),
    "types": (types, ()),
}


def main():
    """Run every case."""
    wrong = {}
    for name, (check, arguments) in CASES.items():
        try:
            check(*arguments)
            wrong[name] = ""
        except Exception:
            wrong[name] = traceback.format_exc()
    print(json.dumps(wrong))


if __name__ == "__main__":
    main()
