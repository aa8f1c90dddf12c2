"""ggml, the tensor library of llama.cpp, called by ctypes in the shared library of the wheel `xllamacpp`: x Wᵀ for its block formats.

Not a kernel and not a binding of all of ggml: one multiply on the CPU backend, and the order of weights that its CPU_REPACK buffers use.
Only exported C functions are called. Weights, x and the result stay in torch's memory: a graph is built once for a type, shape and number
of tokens, and the address of each tensor's data is put in before every run. ggml has no function for that, so the place of the address
within a tensor is found by looking for it, and `load` computes a known product before anyone relies on it. The wheel's ggml is built with
OpenMP; torch, imported here first, has loaded an OpenMP library for the whole process, so both take turns with the same threads.

Called by ggml.py. Shapes: R rows out, C columns in, T tokens, B bytes a row.
"""

from __future__ import annotations

import ctypes
import importlib.util
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from evopress.api import EvopressError, MissingDependency

POINTER = ctypes.c_void_p
GRAPHS = 64
"""So many numbers of tokens keep their graph for each type and shape; a graph takes some kilobytes and is built in microseconds."""
REPACK = b"CPU_REPACK"
HINT = "Run: pip install 'evopress[peers]'."


class Type(NamedTuple):
    """A block format. number: in ggml's enumeration, fixed by the GGUF file format. columns and block_bytes: of one block."""

    number: int
    columns: int
    block_bytes: int


TYPES = {
    "q4_0": Type(2, 32, 18),
    "q8_0": Type(8, 32, 34),
    "q2_k": Type(10, 256, 84),
    "q3_k": Type(11, 256, 110),
    "q4_k": Type(12, 256, 144),
    "q5_k": Type(13, 256, 176),
    "q6_k": Type(14, 256, 210),
}
_FLOAT32 = 0


class _Parameters(ctypes.Structure):
    """ggml_init_params."""

    _fields_ = (("size", ctypes.c_size_t), ("buffer", POINTER), ("no_alloc", ctypes.c_bool))


_FUNCTIONS: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "ggml_backend_buffer_free": (None, (POINTER,)),
    "ggml_backend_buffer_get_base": (POINTER, (POINTER,)),
    "ggml_backend_buft_alloc_buffer": (POINTER, (POINTER, ctypes.c_size_t)),
    "ggml_backend_buft_get_alloc_size": (ctypes.c_size_t, (POINTER, POINTER)),
    "ggml_backend_buft_name": (ctypes.c_char_p, (POINTER,)),
    "ggml_backend_cpu_init": (POINTER, ()),
    "ggml_backend_cpu_reg": (POINTER, ()),
    "ggml_backend_cpu_set_n_threads": (None, (POINTER, ctypes.c_int)),
    "ggml_backend_dev_supports_op": (ctypes.c_bool, (POINTER, POINTER)),
    "ggml_backend_graph_compute": (ctypes.c_int, (POINTER, POINTER)),
    "ggml_backend_reg_dev_get": (POINTER, (POINTER, ctypes.c_size_t)),
    "ggml_backend_reg_get_proc_address": (POINTER, (POINTER, ctypes.c_char_p)),
    "ggml_backend_tensor_alloc": (ctypes.c_int, (POINTER, POINTER, POINTER)),
    "ggml_backend_tensor_set": (None, (POINTER, POINTER, ctypes.c_size_t, ctypes.c_size_t)),
    "ggml_build_forward_expand": (None, (POINTER, POINTER)),
    "ggml_free": (None, (POINTER,)),
    "ggml_get_data": (POINTER, (POINTER,)),
    "ggml_graph_overhead_custom": (ctypes.c_size_t, (ctypes.c_size_t, ctypes.c_bool)),
    "ggml_init": (POINTER, (_Parameters,)),
    "ggml_log_get": (None, (POINTER, POINTER)),
    "ggml_log_set": (None, (POINTER, POINTER)),
    "ggml_mul_mat": (POINTER, (POINTER, POINTER, POINTER)),
    "ggml_new_graph_custom": (POINTER, (POINTER, ctypes.c_size_t, ctypes.c_bool)),
    "ggml_new_tensor_2d": (POINTER, (POINTER, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)),
    "ggml_row_size": (ctypes.c_size_t, (ctypes.c_int, ctypes.c_int64)),
    "ggml_tensor_overhead": (ctypes.c_size_t, ()),
}
_LOG = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, POINTER)
_NODES = 8


class Ggml:
    """The loaded library with a CPU backend. One multiply runs at a time. Get it from `library`."""

    def __init__(self, path: Path) -> None:
        loaded = ctypes.CDLL(str(path))
        for name, (result, arguments) in _FUNCTIONS.items():
            function = getattr(loaded, name)
            function.restype, function.argtypes = result, arguments
        self._c: Any = loaded
        self._lock = threading.Lock()
        self._backend = self._c.ggml_backend_cpu_init()
        self._device = self._c.ggml_backend_reg_dev_get(self._c.ggml_backend_cpu_reg(), 0)
        self._repack_type = self._find_repack_type()
        self._data_offset = self._find_data_offset()
        self._weights: dict[tuple[str, int, int], _Weight] = {}

    def arrange(self, type_name: str, data_RB: Tensor, columns: int) -> Tensor:
        """Rows of blocks in the order that `multiply` reads: several rows interleaved where ggml has a faster multiply for that."""
        with self._lock:
            return self._weight(type_name, data_RB.shape[0], columns).arrange(data_RB)

    def multiply(self, type_name: str, data_RB: Tensor, x_TC: Tensor, threads: int) -> Tensor:
        """x Wᵀ in float32, T×R, for what `arrange` gave. ggml rounds x to 8 bits in blocks of as many columns as the type's."""
        x_TC = x_TC.contiguous()
        out_TR = torch.empty(x_TC.shape[0], data_RB.shape[0])
        with self._lock:
            self._c.ggml_backend_cpu_set_n_threads(self._backend, threads)
            self._weight(type_name, data_RB.shape[0], x_TC.shape[1]).multiply(self._backend, data_RB, x_TC, out_TR)
        return out_TR

    def repacks(self, type_name: str, rows: int, columns: int) -> bool:
        """Does `arrange` interleave rows here?"""
        return self._weight(type_name, rows, columns).repacked

    def _weight(self, type_name: str, rows: int, columns: int) -> _Weight:
        key = (type_name, rows, columns)
        found = self._weights.get(key)
        if found is None:
            found = self._weights[key] = _Weight(self._c, TYPES[type_name], rows, columns, self._data_offset)
            if self._repack_type is not None:
                found.interleave(self._device, self._repack_type)
        return found

    def _find_repack_type(self) -> int | None:
        """The type of buffer in which ggml keeps interleaved rows, where this processor gains by it."""
        address = self._c.ggml_backend_reg_get_proc_address(self._c.ggml_backend_cpu_reg(), b"ggml_backend_dev_get_extra_bufts")
        if not address:
            return None
        found = ctypes.CFUNCTYPE(ctypes.POINTER(POINTER), POINTER)(address)(self._device)
        place = 0
        while found and found[place]:
            if self._c.ggml_backend_buft_name(found[place]) == REPACK:
                return int(found[place])
            place += 1
        return None

    def _find_data_offset(self) -> int:
        """Where in a tensor the address of its data lies."""
        context = self._c.ggml_init(_Parameters(2**16, None, False))
        tensor = self._c.ggml_new_tensor_2d(context, _FLOAT32, 4, 4)
        words = (ctypes.c_size_t * (self._c.ggml_tensor_overhead() // ctypes.sizeof(ctypes.c_size_t))).from_address(tensor)
        offset = list(words).index(self._c.ggml_get_data(tensor)) * ctypes.sizeof(ctypes.c_size_t)
        self._c.ggml_free(context)
        return offset


class _Weight:
    """A weight of one type and shape: its tensor in ggml, and a graph for every number of tokens."""

    def __init__(self, c: Any, type_: Type, rows: int, columns: int, data_offset: int) -> None:
        self._c, self._type, self._shape, self._offset = c, type_, (rows, columns), data_offset
        self._buffer: int | None = None
        self._graphs: dict[int, tuple[Any, Any, int, int]] = {}
        self._new_tensor()

    @property
    def repacked(self) -> bool:
        """Are rows interleaved?"""
        return self._buffer is not None

    def interleave(self, device: int, repack_type: int) -> None:
        """Put the tensor in a buffer of that kind, which makes ggml take its interleaved multiply, if it has one for this type and shape.

        The buffer is as large as the weight but touched only by `arrange`.
        """
        buffer = self._c.ggml_backend_buft_alloc_buffer(repack_type, self._c.ggml_backend_buft_get_alloc_size(repack_type, self._tensor))
        self._c.ggml_backend_tensor_alloc(buffer, self._tensor, self._c.ggml_backend_buffer_get_base(buffer))
        trial = self._new_context(2)
        x = self._c.ggml_new_tensor_2d(trial, _FLOAT32, self._shape[1], 1)
        takes = self._c.ggml_backend_dev_supports_op(device, self._c.ggml_mul_mat(trial, self._tensor, x))
        self._c.ggml_free(trial)
        if takes:
            self._buffer = buffer
            return
        self._c.ggml_backend_buffer_free(buffer)
        self._c.ggml_free(self._context)
        self._new_tensor()

    def arrange(self, data_RB: Tensor) -> Tensor:
        """Rows as `multiply` reads them."""
        if self._buffer is None:
            return data_RB
        out_RB = torch.empty_like(data_RB)
        base = self._c.ggml_backend_buffer_get_base(self._buffer)
        self._address.value = base
        with self._quiet():
            self._c.ggml_backend_tensor_set(self._tensor, data_RB.data_ptr(), 0, data_RB.numel())
        ctypes.memmove(out_RB.data_ptr(), base, data_RB.numel())
        return out_RB

    def multiply(self, backend: int, data_RB: Tensor, x_TC: Tensor, out_TR: Tensor) -> None:
        """Write x Wᵀ to `out_TR`."""
        x, out, graph, _ = self._graphs.get(x_TC.shape[0]) or self._build(x_TC.shape[0])
        self._address.value, x.value, out.value = data_RB.data_ptr(), x_TC.data_ptr(), out_TR.data_ptr()
        status = self._c.ggml_backend_graph_compute(backend, graph)
        if status:
            raise RuntimeError(f"ggml answers {status} to a multiply of {self._shape} by {tuple(x_TC.shape)}")

    def _new_tensor(self) -> None:
        self._context = self._new_context(1)
        self._tensor = self._c.ggml_new_tensor_2d(self._context, self._type.number, self._shape[1], self._shape[0])
        self._address = self._place(self._tensor)

    def _build(self, tokens: int) -> tuple[Any, Any, int, int]:
        if len(self._graphs) >= GRAPHS:
            for *_, context in self._graphs.values():
                self._c.ggml_free(context)
            self._graphs.clear()
        context = self._new_context(2, graph=True)
        x = self._c.ggml_new_tensor_2d(context, _FLOAT32, self._shape[1], tokens)
        out = self._c.ggml_mul_mat(context, self._tensor, x)
        graph = self._c.ggml_new_graph_custom(context, _NODES, False)
        self._c.ggml_build_forward_expand(graph, out)
        self._graphs[tokens] = self._place(x), self._place(out), graph, context
        return self._graphs[tokens]

    def _new_context(self, tensors: int, graph: bool = False) -> int:
        size = (tensors + 1) * self._c.ggml_tensor_overhead() + (self._c.ggml_graph_overhead_custom(_NODES, False) if graph else 0)
        context: int = self._c.ggml_init(_Parameters(size + 1024, None, True))
        return context

    def _place(self, tensor: int) -> Any:
        return POINTER.from_address(tensor + self._offset)

    @contextmanager
    def _quiet(self) -> Iterator[None]:
        """ggml prints a line for every weight that it interleaves."""
        function, data = POINTER(), POINTER()
        self._c.ggml_log_get(ctypes.byref(function), ctypes.byref(data))
        silent = _LOG(lambda *_: None)
        self._c.ggml_log_set(ctypes.cast(silent, POINTER), None)
        try:
            yield
        finally:
            self._c.ggml_log_set(function, data)


def library(name: str) -> Ggml:
    """ggml, for the kernel of that name. Raises MissingDependency."""
    found = load()
    if isinstance(found, Ggml):
        return found
    raise MissingDependency(f"Kernel {name!r} needs ggml from the package xllamacpp, {found}.", HINT)


@cache
def load() -> Ggml | str:
    """ggml, or why there is none: not installed, a function is gone, or it does not compute what it should."""
    found = importlib.util.find_spec("xllamacpp")
    if found is None or not found.submodule_search_locations:
        return "which is not installed"
    files = [file for folder in found.submodule_search_locations for file in sorted(Path(folder).glob("xllamacpp*.so"))]
    if not files:
        return "which has no shared library here"
    try:
        ggml = Ggml(files[0])
        problem = _problem(ggml)
    except (OSError, AttributeError, ValueError, EvopressError) as error:
        return f"whose library differs from what is known: {error}"
    return problem or ggml


def _problem(ggml: Ggml) -> str:
    """What is wrong with the library, "" if nothing: sizes of blocks, and products whose every step is exact."""
    for name, type_ in TYPES.items():
        size = ggml._c.ggml_row_size(type_.number, type_.columns)
        if size != type_.block_bytes:
            return f"whose blocks of {name} take {size} bytes, not {type_.block_bytes}"
    codes_RC = torch.arange(16 * 32, dtype=torch.int32).mul(7).remainder(15).sub(7).view(16, 32).to(torch.int8)
    x_TC = torch.arange(2 * 32).remainder(9).sub(4).view(2, 32).float()
    x_TC[:, 0] = 127.0  # makes the scale of x one, so that rounding x to 8 bits changes nothing
    for name, pack in (("q4_0", pack_q4_0), ("q8_0", pack_q8_0)):
        for rows in (16, 7):  # 7 rows are never interleaved
            data_RB = ggml.arrange(name, pack(codes_RC[:rows], torch.ones(rows, 1)), 32)
            if not torch.equal(ggml.multiply(name, data_RB, x_TC, 1), x_TC @ codes_RC[:rows].float().T):
                return f"whose multiply of {name} gives another product than it should"
    return ""


def pack_q4_0(codes_RC: Tensor, scale_RN: Tensor) -> Tensor:
    """Signed codes -8..7 in q4_0: of 32 columns a float16 scale and 16 bytes, the first half of the columns in their low bits."""
    blocks_RNc = (codes_RC + 8).to(torch.uint8).view(codes_RC.shape[0], -1, 32)
    return _with_scale(scale_RN, blocks_RNc[..., :16] | blocks_RNc[..., 16:] << 4)


def pack_q8_0(codes_RC: Tensor, scale_RN: Tensor) -> Tensor:
    """Signed codes -128..127 in q8_0: of 32 columns a float16 scale and 32 bytes."""
    return _with_scale(scale_RN, codes_RC.to(torch.int8).view(torch.uint8).view(codes_RC.shape[0], -1, 32))


def _with_scale(scale_RN: Tensor, bytes_RNb: Tensor) -> Tensor:
    scale_RN2 = scale_RN.to(torch.float16).contiguous().unsqueeze(-1).view(torch.uint8)
    return torch.cat([scale_RN2, bytes_RNb], dim=-1).flatten(1).contiguous()
