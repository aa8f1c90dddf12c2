"""The peers against brute force in float64, the bits their libraries are given, how far they round, and what happens without a library."""

from __future__ import annotations

import gc
import importlib.metadata
import subprocess
import sys

import evopress_peers
import pytest
import torch
from evopress_kernels import evopress_kernels
from evopress_peers import ggml_library, onnxruntime
from evopress_peers.ggml import GgmlKernel
from evopress_peers.onnxruntime import OnnxruntimeInt8Kernel, OnnxruntimeKernel
from evopress_peers.torch_csr import TorchCsrKernel

from evopress.api import MissingDependency
from evopress.api.formats import decode, unpack_int
from evopress.hooks.registry import Registry
from evopress.latency.runtime import choose
from evopress.latency.sample import random_variant
from evopress.testing.kernels import DTYPES, FORMATS, SHAPES

needs_onnxruntime = pytest.mark.skipif(not onnxruntime.installed(), reason="onnxruntime or onnx is not installed")
needs_ggml = pytest.mark.skipif(isinstance(ggml_library.load(), str), reason=f"xllamacpp, {ggml_library.load()}")
ORT = pytest.param(OnnxruntimeKernel, marks=needs_onnxruntime)
ORT_INT8 = pytest.param(OnnxruntimeInt8Kernel, marks=needs_onnxruntime)
GGML = pytest.param(GgmlKernel, marks=needs_ggml)
INTEGERS = "int1-g32", "int2-g64", "int3-g32", "int4-g64", "int5-g32", "int6-g64", "int7-g32", "int8-g64"


def brute_force(x, variant, bits, group):
    codes, scale, zero = unpack_int(variant.tensors, variant.site.shape, bits, group)
    out = torch.zeros(x.shape[0], codes.shape[0], dtype=torch.float64)
    for column in range(codes.shape[1]):
        weight = (codes[:, column].double() - zero[:, column // group].double()) * scale[:, column // group].double()
        out += x[:, column].double()[:, None] * weight[None, :]
    return out


def sample(format, shape, tokens=3, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return random_variant(format, shape, generator), torch.randn(tokens, shape[1], generator=generator).to(dtype)


@pytest.mark.parametrize("kernel", [ORT, ORT_INT8, GGML])
@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("tokens", [1, 9])
@pytest.mark.parametrize("dtype", DTYPES)
def test_integer_groups_against_brute_force(kernel, bits, tokens, dtype):
    for rows, group in ((40, 32), (37, 64)):  # ggml interleaves the rows of the first only
        variant, x = sample(f"int{bits}-g{group}", (rows, 128), tokens, dtype, bits)
        assert kernel().supports(variant.format, (rows, 128), "cpu", dtype)
        expected = brute_force(x, variant, bits, group)
        error = (kernel().run(x, kernel().pack(variant, dtype)).double() - expected).norm() / expected.norm()
        assert error < kernel.rounding + (0.006 if dtype == torch.bfloat16 else 2e-6)


@pytest.mark.parametrize("kernel", [ORT_INT8, GGML])
@pytest.mark.parametrize("format", INTEGERS)
def test_weights_are_exact_where_rounding_x_changes_nothing(kernel, format):
    """Every 32 columns of x hold integers up to 127, with 127 among them: the scale that the library takes is one."""
    variant, x = sample(format, (24, 128), 5)
    x = (x * 40).round().clamp(-127, 127)
    x[:, ::32] = 127.0
    expected = x.double() @ decode(format, variant.tensors, (24, 128)).double().T
    error = (kernel().run(x, kernel().pack(variant, torch.float32)).double() - expected).norm() / expected.norm()
    assert error < 2e-6


@pytest.mark.parametrize(
    ("kernel", "formats"),
    [
        pytest.param(OnnxruntimeInt8Kernel, ("int1-g16", "int2-g128", "int3-g256", "int8-g256"), marks=needs_onnxruntime),
        pytest.param(GgmlKernel, ("int1-g32", "int4-g256", "int8-g32", "gguf-q2_k", "gguf-q4_k", "gguf-q6_k"), marks=needs_ggml),
    ],
)
def test_rounding_is_what_is_measured(kernel, formats):
    """As its docstring says: the worst token of 192; here for the formats that it names."""
    worst = 0.0
    for format in formats:
        variant, x = sample(format, (256, 1024), 192)
        weight = decode(format, variant.tensors, (256, 1024)).double()
        scale = x.double().square().mean(1).sqrt()[:, None] * weight.norm(dim=1)
        error = (kernel().run(x, kernel().pack(variant, torch.float32)).double() - x.double() @ weight.T) / scale
        assert error.square().mean().sqrt() < 0.0075
        worst = max(worst, float(error.square().mean(1).sqrt().max()))
    assert kernel.rounding / 2 < worst <= kernel.rounding


@needs_onnxruntime
@pytest.mark.parametrize(
    ("kernel", "bits", "group", "given"),
    [
        (OnnxruntimeKernel, 1, 32, 4), (OnnxruntimeKernel, 4, 32, 4), (OnnxruntimeKernel, 5, 32, 4), (OnnxruntimeKernel, 8, 32, 4),
        (OnnxruntimeInt8Kernel, 1, 32, 2), (OnnxruntimeInt8Kernel, 2, 128, 2), (OnnxruntimeInt8Kernel, 2, 16, 4),
        (OnnxruntimeInt8Kernel, 2, 256, 4), (OnnxruntimeInt8Kernel, 3, 32, 4), (OnnxruntimeInt8Kernel, 5, 32, 8),
    ],
)  # fmt: skip
def test_bits_that_the_operator_is_given(kernel, bits, group, given):
    variant, _ = sample(f"int{bits}-g{group}", (2, 256))
    packed = kernel().pack(variant, torch.bfloat16)
    codes = [tensor for name, tensor in packed.items() if name.startswith("codes")]
    assert [tensor.shape for tensor in codes] == [(2, 256 // group, group * given // 8)] * (2 if given < bits else 1)


@needs_onnxruntime
def test_a_session_lives_as_long_as_its_weight_and_follows_the_threads():
    kernel = OnnxruntimeKernel()
    variant, x = sample("int4-g32", (16, 64))
    packed = kernel.pack(variant, torch.float32)
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 1):
            torch.set_num_threads(threads)
            kernel.run(x, packed)
    finally:
        torch.set_num_threads(before)
    (sessions,) = kernel._sessions.values()
    assert sorted(sessions) == [1, 2]
    kernel.run(x, {name: tensor.clone() for name, tensor in packed.items()})
    gc.collect()
    assert len(kernel._sessions) == 1, "the copy is gone, and its session with it"


@needs_ggml
@pytest.mark.parametrize("type_name", ["q2_k", "q3_k", "q4_k", "q5_k", "q6_k"])
@pytest.mark.parametrize("rows", [16, 13])
def test_k_quants_against_the_decoded_weight(type_name, rows):
    variant, x = sample(f"gguf-{type_name}", (rows, 512), 7)
    packed = GgmlKernel().pack(variant, torch.float32)
    expected = x.double() @ decode(variant.format, variant.tensors, (rows, 512)).double().T
    assert (GgmlKernel().run(x, packed).double() - expected).norm() / expected.norm() < GgmlKernel.rounding
    assert list(packed) == [type_name]
    interleaved = not torch.equal(packed[type_name], variant.tensors["data"])
    assert interleaved == ggml_library.library("ggml").repacks(type_name, rows, 512)
    assert rows == 16 or not interleaved


@needs_ggml
def test_old_graphs_make_room_for_new_numbers_of_tokens(monkeypatch):
    monkeypatch.setattr(ggml_library, "GRAPHS", 2)
    variant, x = sample("int4-g32", (8, 96), 9)
    packed = GgmlKernel().pack(variant, torch.float32)
    whole = GgmlKernel().run(x, packed)
    for tokens in (1, 2, 3, 4, 1):
        assert torch.allclose(GgmlKernel().run(x[:tokens], packed), whole[:tokens], atol=1e-4)


@pytest.mark.parametrize("tokens", [1, 2, 3, 4, 5])
def test_sparse_rows_of_every_kind(tokens):
    if not TorchCsrKernel().supports("bitmask", (3, 40), "cpu", torch.float32):
        pytest.skip("torch has no MKL here")
    for density in (0.0, 0.3, 1.0):
        variant = random_variant("bitmask", (6, 40), torch.Generator().manual_seed(0), density)
        packed = TorchCsrKernel().pack(variant, torch.float32)
        x = torch.randn(tokens, 40, generator=torch.Generator().manual_seed(1))
        expected = x.double() @ decode("bitmask", variant.tensors, (6, 40)).double().T
        assert torch.allclose(TorchCsrKernel().run(x, packed).double(), expected, atol=1e-5)
        assert packed["values"].numel() == packed["columns"].numel() == variant.tensors["values"].numel()


def test_sparse_rows_do_not_warn_that_they_are_in_beta():
    code = (
        "import torch\nfrom evopress_peers.torch_csr import TorchCsrKernel as K\nfrom evopress.latency.sample import random_variant as r\n"
    )
    code += "p = K().pack(r('bitmask', (4, 8), torch.Generator()), torch.float32)\nK().run(torch.ones(2, 8), p)"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("kernel", "format", "shape", "device", "answer"),
    [
        pytest.param(OnnxruntimeKernel, "int4-g16", (5, 48), "cpu", True, marks=needs_onnxruntime),
        pytest.param(OnnxruntimeKernel, "int8-g256", (1, 256), "cpu", True, marks=needs_onnxruntime),
        (OnnxruntimeKernel, "int4-g48", (5, 48), "cpu", False),
        (OnnxruntimeKernel, "int4-g512", (5, 512), "cpu", False),
        (OnnxruntimeKernel, "int4-g32", (5, 48), "cpu", False),
        (OnnxruntimeKernel, "int4-g16", (5, 48), "cuda", False),
        (OnnxruntimeInt8Kernel, "gguf-q4_k", (5, 256), "cpu", False),
        pytest.param(GgmlKernel, "int4-g96", (5, 192), "cpu", True, marks=needs_ggml),
        pytest.param(GgmlKernel, "gguf-q5_k", (5, 256), "cpu", True, marks=needs_ggml),
        (GgmlKernel, "int4-g48", (5, 96), "cpu", False),
        (GgmlKernel, "gguf-q5_k", (5, 128), "cpu", False),
        (GgmlKernel, "gguf-q8_0", (5, 256), "cpu", False),
        (GgmlKernel, "int4-g32", (5, 96), "cuda", False),
        (TorchCsrKernel, "bitmask", (5, 7), "cuda", False),
        (TorchCsrKernel, "dense", (5, 7), "cpu", False),
    ],
)
def test_shape_guards(kernel, format, shape, device, answer):
    assert kernel().supports(format, shape, device, torch.bfloat16) is answer


def test_without_onnxruntime_nothing_is_supported_and_the_error_names_the_extra(monkeypatch):
    monkeypatch.setattr(onnxruntime, "installed", lambda: False)
    variant, _ = sample("int4-g32", (8, 64))
    for kernel in (OnnxruntimeKernel(), OnnxruntimeInt8Kernel()):
        assert not kernel.supports("int4-g32", (8, 64), "cpu", torch.float32)
        with pytest.raises(MissingDependency, match=rf"'{kernel.name}' needs onnxruntime and onnx.*pip install 'evopress\[peers\]'"):
            kernel.pack(variant, torch.float32)


def test_without_xllamacpp_nothing_is_supported_and_the_error_names_the_extra(monkeypatch):
    monkeypatch.setattr(ggml_library.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(ggml_library, "load", ggml_library.load.__wrapped__)
    variant, _ = sample("int4-g32", (8, 64))
    assert not GgmlKernel().supports("int4-g32", (8, 64), "cpu", torch.float32)
    with pytest.raises(MissingDependency, match=r"'ggml' needs ggml from .* xllamacpp, which is not installed.*'evopress\[peers\]'"):
        GgmlKernel().pack(variant, torch.float32)


@needs_ggml
def test_a_library_that_computes_something_else_is_refused(monkeypatch):
    monkeypatch.setattr(
        ggml_library, "pack_q8_0", lambda codes, scale: ggml_library._with_scale(scale, codes.view(torch.uint8).view(-1, 1, 32) ^ 1)
    )
    assert ggml_library.load.__wrapped__() == "whose multiply of q8_0 gives another product than it should"
    monkeypatch.setitem(ggml_library.TYPES, "q4_0", ggml_library.Type(2, 32, 20))
    assert ggml_library.load.__wrapped__() == "whose blocks of q4_0 take 18 bytes, not 20"
    monkeypatch.setitem(ggml_library._FUNCTIONS, "ggml_gone", (None, ()))
    assert "whose library differs from what is known" in ggml_library.load.__wrapped__()


def test_peers_come_after_ours_and_are_not_chosen_where_ours_is_packed():
    points = [
        importlib.metadata.EntryPoint(name, value, "evopress")
        for name, value in (("peers", "evopress_peers"), ("kernels", "evopress_kernels"))
    ]
    registry = Registry.load(points)
    assert not [plugin for plugin in registry.plugins if plugin.error]
    kernels, ours = registry.kernels(), [cls() for cls in evopress_kernels()]
    assert [kernel.name for kernel in kernels] == [cls.name for cls in (*evopress_kernels(), *evopress_peers.evopress_kernels())]
    for format in FORMATS:
        for shape in SHAPES:
            fitting = [kernel for kernel in ours if kernel.packed and kernel.supports(format, shape, "cpu", torch.bfloat16)]
            if fitting:
                assert choose(format, shape, "cpu", torch.bfloat16, kernels).name == fitting[0].name
