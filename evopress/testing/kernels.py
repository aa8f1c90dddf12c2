"""Conformance check for kernels, for plugin authors: `check_kernel(MyKernel())` raises AssertionError with what is wrong, or returns.

Checks numbers, aliasing, unwritten outputs, NaN and determinism, never speed. Shapes: R rows out, C columns in, T tokens.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from evopress.api import Kernel, MissingDependency, Variant
from evopress.api.formats import GGUF_BLOCKS, column_step, fits_format, variant_bytes
from evopress.latency.sample import random_variant

VariantOf = Callable[[str, tuple[int, int], torch.Generator], Variant]
SHAPES = ((1, 1), (7, 33), (5, 48), (16, 32), (33, 128), (48, 96), (64, 64), (80, 192), (96, 512), (112, 256), (272, 512))
"""The last has weights enough that a kernel may share them among threads."""
PLAIN = ("dense", "absent", "bitmask", "sparse-2:4", "lowrank-r1", "lowrank-r24")
GROUPED = tuple(f"int{bits}-g{group}" for bits in range(1, 9) for group in (16, 32, 48, 64, 128, 256))
FORMATS = (*PLAIN, *GROUPED, *(f"gguf-{type_name}" for type_name in GGUF_BLOCKS))
TOKENS = (1, 2, 5, 17, 64, 65, 256)
DTYPES = (torch.bfloat16, torch.float32)


RANDOM_SHAPES = 2
"""So many more shapes a format, drawn from the seed."""


def tolerance(dtype: torch.dtype, columns: int, rounding: float = 0.0) -> float:
    """Allowed error relative to rms(x)·‖w‖: one spacing of `dtype` for rounding scales and output, float32 accumulation, and what the
    kernel itself states.
    """
    return torch.finfo(dtype).eps + 2 * torch.finfo(torch.float32).eps * math.sqrt(columns) + rounding


def check_kernel(
    kernel: Kernel, seed: int = 0, formats: Sequence[str] = FORMATS, shapes: Sequence[tuple[int, int]] = SHAPES,
    variant_of: VariantOf = random_variant, device: str = "cpu",
) -> int:  # fmt: skip
    """Check a kernel at every format, shape and type of activation it says it supports on a device; returns how many it was checked at.

    For each, and for a few more shapes drawn from the seed: 1 to 256 tokens against a float64 `reference` (with `tolerance`), with one
    thread and with several; a reference linear in x; outputs written in full (memory is poisoned with NaN); an input that is not
    contiguous, and one without tokens; packed tensors that were copied elsewhere; results that share no memory with each other, the input
    or the weights; inputs and variants left unchanged; the same bits twice; NaN and infinity that stay in their row and do not vanish; no
    more bytes read than packed. variant_of makes variants of formats that are not built in. device: where `run` gets x and the packed
    tensors; weights are packed and the reference is computed on the CPU. Raises AssertionError naming kernel, format, shape, tokens and
    type; MissingDependency for a kernel that needs something and supports nothing.
    """
    generator = torch.Generator().manual_seed(seed)
    if not kernel.name or not kernel.formats:
        raise AssertionError(f"{type(kernel).__name__} must have a name and at least one format")
    cases = list(_supported(kernel, formats, shapes, device, generator))
    if not cases and kernel.needs:
        raise MissingDependency(f"Kernel {kernel.name!r} supports nothing here: what it needs is missing.", f"Next step: {kernel.needs}.")
    if not cases:
        raise AssertionError(
            f"kernel {kernel.name!r} supports none of the {len(formats)} formats at any of the {len(shapes)} shapes on {device}"
        )
    for turn, (format, shape, dtype) in enumerate(cases):
        variant = variant_of(format, shape, generator)
        before = {key: tensor.clone() for key, tensor in variant.tensors.items()}
        packed = {key: tensor.to(device) for key, tensor in kernel.pack(variant, dtype).items()}
        # Every case meets one token and two other sizes in turn; all cases together meet all sizes.
        for tokens in {1, TOKENS[turn % len(TOKENS)], TOKENS[(turn + 3) % len(TOKENS)]}:
            x_TC = torch.randn(tokens, shape[1], generator=generator).to(dtype)
            where = f"kernel {kernel.name!r} at {format} {shape}, {tokens} tokens, {str(dtype).removeprefix('torch.')}"
            _check_run(kernel, variant, packed, x_TC.to(device), where)
        _same(before, variant.tensors, f"kernel {kernel.name!r} at {format} {shape}: pack or run changed the variant's tensors")
    return len(cases)


def _supported(
    kernel: Kernel, formats: Sequence[str], shapes: Sequence[tuple[int, int]], device: str, generator: torch.Generator
) -> Iterator[tuple[str, tuple[int, int], torch.dtype]]:  # fmt: skip
    for format in formats:
        listed = any(re.fullmatch(pattern, format) for pattern in kernel.formats)
        for shape in (*shapes, *_drawn(format, generator)):
            if not fits_format(format, shape):
                continue
            for dtype in DTYPES:
                if kernel.supports(format, shape, device, dtype):
                    if not listed:
                        raise AssertionError(
                            f"kernel {kernel.name!r} supports {format!r}, which none of its formats {kernel.formats} matches"
                        )
                    yield format, shape, dtype


def _drawn(format: str, generator: torch.Generator) -> list[tuple[int, int]]:
    """Shapes of up to 200 rows and 600 columns that the format fits."""
    rows, columns = torch.randint(1, 200, (2, RANDOM_SHAPES), generator=generator).tolist()
    step = max(4, column_step(format))
    return [(r, step * (1 + c * 3 // step)) for r, c in zip(rows, columns, strict=True)]


def _check_run(kernel: Kernel, variant: Variant, packed: Mapping[str, Tensor], x_TC: Tensor, where: str) -> None:
    tensors: dict[str, Tensor] = dict(packed)
    weights, given = {key: tensor.clone() for key, tensor in tensors.items()}, x_TC.clone()
    on_cpu = x_TC.cpu()
    reference = kernel.reference(on_cpu, variant)
    rows, columns = variant.site.shape
    shape = (x_TC.shape[0], rows)
    if reference.dtype != torch.float64 or tuple(reference.shape) != shape:
        raise AssertionError(f"{where}: reference gives {reference.dtype} {tuple(reference.shape)}, not float64 {shape}")
    weight_CR = kernel.reference(torch.eye(columns), variant)
    if not torch.allclose(reference, on_cpu.double() @ weight_CR, rtol=1e-9, atol=1e-9):
        raise AssertionError(f"{where}: reference is not linear in x")
    read, held = kernel.read_bytes(packed, x_TC.shape[0]), variant_bytes(packed)
    if not 0 <= read <= held:
        raise AssertionError(f"{where}: read_bytes gives {read}, but the packed weights hold {held} bytes")
    _poison(shape, x_TC.dtype, x_TC.device)
    first = kernel.run(x_TC, packed)
    if first.dtype != x_TC.dtype or tuple(first.shape) != shape:
        raise AssertionError(f"{where}: run gives {first.dtype} {tuple(first.shape)}, not {x_TC.dtype} {shape}")
    error = _Error(on_cpu, weight_CR, tolerance(x_TC.dtype, columns, kernel.rounding))
    error.check(first, reference, where)
    kept = first.clone()
    second = kernel.run(-2 * x_TC, packed)
    if not torch.equal(first, kept):
        raise AssertionError(f"{where}: a second call changed the result of the first; outputs must not share memory")
    owned = {first.untyped_storage().data_ptr()} & {t.untyped_storage().data_ptr() for t in (second, x_TC, *tensors.values()) if t.numel()}
    if owned:
        raise AssertionError(f"{where}: the result shares memory with another result, the input or the weights")
    error.check(second / -2, reference, where)
    _same({"x": given}, {"x": x_TC}, f"{where}: run changed x")
    _same(weights, tensors, f"{where}: run changed the packed weights")
    if not torch.equal(kernel.run(x_TC, packed), first):
        raise AssertionError(f"{where}: the same input again gives another result")
    error.check(kernel.run(x_TC, weights), reference, f"{where}, packed tensors copied elsewhere")
    strided = torch.empty(x_TC.shape[0], 2 * columns, dtype=x_TC.dtype, device=x_TC.device)[:, ::2].copy_(x_TC)
    error.check(kernel.run(strided, packed), reference, f"{where}, a non-contiguous input")
    none = kernel.run(x_TC[:0], packed)
    if tuple(none.shape) != (0, rows):
        raise AssertionError(f"{where}: no tokens give {tuple(none.shape)}, not {(0, rows)}")
    with _other_threads() as threads:
        error.check(kernel.run(x_TC, packed), reference, f"{where}, {threads} threads")
    _check_not_finite(kernel, variant, packed, x_TC, weight_CR, first.cpu(), where)


@contextmanager
def _other_threads() -> Iterator[int]:
    """Two threads where there was one, one where there were more."""
    before = torch.get_num_threads()
    other = 2 if before == 1 else 1
    torch.set_num_threads(other)
    try:
        yield other
    finally:
        torch.set_num_threads(before)


def _check_not_finite(
    kernel: Kernel, variant: Variant, packed: Mapping[str, Tensor], x_TC: Tensor, weight_CR: Tensor, clean: Tensor, where: str
) -> None:  # fmt: skip
    """NaN in one token makes that token's output what the reference says, and leaves the others as they were, bit for bit. So does
    infinity, but there a NaN may stand where the reference says infinity: a kernel may subtract the zeros last. Where the weight is zero
    the output may stay finite: a sparse kernel may skip it.
    """
    bad, column = x_TC.shape[0] // 2, x_TC.shape[1] // 2
    others = torch.arange(x_TC.shape[0]) != bad
    for value in (math.nan, math.inf):
        x_TC = x_TC.clone()
        x_TC[bad, column] = value
        result, reference = kernel.run(x_TC, packed).cpu(), kernel.reference(x_TC.cpu(), variant)
        if math.isnan(value) and bool((result[bad].isinf() & (weight_CR[column] != 0)).any()):
            raise AssertionError(f"{where}: NaN in token {bad} becomes infinity")
        if not bool(((result[bad].isfinite() == reference[bad].isfinite()) | (weight_CR[column] == 0)).all()):
            what = "NaN" if math.isnan(value) else "infinity"
            raise AssertionError(f"{where}: {what} in token {bad} does not reach the outputs of that token that the reference says")
        # torch's own bfloat16 multiply reads past a row whose width is no multiple of 16 and multiplies that by zero, so NaN leaks there.
        if x_TC.shape[1] % 16 == 0 and not torch.equal(result[others], clean[others]):
            raise AssertionError(f"{where}: {value} in token {bad} changes the outputs of other tokens")


@dataclass(frozen=True)
class _Error:
    """How far results may be from the reference. allowed: relative to rms(x)·‖w‖."""

    x_TC: Tensor
    weight_CR: Tensor
    allowed: float

    def check(self, result: Tensor, reference: Tensor, where: str) -> None:
        """Raise AssertionError unless the result is near: in the mean square over all outputs, and each output with 8 times the room."""
        worst, mean = self._worst(result, reference)
        if not worst <= 1:
            raise AssertionError(
                f"{where}: the result is {worst:.3g} times further from the reference than allowed "
                f"(mean relative error {mean:.3g}, tolerance {self.allowed:.3g}; not finite if inf)"
            )

    def _worst(self, result: Tensor, reference: Tensor) -> tuple[float, float]:
        """Largest of (error over allowed error) and the error itself."""
        scale_TR = self.x_TC.double().square().mean(1).sqrt()[:, None] * self.weight_CR.square().sum(0).sqrt()[None, :]
        error_TR = (result.cpu().double() - reference).abs() / scale_TR.clamp(min=1e-300)
        if not bool(error_TR.isfinite().all()):
            return math.inf, math.nan
        mean = float(error_TR.square().mean().sqrt())
        room = self.allowed * (1 + 4 / math.sqrt(error_TR.numel()))
        return max(mean / room, float(error_TR.max()) / (8 * self.allowed)), mean


def _poison(shape: tuple[int, int], dtype: torch.dtype, device: torch.device) -> None:
    """Leave NaN in freed memory of the size of the output, so that an output that is not written in full shows."""
    blocks = [torch.full(shape, math.nan, dtype=dtype, device=device) for _ in range(4)]
    del blocks


def _same(before: dict[str, Tensor], now: Mapping[str, Tensor], message: str) -> None:
    if before.keys() != now.keys() or not all(torch.equal(tensor, now[key]) for key, tensor in before.items()):
        raise AssertionError(message)
