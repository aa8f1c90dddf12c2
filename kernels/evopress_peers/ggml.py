"""Kernel `ggml`: llama.cpp's CPU multiply, for our integer groups and for its own K-quants. Behind the extra `peers`.

See ggml_library.py for how ggml is called. What becomes of a format:

| format                  | ggml's type | how                                                                        |
|-------------------------|-------------|----------------------------------------------------------------------------|
| int1-int4, groups 32·n  | q4_0        | codes centred on 8; the zeros come back as an extra product                |
| int5-int8, groups 32·n  | q8_0        | codes centred on 0; likewise                                               |
| gguf-q2_k … gguf-q6_k   | the same    | the file's own blocks                                                      |

Not q4_1 and q5_1, which hold a minimum beside the scale: they keep it in float16, where zero·scale is not exact, and for one token q4_1
is slower than q4_0 with interleaved rows and the extra product, q5_1 slower than q8_0 (one thread, 4,096 x 4,096, AVX2).

Rows are interleaved (ggml's "repack") where ggml does so by itself: on processors with AVX2 in q4_0 and q4_k, for a multiple of 8 rows.
The wheel's library is built for AVX2, without AVX-512 and AMX: llama.cpp built for the machine may be faster.

Shapes: R rows out, C columns in, G groups, T tokens, B bytes a row.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from evopress.api import Kernel, Variant
from evopress.api.formats import parse_gguf_format, parse_int_format, unpack_int
from evopress_peers import ggml_library
from evopress_peers.not_finite import not_finite

BLOCK = 32
"""Columns that share a scale in q4_0 and q8_0; a group is one block or several with the same scale."""
K_BLOCK = 256


class GgmlKernel(Kernel):
    """x Wᵀ by ggml's mul_mat with as many threads as torch has; CPU; activations rounded to 8 bits for every 32 or 256 columns.

    Weights are exact: (code - zero)·scale = (code - m)·scale + (m - zero)·scale with m = 2^(bits-1). The first term is ggml's, its scale
    the format's own float16; the second is the sum of x over each group times a matrix, in float32. bfloat16 x is converted to float32 in
    `run`.

    rounding: the largest error of one token (rms over its rows, over rms(x)·‖w‖) among 192 tokens of normally distributed x for each
    format, 256 random rows of 1,024 columns. The rms over all tokens is 0.0070 for the K-quants, which share a scale of x among 256
    columns, 0.0057 for int1 and 0.0043 at most for the others. `test_peer_kernels.py` measures a part of this again.

    packed: one tensor named after ggml's type, R×B uint8; for integer groups also `offset` R×G float32.
    """

    name: ClassVar[str] = "ggml"
    peer: ClassVar[bool] = True
    formats: ClassVar[tuple[str, ...]] = (r"int[1-8]-g\d+", r"gguf-q[2-6]_k")
    rounding: ClassVar[float] = 0.011
    needs: ClassVar[str] = "pip install 'evopress[peers]'"
    libraries: ClassVar[tuple[str, ...]] = ("xllamacpp",)

    def supports(self, format: str, shape: tuple[int, int], device: str, dtype: torch.dtype) -> bool:
        """Groups of 32·n columns that divide C, K-quants with C divisible by 256; CPU, where xllamacpp is installed and works."""
        grid, (rows, columns) = parse_int_format(format), shape
        if grid is not None:
            fits = grid[1] % BLOCK == 0 and columns % grid[1] == 0
        else:
            fits = parse_gguf_format(format) is not None and columns % K_BLOCK == 0
        return fits and rows > 0 and columns > 0 and device == "cpu" and isinstance(ggml_library.load(), ggml_library.Ggml)

    def pack(self, variant: Variant, dtype: torch.dtype) -> Mapping[str, Tensor]:
        """To ggml's blocks, in the order its multiply reads. Raises MissingDependency."""
        ggml, shape = ggml_library.library(self.name), variant.site.shape
        type_name = parse_gguf_format(variant.format)
        if type_name is not None:
            return {type_name: ggml.arrange(type_name, variant.tensors["data"].contiguous(), shape[1])}
        grid = parse_int_format(variant.format)
        if grid is None:
            raise ValueError(f"format {variant.format!r} of {variant.site.name!r} is neither integer nor gguf; ask supports() first")
        codes_RC, scale_RG, zero_RG = unpack_int(variant.tensors, shape, *grid)
        middle = 2 ** (grid[0] - 1)
        signed_RC = codes_RC.to(torch.int16) - middle
        scale_RN = scale_RG.repeat_interleave(grid[1] // BLOCK, dim=1)
        type_name, pack = ("q4_0", ggml_library.pack_q4_0) if grid[0] <= 4 else ("q8_0", ggml_library.pack_q8_0)
        offset_RG = (middle - zero_RG.to(torch.float32)) * scale_RG
        return {type_name: ggml.arrange(type_name, pack(signed_RC, scale_RN), shape[1]), "offset": offset_RG}

    def run(self, x: Tensor, packed: Mapping[str, Tensor]) -> Tensor:
        """T×C to T×R."""
        x_TC, offset_RG = x.to(torch.float32), packed.get("offset")
        type_name = next(name for name in packed if name != "offset")
        out_TR = ggml_library.library(self.name).multiply(type_name, packed[type_name], x_TC, torch.get_num_threads())
        if offset_RG is None:
            return out_TR.add_(not_finite(x_TC)).to(x.dtype)
        # The sums keep the NaN and infinity of x, which ggml's rounding may lose.
        groups = offset_RG.shape[1]
        sums_TG = x_TC.reshape(x.shape[0], groups, x.shape[1] // groups).sum(-1)
        return out_TR.addmm_(sums_TG, offset_RG.T).to(x.dtype)
