"""Second moments of the inputs of linear sites, block by block, from one pass over the dense model.

Only one copy of the hidden states and the moments of one block are alive at a time. Does not compress anything and does not change the
model. Called by the bank builder.

Shapes: B documents in a batch, T tokens, C columns in.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from evopress.api.errors import UsageError, unknown
from evopress.api.site import Site
from evopress.api.variant import Statistics
from evopress.models.calls import Call, Forward, Returns, replaced
from evopress.models.sites import SiteMap
from evopress.models.weights import Slot, module_of, slot_of


def calibrate(
    model: nn.Module, sitemap: SiteMap, batches: Sequence[Tensor], wanted: set[str]
) -> Iterator[tuple[int, dict[str, Statistics]]]:
    """Yield, for every block with a wanted site, its depth and the statistics of its wanted sites, in model order.

    batches: token ids (B, T), without padding; every token counts the same. Sites with equal `Site.input` share one Statistics object,
    measured at the first of them. An expert that no token was routed to has a zero second moment and `tokens` 0.
    The hidden states are those of an ordinary forward of the same batches, to the last bit (experts through the eager implementation).
    Raises UsageError for an unknown or non-linear site and for no batches.
    """
    linears = {site.name: site for site in sitemap.of_kind("linear")}
    for name in sorted(wanted - linears.keys()):
        raise unknown("linear site", name, linears)
    if not batches:
        raise UsageError("Calibration was given no tokens.", "Give at least one batch of token ids.")
    chosen = [site for name, site in linears.items() if name in wanted]
    return _pass(model, sitemap, batches, chosen)


def _pass(model: nn.Module, sitemap: SiteMap, batches: Sequence[Tensor], chosen: list[Site]) -> Iterator[tuple[int, dict[str, Statistics]]]:
    blocks: list[nn.Module] = list(model.get_submodule(sitemap.stack).children())
    device = next(model.parameters()).device
    states: list[Tensor] = []
    returns: list[Returns] = []
    for depth in range(1 + max((site.depth for site in chosen), default=-1)):
        here = [site for site in chosen if site.depth == depth]
        sums: dict[str, _Sum] = {}
        for site in here:
            sums.setdefault(site.input, _Sum(site.shape[1], device))
        with torch.no_grad(), _eager_experts(model), _watching(model, here, sums):
            for number, ids in enumerate(batches):
                call = _block_call(model, blocks, ids.to(device), returns[:depth])
                if depth == 0:
                    states.append(call.hidden)
                out = call.run(blocks[depth], states[number])
                returns[depth:] = [Returns.of(out)]
                states[number] = Returns.first(out)
        if here:
            yield depth, _finish(here, sums)


class _Sum:
    """Running Σ x xᵀ in float32: one matrix product a batch, so that rounding grows with batches and not with tokens."""

    def __init__(self, columns: int, device: torch.device) -> None:
        self.columns = columns
        self.tokens = 0
        self.total_CC = torch.zeros(columns, columns, dtype=torch.float32, device=device)

    def add(self, x: Tensor) -> None:
        # Low-precision inputs are widened first: products of two bfloat16 numbers are exact in float32, sums of them in bfloat16 are not.
        x_TC = x.detach().reshape(-1, self.columns).to(torch.float32)
        # Symmetric: four column strips down to the diagonal are 10/16 of the work, and this product is as dear as the forward itself.
        for start, stop in self._strips():
            # A product of its own first: a multiply that begins with the total adds token after token to a number as large as all of them.
            self.total_CC[:stop, start:stop] += x_TC[:, :stop].T @ x_TC[:, start:stop]
        self.tokens += x_TC.shape[0]

    def _strips(self) -> list[tuple[int, int]]:
        edges = [self.columns * part // 4 for part in range(5)] if self.columns >= 256 else [0, self.columns]
        return list(itertools.pairwise(edges))

    def mean(self) -> Statistics:
        upper = self.total_CC.triu()
        # On the CPU, where methods work: their results then do not depend on the device.
        return Statistics(((upper + upper.triu(1).T) / max(1, self.tokens)).cpu(), self.tokens)


def _finish(sites: list[Site], sums: dict[str, _Sum]) -> dict[str, Statistics]:
    means = {name: total.mean() for name, total in sums.items()}
    return {site.name: means[site.input] for site in sites}


@contextmanager
def _watching(model: nn.Module, sites: list[Site], sums: Mapping[str, _Sum]) -> Iterator[None]:
    """Add what the sites read to the sums of their inputs, one site for each input."""
    handles = []
    experts: list[tuple[Slot, _Sum]] = []
    watched: set[str] = set()
    for site in sites:
        if site.input in watched:
            continue
        watched.add(site.input)
        slot = slot_of(model, site)
        if slot.index is None:
            handles.append(module_of(model, site).register_forward_pre_hook(_adder(sums[site.input])))
        else:
            experts.append((slot, sums[site.input]))
    try:
        with _ExpertProducts(experts) if experts else nullcontext():
            yield
    finally:
        for handle in handles:
            handle.remove()


def _adder(total: _Sum) -> Callable[[nn.Module, tuple[Any, ...]], None]:
    def hook(_: nn.Module, args: tuple[Any, ...]) -> None:
        total.add(args[0])

    return hook


class _ExpertProducts(TorchFunctionMode):
    """Sees products with one slice of a stacked expert tensor, which no module hook can see, and adds the other factor to its sum.

    A slice is recognised by where its memory starts; the eager experts of transformers index the stack and multiply by that slice.
    """

    _PRODUCTS = frozenset({nn.functional.linear, torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.mm, Tensor.mm})

    def __init__(self, experts: list[tuple[Slot, _Sum]]) -> None:
        super().__init__()
        self._sums = {self._start(slot): total for slot, total in experts}

    @staticmethod
    def _start(slot: Slot) -> int:
        return slot.view(slot.parameter.detach()).data_ptr()

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        if func in self._PRODUCTS and len(args) >= 2 and isinstance(args[1], Tensor) and args[1].ndim == 2:
            total = self._sums.get(args[1].data_ptr())
            if total is not None and args[0].shape[-1] == total.columns:
                total.add(args[0])
        return func(*args, **(kwargs or {}))


@contextmanager
def _eager_experts(model: nn.Module) -> Iterator[None]:
    """Experts run one by one, so that each product can be seen; restored afterwards. Nothing happens for a model without experts."""
    before = model.get_experts_implementation() if any(True for _ in _decorated(model)) else None  # type: ignore[operator]
    if before is not None:
        model.set_experts_implementation("eager")  # type: ignore[operator]
    try:
        yield
    finally:
        if before is not None:
            model.set_experts_implementation(before)  # type: ignore[operator]


def _decorated(model: nn.Module) -> Iterator[nn.Module]:
    return (module for module in model.modules() if isinstance(getattr(module, "is_transposed", None), bool))


class _Reached(Exception):
    """Stops a forward at the block of interest; never leaves this file."""

    def __init__(self, call: Call) -> None:
        super().__init__("block reached")
        self.call = call


def _block_call(model: nn.Module, blocks: Sequence[nn.Module], ids: Tensor, returns: Sequence[Returns]) -> Call:
    """The arguments the model gives a block for these tokens; the blocks before it, whose `returns` are known, are skipped.

    Asked anew for each block rather than kept from the first, because masks and positions differ between kinds of layer (sliding and
    full attention) and keeping them all would cost more memory than the hidden states. It costs one embedding look-up.
    """

    def skip(returns: Returns) -> Forward:
        return lambda *args, **kwargs: returns.wrap(Call(args, kwargs).hidden)

    def stop(*args: Any, **kwargs: Any) -> Any:
        raise _Reached(Call(args, kwargs))

    forwards: dict[nn.Module, Forward] = {block: skip(found) for block, found in zip(blocks, returns, strict=False)}
    try:
        with replaced({**forwards, blocks[len(returns)]: stop}):
            model(input_ids=ids, use_cache=False)
    except _Reached as reached:
        return reached.call
    raise UsageError(f"{type(model).__name__} does not run its block {len(returns)}.", "Its list of blocks must be run in order.")
