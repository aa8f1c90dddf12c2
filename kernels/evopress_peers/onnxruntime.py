"""Kernels `onnxruntime` and `onnxruntime-int8`: MatMulNBits of ONNX Runtime on the CPU. Behind the extra `peers`.

MatMulNBits (contrib operator, domain com.microsoft) multiplies with asymmetric groups of 16 to 256 columns, a power of two. It reorders
the weights when a session is made and has no fast path for weights that come as inputs, so every packed weight gets a session of its own,
made at its first `run` for the number of threads torch has then and kept as long as its `scale` lives: the first call takes milliseconds
more, and the weight lies in memory twice. Idle sessions do not spin, since the next one would wait for their threads.

Which bits the operator is given:

| format    | `onnxruntime`: float32    | `onnxruntime-int8`: activations rounded to 8 bits |
|-----------|---------------------------|---------------------------------------------------|
| int1      | 4                         | 2, in groups of 16 and 256: 4                     |
| int2      | 4                         | 2, in groups of 16 and 256: 4                     |
| int3      | 4                         | 4                                                 |
| int4      | 4                         | 4                                                 |
| int5-int8 | 4 twice, high and low     | 8                                                 |

The operator has 2, 4 and 8 bits, but not always a multiply that reads packed codes: with 2 and 8 bits in float32, and 2 bits in the
smallest and largest groups, it unpacks the whole weight at every call, 25 times slower for one token. There codes are widened to 4 bits,
and 5 to 8 bits are split: code - zero is 16·(high - zero's high) + (low - zero's low).

Shapes: R rows out, C columns in, G groups, T tokens, B bytes a group, Z bytes of zeros a row.
"""

from __future__ import annotations

import importlib.util
import threading
import weakref
from abc import abstractmethod
from collections.abc import Mapping
from functools import cache
from typing import Any, ClassVar, NamedTuple, final

import torch
from torch import Tensor

from evopress.api import Kernel, MissingDependency, Variant
from evopress.api.formats import pack_bits, parse_int_format, unpack_int
from evopress_peers.not_finite import not_finite

GROUPS = (16, 32, 64, 128, 256)
TWO_BIT_GROUPS = (32, 64, 128)
BOUND_TOKENS = 8
"""Up to so many tokens input and output have fixed places in memory for each session, which saves half of what a call costs beside the
multiply; beyond them that no longer matters, and the places would take much memory."""
FLOAT32, INT8 = 1, 4
"""Values of the operator's `accuracy_level`: the type it may round activations to."""


class Part(NamedTuple):
    """One MatMulNBits of a weight. suffix: of its tensors in the packed mapping. factor: what its product is multiplied by."""

    suffix: str
    factor: float


WHOLE = (Part("", 1.0),)
HALVES = (Part("_high", 16.0), Part("_low", 1.0))


class _MatMulNBits(Kernel):
    """What both kernels share; they differ in the operator's accuracy level and in the bits it is given.

    bfloat16 x is converted to float32 in `run` and the result back; the operator takes no bfloat16 on the CPU.

    packed: `codes` R×G×B uint8, `zero` R×Z uint8, both with one of either half for 5 to 8 bits in float32 (`codes_high`, …), and `scale`
    R×G float32.
    """

    peer: ClassVar[bool] = True
    formats: ClassVar[tuple[str, ...]] = (r"int[1-8]-g(16|32|64|128|256)",)
    needs: ClassVar[str] = "pip install 'evopress[peers]'"
    libraries: ClassVar[tuple[str, ...]] = ("onnxruntime",)
    accuracy: ClassVar[int]

    def __init__(self) -> None:
        self._sessions: dict[int, dict[int, _Session]] = {}

    @abstractmethod
    def operator_bits(self, bits: int, group: int) -> int:
        """Bits the operator is given for codes of so many bits: 2, 4 or 8; one half's bits where a code is split."""

    @final
    def supports(self, format: str, shape: tuple[int, int], device: str, dtype: torch.dtype) -> bool:
        """1 to 8 bits on the CPU, C divisible by a group of 16, 32, 64, 128 or 256, where onnxruntime is installed."""
        found = parse_int_format(format)
        if found is None or found[1] not in GROUPS or shape[0] < 1 or shape[1] < 1 or shape[1] % found[1]:
            return False
        return device == "cpu" and installed()

    @final
    def pack(self, variant: Variant, dtype: torch.dtype) -> Mapping[str, Tensor]:
        """Widen or split the codes. Raises MissingDependency."""
        _require(self.name)
        found = parse_int_format(variant.format)
        if found is None:
            raise ValueError(f"format {variant.format!r} of {variant.site.name!r} is no integer format; ask supports() first")
        codes_RC, scale_RG, zero_RG = unpack_int(variant.tensors, variant.site.shape, *found)
        given, shape_RG = self.operator_bits(*found), (*scale_RG.shape, -1)
        packed = {"scale": scale_RG.to(torch.float32).contiguous()}
        for suffix, codes, zero in _parts(codes_RC, zero_RG, split=given < found[0]):
            packed["codes" + suffix] = pack_bits(codes, given).view(shape_RG)
            packed["zero" + suffix] = pack_bits(zero, given)
        return packed

    @final
    def run(self, x: Tensor, packed: Mapping[str, Tensor]) -> Tensor:
        """T×C to T×R."""
        key = packed["scale"]
        sessions = self._sessions.get(id(key))
        if sessions is None:
            sessions = self._sessions[id(key)] = {}
            weakref.finalize(key, self._sessions.pop, id(key), None)
        threads = torch.get_num_threads()
        session = sessions.get(threads)
        if session is None:
            session = sessions[threads] = _Session(packed, x.shape[1], threads, self.accuracy)
        return session.run(x)


class OnnxruntimeKernel(_MatMulNBits):
    """x Wᵀ by MatMulNBits in float32: exact weights, exact activations."""

    name: ClassVar[str] = "onnxruntime"
    accuracy: ClassVar[int] = FLOAT32

    @final
    def operator_bits(self, bits: int, group: int) -> int:
        """Always 4: the only codes that the operator multiplies packed in float32."""
        return 4


class OnnxruntimeInt8Kernel(_MatMulNBits):
    """x Wᵀ by MatMulNBits with activations rounded to 8 bits, one scale for each group of a token; exact weights.

    rounding: the largest error of one token (rms over its rows, over rms(x)·‖w‖) among 192 tokens of normally distributed x for each of 1
    to 8 bits in groups of 16 to 256, 256 random rows of 1,024 columns. It grows with the group; the rms over all tokens goes from 0.0047 at
    16 to 0.0074 at 256. All rows share the rounding of x, so tokens differ. `test_peer_kernels.py` measures a part of this again.
    """

    name: ClassVar[str] = "onnxruntime-int8"
    rounding: ClassVar[float] = 0.014
    accuracy: ClassVar[int] = INT8

    @final
    def operator_bits(self, bits: int, group: int) -> int:
        """The next of 2, 4 and 8, where 2 bits have a multiply."""
        return 2 if bits <= 2 and group in TWO_BIT_GROUPS else 4 if bits <= 4 else 8


class _Session:
    """A session of one packed weight for a number of threads."""

    def __init__(self, packed: Mapping[str, Tensor], columns: int, threads: int, accuracy: int) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.enable_cpu_mem_arena = False  # an arena for each session would keep the memory of its largest call
        options.log_severity_level = 3
        values = [onnxruntime.OrtValue.ortvalue_from_numpy(tensor.numpy()) for tensor in packed.values()]
        options.add_external_initializers(list(packed), values)
        self._session = onnxruntime.InferenceSession(_model(packed, columns, accuracy), options, providers=["CPUExecutionProvider"])
        self._rounds = accuracy == INT8
        self._rows = packed["scale"].shape[0]
        self._bound: dict[int, tuple[Any, Tensor, Tensor]] = {}
        self._lock = threading.Lock()

    def run(self, x_TC: Tensor) -> Tensor:
        """T×C to T×R."""
        if x_TC.shape[0] > BOUND_TOKENS:
            wide_TC = x_TC.to(torch.float32).contiguous()
            return self._finish(wide_TC, torch.from_numpy(self._session.run(None, {"x": wide_TC.numpy()})[0]), x_TC.dtype)
        with self._lock:
            binding, wide_TC, out_TR = self._bound.get(x_TC.shape[0]) or self._bind(*x_TC.shape)
            wide_TC.copy_(x_TC)
            self._session.run_with_iobinding(binding)
            return self._finish(wide_TC, out_TR, x_TC.dtype)

    def _finish(self, wide_TC: Tensor, out_TR: Tensor, dtype: torch.dtype) -> Tensor:
        if self._rounds:
            return (out_TR + not_finite(wide_TC)).to(dtype)
        return out_TR.to(dtype, copy=True)

    def _bind(self, tokens: int, columns: int) -> tuple[Any, Tensor, Tensor]:
        import onnxruntime

        wide_TC, out_TR = torch.empty(tokens, columns), torch.empty(tokens, self._rows)
        binding = self._session.io_binding()
        binding.bind_ortvalue_input("x", onnxruntime.OrtValue.ortvalue_from_numpy(wide_TC.numpy()))
        binding.bind_ortvalue_output("out", onnxruntime.OrtValue.ortvalue_from_numpy(out_TR.numpy()))
        self._bound[tokens] = binding, wide_TC, out_TR
        return self._bound[tokens]


def _parts(codes_RC: Tensor, zero_RG: Tensor, split: bool) -> list[tuple[str, Tensor, Tensor]]:
    """(suffix, codes, zero) of each MatMulNBits."""
    if not split:
        return [("", codes_RC, zero_RG)]
    return [("_high", codes_RC >> 4, zero_RG >> 4), ("_low", codes_RC & 15, zero_RG & 15)]


def _model(packed: Mapping[str, Tensor], columns: int, accuracy: int) -> bytes:
    """The model: one MatMulNBits, or two and their sum; weights are named here and handed over in memory."""
    from onnx import TensorProto, helper

    rows, groups = packed["scale"].shape
    nodes: list[Any] = []
    terms: list[str] = []
    for suffix, factor in WHOLE if "codes" in packed else HALVES:
        group, product = columns // groups, "product" + suffix
        bits = packed["codes" + suffix].shape[2] * 8 // group
        shape = {"K": columns, "N": rows, "bits": bits, "block_size": group, "accuracy_level": accuracy}
        inputs = ["x", "codes" + suffix, "scale", "zero" + suffix]
        nodes.append(helper.make_node("MatMulNBits", inputs, [product], domain="com.microsoft", **shape))
        if factor != 1:
            nodes.append(helper.make_node("Constant", [], ["factor"], value=helper.make_tensor("", TensorProto.FLOAT, [], [factor])))
            nodes.append(helper.make_node("Mul", [product, "factor"], [product := "scaled" + suffix]))
        terms.append(product)
    if len(terms) == 1:
        nodes[-1].output[:] = ["out"]
    else:
        nodes.append(helper.make_node("Sum", terms, ["out"]))
    types = {torch.float32: TensorProto.FLOAT, torch.uint8: TensorProto.UINT8}
    weights = []
    for name, tensor in packed.items():
        weight = TensorProto(name=name, data_type=types[tensor.dtype], dims=tensor.shape, data_location=TensorProto.EXTERNAL)
        weight.external_data.add(key="location", value=name)
        weights.append(weight)
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["tokens", columns])
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, ["tokens", rows])
    graph = helper.make_graph(nodes, "weight", [x], [out], weights)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model: bytes = helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()
    return model


@cache
def installed() -> bool:
    """Are onnxruntime and onnx there? onnx only writes the model, a few hundred bytes."""
    return all(importlib.util.find_spec(name) is not None for name in ("onnxruntime", "onnx"))


def _require(name: str) -> None:
    if not installed():
        raise MissingDependency(
            f"Kernel {name!r} needs onnxruntime and onnx, which are not both installed.", "Run: pip install 'evopress[peers]'."
        )
