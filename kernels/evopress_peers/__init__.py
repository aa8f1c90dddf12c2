"""Kernels of other projects behind our interface, to be timed and compared with: onnxruntime, onnxruntime-int8, ggml, torch-csr.

They come after the built-in ones in the registry. `pip install 'evopress[peers]'` brings the libraries; without its library a kernel
supports nothing and breaks nothing. CPU only. Called by the registry.

| kernel             | formats                                     | shapes                          | library     | activations |
|--------------------|---------------------------------------------|---------------------------------|-------------|-------------|
| `onnxruntime`      | `int1`-`int8`, `-g16…-g256` (powers of two) | C divisible by the group        | onnxruntime | float32     |
| `onnxruntime-int8` | the same                                    | C divisible by the group        | onnxruntime | rounded to 8 bits |
| `ggml`             | `int1`-`int8`, groups of 32·n               | C divisible by the group        | xllamacpp   | rounded to 8 bits |
| `ggml`             | `gguf-q2_k`-`gguf-q6_k`                     | C divisible by 256              | xllamacpp   | rounded to 8 bits |
| `torch-csr`        | `bitmask`                                   | any                             | torch       | float32     |
"""

from __future__ import annotations

from evopress.api import Kernel
from evopress.hooks.specs import hookimpl


@hookimpl
def evopress_kernels() -> list[type[Kernel]]:
    """The peers, those that compute exactly first."""
    from evopress_peers.ggml import GgmlKernel
    from evopress_peers.onnxruntime import OnnxruntimeInt8Kernel, OnnxruntimeKernel
    from evopress_peers.torch_csr import TorchCsrKernel

    return [OnnxruntimeKernel, OnnxruntimeInt8Kernel, GgmlKernel, TorchCsrKernel]
