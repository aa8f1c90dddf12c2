"""Every built-in kernel passes the shipped check, and the check refuses kernels that are wrong in each way it looks for."""

from __future__ import annotations

import evopress_peers
import pytest
import torch
from evopress_kernels import evopress_kernels
from evopress_kernels.dense import DenseKernel
from evopress_kernels.torch_int4 import TorchInt4Kernel

from evopress.api import MissingDependency
from evopress.testing.kernels import check_kernel

SMALL = {"formats": ("dense", "int3-g32"), "shapes": ((16, 32), (48, 96))}


@pytest.mark.parametrize("kernel", evopress_kernels(), ids=lambda cls: cls.name)
def test_built_in_kernels_conform(kernel):
    assert check_kernel(kernel()) >= 10


@pytest.mark.parametrize("kernel", evopress_peers.evopress_kernels(), ids=lambda cls: cls.name)
def test_peers_conform(kernel):
    try:
        assert check_kernel(kernel()) >= 10
    except MissingDependency as missing:
        pytest.skip(missing.message)


def test_a_kernel_without_its_library_is_no_failure_but_names_the_extra():
    class Absent(SupportsNothing):
        needs = "pip install 'evopress[peers]'"

    with pytest.raises(MissingDependency, match=r"'dense' supports nothing here.*pip install 'evopress\[peers\]'"):
        check_kernel(Absent(), **SMALL)


class ZeroOffByOne(TorchInt4Kernel):
    def pack(self, variant, dtype):
        packed = dict(super().pack(variant, dtype))
        packed["zero"] = packed["zero"] + 1
        return packed


class LowPrecision(TorchInt4Kernel):
    def run(self, x, packed):
        return super().run(x.bfloat16(), packed).to(x.dtype)


class Unwritten(DenseKernel):
    def run(self, x, packed):
        out = torch.empty(x.shape[0], packed["weight"].shape[0], dtype=x.dtype)
        out[:, 1:] = super().run(x, packed)[:, 1:]
        return out


class SharedBuffer(DenseKernel):
    buffers: dict = {}  # noqa: RUF012

    def run(self, x, packed):
        result = super().run(x, packed)
        return self.buffers.setdefault((tuple(result.shape), x.dtype), torch.empty_like(result)).copy_(result)


class ChangesInput(DenseKernel):
    def run(self, x, packed):
        result = super().run(x, packed)
        x.mul_(2)
        return result


class SwallowsNaN(DenseKernel):
    def run(self, x, packed):
        return super().run(x.nan_to_num(), packed)


class SpreadsNaN(DenseKernel):
    def run(self, x, packed):
        return super().run(x, packed) + 0 * x.sum()


class WrongType(DenseKernel):
    def run(self, x, packed):
        return super().run(x, packed).double()


class NotListed(TorchInt4Kernel):
    formats = (r"int4-g32",)


class SkipsZeros(DenseKernel):
    formats = ("sparse-2:4",)

    def supports(self, format, shape, device, dtype):
        return format == "sparse-2:4"

    def run(self, x, packed):
        weight = packed["weight"].float()
        products = torch.where(weight == 0, torch.zeros(()), x.float()[:, None, :] * weight)
        return products.sum(-1).to(x.dtype)


def test_a_sparse_kernel_may_skip_what_is_not_stored():
    assert check_kernel(SkipsZeros(), formats=("sparse-2:4",), shapes=((16, 32), (48, 96))) >= 4


def test_a_device_that_the_kernel_does_not_support_is_named():
    with pytest.raises(AssertionError, match="supports none of the 2 formats at any of the 2 shapes on cuda"):
        check_kernel(TorchInt4Kernel(), device="cuda", **SMALL)


class SupportsNothing(DenseKernel):
    def supports(self, format, shape, device, dtype):
        return False


class WrongReference(DenseKernel):
    def reference(self, x, variant):
        return super().reference(x, variant) + 1


class ReadsMoreThanItHolds(DenseKernel):
    def read_bytes(self, packed, tokens):
        return super().read_bytes(packed, tokens) + 1


class ChangesWeights(DenseKernel):
    def pack(self, variant, dtype):
        return {**super().pack(variant, dtype), "calls": torch.zeros(1)}

    def run(self, x, packed):
        packed["calls"] += 1
        return super().run(x, packed)


class ChangesVariant(DenseKernel):
    def pack(self, variant, dtype):
        packed = super().pack(variant, dtype)
        variant.tensors["seen"] = torch.ones(1)
        return packed


class Unsteady(DenseKernel):
    calls = 0

    def run(self, x, packed):
        self.calls += 1
        result = super().run(x, packed)
        if self.calls % 3 == 1:
            result[:1, :1] = torch.nextafter(result[:1, :1], torch.full_like(result[:1, :1], torch.inf))
        return result


class BoundToMemory(DenseKernel):
    def pack(self, variant, dtype):
        packed = super().pack(variant, dtype)
        self.known = packed["weight"].data_ptr()
        return packed

    def run(self, x, packed):
        return super().run(x, packed) * (packed["weight"].data_ptr() == self.known)


class IgnoresStrides(DenseKernel):
    def run(self, x, packed):
        return super().run(x.as_strided(x.shape, (x.shape[1], 1)), packed)


class WrongWithOtherThreads(DenseKernel):
    threads = None

    def run(self, x, packed):
        self.threads = self.threads or torch.get_num_threads()
        return super().run(x, packed) * (torch.get_num_threads() == self.threads)


class RefusesNoTokens(DenseKernel):
    def run(self, x, packed):
        return super().run(x, packed) if len(x) else torch.empty(1, packed["weight"].shape[0])


class InfinityForNaN(DenseKernel):
    def run(self, x, packed):
        result = super().run(x, packed)
        return torch.where(result.isnan(), torch.full_like(result, torch.inf), result)


@pytest.mark.parametrize(
    ("kernel", "message"),
    [
        (ZeroOffByOne, "further from the reference than allowed"),
        (LowPrecision, "float32: the result is"),
        (SharedBuffer, "must not share memory"),
        (ChangesInput, "run changed x|another result|further from"),
        (SwallowsNaN, "does not reach"),
        (SpreadsNaN, "changes the outputs of other tokens"),
        (WrongType, "run gives torch.float64"),
        (NotListed, "which none of its formats"),
        (SupportsNothing, "supports none"),
        (WrongReference, "reference is not linear"),
        (ReadsMoreThanItHolds, "read_bytes gives"),
        (ChangesWeights, "run changed the packed weights"),
        (ChangesVariant, "changed the variant's tensors"),
        (Unsteady, "the same input again gives another result"),
        (BoundToMemory, "packed tensors copied elsewhere"),
        (IgnoresStrides, "a non-contiguous input"),
        (WrongWithOtherThreads, r"\d threads: the result"),
        (RefusesNoTokens, "no tokens give"),
        (InfinityForNaN, "becomes infinity"),
        (Unwritten, "further from the reference|same input again|result of the first"),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_wrong_kernels_are_refused(kernel, message):
    with pytest.raises(AssertionError, match=message):
        check_kernel(kernel(), **SMALL)
