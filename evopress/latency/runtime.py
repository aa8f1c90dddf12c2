"""Runs a whole causal language model at a profile with real kernels, and times prefill and decode with a key-value cache.

Linear sites and the output head call a kernel instead of their dense weight; dropped sublayers are skipped by the Stitcher. Not a fast
serving engine: but for the attention of single tokens, the rest of the model is transformers as it is, the same for every profile. Called
by the run.

Shapes: R rows out, C columns in, B batch, P prompt tokens.
"""

from __future__ import annotations

import copy
import inspect
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from types import TracebackType
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from evopress.api import ABSENT, DENSE, Kernel, Level, NotFound, Profile, Site, UsageError, Variant, dense_cost
from evopress.api.formats import decode, variant_bytes
from evopress.api.workload import Workload
from evopress.latency.attention import quick_decoding
from evopress.latency.clock import Clock, Timing, time_once
from evopress.latency.table import Cell, LatencyTable, cell_format
from evopress.models.calls import Forward, replaced
from evopress.models.stitch import Stitcher
from evopress.models.weights import Slot, slot_of

VariantOf = Callable[[Site, Level], Variant]
DTYPES = (torch.bfloat16, torch.float32)
NO_KERNEL = "no packed kernel: dequantised"
PLAIN = "dense"
"""The format of a dense weight, and the kernel that is no other than the module itself."""
HEAD = "output head"
"""Name under which a kernel is picked for the layer that makes logits, which is no site and stays dense."""


def choose(format: str, shape: tuple[int, int], device: str, dtype: torch.dtype, kernels: Iterable[Kernel]) -> Kernel:
    """The first packed kernel that supports the format and shape, else the first that computes with a dequantised weight.

    kernels: fastest first, as the registry gives them; peers and those that round the activations are passed over: only a table chooses a
    peer. Raises UsageError when none supports it.
    """
    fitting = [kernel for kernel in kernels if not (kernel.rounding or kernel.peer) and kernel.supports(format, shape, device, dtype)]
    for kernel in sorted(fitting, key=lambda kernel: not kernel.packed):
        return kernel
    raise UsageError(
        f"No kernel runs format {format!r} of shape {shape} on {device}.", "See `evopress kernels list`; install the built-in kernels."
    )


Pick = Callable[[Variant, torch.dtype], Kernel]
"""The kernel that runs a variant for activations of a type."""


def first_fitting(kernels: Iterable[Kernel], device: str) -> Pick:
    """As `choose` does, by the order of the kernels."""
    known = list(kernels)
    return lambda variant, dtype: choose(variant.format, variant.site.shape, device, dtype, known)


def fastest(kernels: Iterable[Kernel], table: LatencyTable, tokens: int) -> Pick:
    """The kernel that the table says is fastest for so many tokens. Raises NotFound for a cell it lacks."""
    known = {label(kernel): kernel for kernel in kernels}

    def pick(variant: Variant, dtype: torch.dtype) -> Kernel:
        cell = Cell(cell_format(variant.format, variant.cost.params / variant.site.weights), variant.site.shape, tokens)
        if variant.site.name == HEAD:  # it has no cell: what is fastest for the largest dense matrix reads it fastest too
            dense = [one for one, found in table.cells.items() if one.format == PLAIN and one.tokens == tokens and found]
            cell = max(dense, key=lambda one: (math.prod(one.shape), one.shape), default=cell)
        name = table.best(cell).kernel
        if name not in known:
            raise NotFound(f"Kernel {name} is the fastest for {cell.format}, but not installed.", "Install it, or time the kernels anew.")
        return known[name]

    return pick


def label(kernel: Kernel) -> str:
    """What reports print for a kernel: its name, or that it is none."""
    return kernel.name if kernel.packed else NO_KERNEL


@dataclass(frozen=True, slots=True)
class Running:
    """What multiplies at one linear site. cell: its format as a table names it. kernel, packed: None and empty for a plain module."""

    site: Site
    format: str
    cell: str
    label: str
    held_bytes: int
    kernel: Kernel | None = None
    packed: Mapping[str, Tensor] = field(default_factory=dict)

    def read_bytes(self, tokens: int) -> int:
        """Bytes of weights that so many tokens read."""
        return self.held_bytes if self.kernel is None else self.kernel.read_bytes(self.packed, tokens)


class PackedModel:
    """A model that computes a profile with kernels while it is entered (`with packed: …`), and is dense again afterwards.

    kernels: label -> number of linear sites it runs; `dense` are plain modules, sites under a dropped parent are not counted.
    by_format: (format, label) -> number of linear sites. weight_bytes: what the linear sites that run keep in memory for their kernels.
    running: the linear sites that run, each with its kernel. Several of one model may exist at once; enter one at a time.
    """

    def __init__(
        self, model: nn.Module, stitcher: Stitcher, profile: Profile, stitched: Profile, variant_of: VariantOf,
        forwards: Mapping[nn.Module, Forward], running: Sequence[Running],
    ) -> None:  # fmt: skip
        self.model = model
        self.profile = profile
        self.running = tuple(running)
        self.by_format = dict(Counter((one.format, one.label) for one in self.running))
        self.weight_bytes = sum(one.held_bytes for one in self.running)
        self._stitcher = stitcher
        self._stitched = stitched
        self._variant_of = variant_of
        self._forwards = forwards
        self._undo: ExitStack | None = None

    @property
    def kernels(self) -> dict[str, int]:
        """Label of a kernel -> number of linear sites it runs."""
        counts: Counter[str] = Counter()
        for (_, name), sites in self.by_format.items():
            counts[name] += sites
        return dict(counts)

    def __enter__(self) -> PackedModel:
        if self._undo is not None:
            raise RuntimeError("this PackedModel is entered already")
        with ExitStack() as undo:
            undo.callback(self._stitcher.restore)
            self._stitcher.set(self._stitched, self._decode)
            undo.enter_context(replaced(self._forwards))
            undo.enter_context(quick_decoding(self.model))
            self._undo = undo.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.restore()

    def restore(self) -> None:
        """Make the model dense again, to the last bit. Doing it twice is harmless."""
        undo, self._undo = self._undo, None
        if undo is not None:
            undo.close()

    def _decode(self, site: Site, level: Level) -> Tensor:
        variant = self._variant_of(site, level)
        return decode(variant.format, variant.tensors, site.shape)


def build(model: nn.Module, sites: Sequence[Site], profile: Profile, variant_of: VariantOf, pick: Pick) -> PackedModel:
    """Pack every compressed linear site for its kernel. The model must be dense, on one device, in bfloat16 or float32.

    A site at `dense` keeps its module where torch's own layer is picked, and shares its weight with any other kernel. One matrix of a
    stacked expert tensor has no module of its own to replace, so it is stitched in dequantised, and counted as that. Raises UsageError for
    another type, or a format without kernel. variant_of must not make variants from the model's own weights when called later, since
    experts are stitched by then.
    """
    running: list[Running] = []
    forwards: dict[nn.Module, Forward] = {}
    stitched: dict[str, Level] = {}
    for site in sites:
        level = stitched[site.name] = profile[site.name]
        if site.kind != "linear" or level == ABSENT:
            continue
        slot = slot_of(model, site)
        dtype = slot.parameter.dtype
        if dtype not in DTYPES:
            raise UsageError(f"Kernels take bfloat16 or float32, but the model is in {dtype}.", "Load it with dtype=torch.bfloat16.")
        plain_bytes = site.weights * slot.parameter.element_size()
        if slot.index is not None:
            format, name = (PLAIN, PLAIN) if level == DENSE else (variant_of(site, level).format, NO_KERNEL)
            running.append(Running(site, format, PLAIN, name, plain_bytes))
            continue
        variant = variant_of(site, level) if level != DENSE else _dense(site, slot)
        kernel = pick(variant, dtype)
        if kernel.name == PLAIN:
            running.append(Running(site, PLAIN, PLAIN, PLAIN, plain_bytes))
            continue
        packed, forwards[slot.module] = _stand_in(kernel, variant, slot.parameter, getattr(slot.module, "bias", None))
        cell = cell_format(variant.format, variant.cost.params / site.weights)
        running.append(Running(site, variant.format, cell, label(kernel), variant_bytes(packed), kernel, packed))
        stitched[site.name] = DENSE
    forwards |= _head(model, set(forwards), pick)
    stitcher = Stitcher(model, sites)
    return PackedModel(model, stitcher, profile, Profile.of(stitched), variant_of, forwards, running)


def _head(model: nn.Module, taken: set[nn.Module], pick: Pick) -> dict[nn.Module, Forward]:
    """The output head on the kernel that is picked for it, where it is a linear layer of its own and that is no plain module."""
    found = getattr(model, "get_output_embeddings", lambda: None)()
    if type(found) is not nn.Linear or found in taken or found.weight.dtype not in DTYPES:
        return {}
    rows, columns = found.weight.shape
    site = Site(HEAD, "linear", (rows, columns), 0, None)
    variant = Variant(site, DENSE, PLAIN, {"weight": found.weight.detach()}, dense_cost(site.weights))
    kernel = pick(variant, found.weight.dtype)
    if kernel.name == PLAIN:
        return {}
    return {found: _stand_in(kernel, variant, found.weight, found.bias)[1]}


def _stand_in(kernel: Kernel, variant: Variant, like: Tensor, bias: Tensor | None) -> tuple[Mapping[str, Tensor], Forward]:
    """The variant packed for activations of the type and device of `like`, and what a module calls instead of its own weight."""
    packed = {name: tensor.to(like.device) for name, tensor in kernel.pack(variant, like.dtype).items()}
    return packed, _forward(kernel, packed, bias)


def _dense(site: Site, slot: Slot) -> Variant:
    return Variant(site, DENSE, PLAIN, {"weight": slot.view(slot.parameter.detach())}, dense_cost(site.weights))


def _forward(kernel: Kernel, packed: Mapping[str, Tensor], bias: Tensor | None) -> Forward:
    def forward(x: Tensor) -> Tensor:
        out = kernel.run(x.reshape(-1, x.shape[-1]), packed)
        if bias is not None:
            out = out + bias
        return out.view(*x.shape[:-1], out.shape[-1])

    return forward


@dataclass(frozen=True)
class Speed:
    """How fast a model ran.

    prefill: seconds for a prompt of batch × prompt_tokens. decode: seconds for batch × decode_tokens, greedy, step by step, with cache.
    kernels: label -> number of linear sites. weight_bytes: memory of the linear weights. dtype: of the activations.
    """

    prefill: Timing
    decode: Timing
    prompt_tokens: int
    decode_tokens: int
    batch: int
    dtype: str
    kernels: Mapping[str, int]
    weight_bytes: int

    @property
    def prefill_tokens_per_second(self) -> tuple[float, float, float]:
        """Median, low and high end of its interval."""
        return _rate(self.prefill, self.batch * self.prompt_tokens)

    @property
    def decode_tokens_per_second(self) -> tuple[float, float, float]:
        """Median, low and high end of its interval."""
        return _rate(self.decode, self.batch * self.decode_tokens)


def _rate(timing: Timing, tokens: int) -> tuple[float, float, float]:
    return tokens / timing.median, tokens / timing.high, tokens / timing.low


def bench_interleaved(
    models: Mapping[str, PackedModel], prompt_tokens: int = 512, decode_tokens: int = 64, batch: int = 1, repeats: int = 7, warmup: int = 1,
    clock: Clock = time.perf_counter,
) -> dict[str, Speed]:  # fmt: skip
    """Time several models in turns, A B C A B C …, so that drift of the machine hits all alike.

    Sample i of every model comes from round i, so `latency.clock.ratio` of two of them is paired. Enters and leaves each model in every
    round; only the passes are timed. Raises UsageError for no models, no tokens, or more tokens than the model has positions.
    """
    _check_lengths(len(models), prompt_tokens, decode_tokens, batch, repeats, warmup)
    prefill: dict[str, list[float]] = {name: [] for name in models}
    decoded: dict[str, list[float]] = {name: [] for name in models}
    for turn in range(-warmup, repeats):
        for name, packed in models.items():
            with packed:
                first, rest = _pass(packed.model, prompt_tokens, decode_tokens, batch, clock)
            if turn >= 0:
                prefill[name].append(first)
                decoded[name].append(rest)
    return {
        name: Speed(
            Timing.of(prefill[name]), Timing.of(decoded[name]), prompt_tokens, decode_tokens, batch,
            str(next(packed.model.parameters()).dtype).removeprefix("torch."), packed.kernels, packed.weight_bytes,
        )
        for name, packed in models.items()
    }  # fmt: skip


TURNS = {"decode": 201, "prefill": 15}
"""Samples of a workload by its phase."""


def workload_seconds(
    models: Mapping[str, PackedModel], workload: Workload, repeats: int | None = None, clock: Clock = time.perf_counter
) -> dict[str, list[float]]:
    """Seconds of one pass of the workload (one decoded step, or a prompt) by model, as many as repeats, by default `TURNS`.

    Models take turns after every pass: a neighbour on the processor makes all slower for tenths of a second, and so hits all of a turn
    alike. Every decoded step follows the whole prompt, so the keys and values of all models are held at once. Raises UsageError as
    `bench_interleaved` does.
    """
    repeats = TURNS[workload.phase] if repeats is None else repeats
    if workload.phase == "prefill":
        speeds = bench_interleaved(models, workload.context, 1, workload.batch, repeats, clock=clock)
        return {name: list(speed.prefill.samples) for name, speed in speeds.items()}
    _check_lengths(len(models), workload.context, 1, workload.batch, repeats)
    taken: dict[str, list[float]] = {name: [] for name in models}
    begun: dict[str, _Greedy] = {}
    with torch.no_grad():
        for turn in range(-2, repeats):
            for name, packed in models.items():
                with packed:
                    if name not in begun:
                        begun[name] = _Greedy(packed.model, _prompt(packed.model, workload.context, 1, workload.batch))
                    seconds = time_once(partial(begun[name].again().steps, 1), clock)
                if turn >= 0:
                    taken[name].append(seconds)
    return taken


def generate(model: nn.Module, prompt_BP: Tensor, tokens: int, clock: Clock = time.perf_counter) -> tuple[Tensor, float, float]:
    """Greedy tokens (B × tokens), seconds of the prompt, and seconds of the tokens: as many single-token steps, with a cache.

    The first token comes from the prompt and is fed to the first step, so the prompt is not counted among the steps.
    """
    with torch.no_grad():
        begin = clock()
        going = _Greedy(model, prompt_BP)
        middle = clock()
        out = going.steps(tokens)
        end = clock()
    return out, middle - begin, end - middle


class _Greedy:
    """A model that has read a prompt (B × P) and takes the likeliest token after it, one at a time, with a cache. Waits for the device."""

    def __init__(self, model: nn.Module, prompt_BP: Tensor) -> None:
        self._model, self._extra = model, last_logits(model)
        self._cache = DynamicCache(config=model.config)  # type: ignore[arg-type]
        self._next_B1 = self._feed(prompt_BP)
        _wait(self._next_B1)

    def _feed(self, tokens: Tensor) -> Tensor:
        logits = self._model(tokens, past_key_values=self._cache, use_cache=True, **self._extra).logits
        return cast(Tensor, logits[:, -1:].argmax(-1))

    def again(self) -> _Greedy:
        """Another that begins where this one is, on a cache of its own."""
        other = copy.copy(self)
        other._cache = copy.deepcopy(self._cache)
        return other

    def steps(self, tokens: int) -> Tensor:
        """So many tokens, B × tokens."""
        out: list[Tensor] = []
        for _ in range(tokens):
            out.append(self._next_B1)
            self._next_B1 = self._feed(self._next_B1)
        _wait(self._next_B1)
        return torch.cat(out, dim=1)


def last_logits(model: nn.Module) -> dict[str, int]:
    """What to call a model with that it makes logits of the last position only, where it can."""
    return {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}


def _wait(result: Tensor) -> None:
    """Until the device has computed it: a GPU answers before it is done."""
    if result.device.type == "cuda":
        torch.cuda.synchronize(result.device)


def _pass(model: nn.Module, prompt_tokens: int, decode_tokens: int, batch: int, clock: Clock) -> tuple[float, float]:
    _, first, rest = generate(model, _prompt(model, prompt_tokens, decode_tokens, batch), decode_tokens, clock)
    return first, rest


def _prompt(model: nn.Module, tokens: int, more: int, batch: int) -> Tensor:
    """A batch of prompts, B × P, after which so many more tokens fit the model's positions; UsageError where they do not."""
    config: Any = model.config
    positions = getattr(config, "max_position_embeddings", None)
    if positions is not None and tokens + more > positions:
        raise UsageError(f"{tokens} prompt and {more} decode tokens do not fit the model's {positions} positions.", "Ask for fewer tokens.")
    # Which tokens does not matter for speed; a fixed stride visits the vocabulary without a random source.
    device = next(model.parameters()).device
    return (torch.arange(batch * tokens, device=device).view(batch, -1) * 7919 + 1) % int(config.vocab_size)


def _check_lengths(models: int, prompt: int, decode: int, batch: int, repeats: int, warmup: int = 0) -> None:
    if not models or min(prompt, decode, batch, repeats) < 1 or warmup < 0:
        raise UsageError(
            f"Cannot time {models} models with {prompt} prompt and {decode} decode tokens, batch {batch}, {repeats} repeats.",
            "Each must be at least 1.",
        )
