"""Reuses the hidden states before the first block that changed, so that measuring a neighbour runs only the blocks behind the change.

Works around plain forward passes of the model, whoever asks for them: a call counts as the same only if every tensor the first block is
given is equal (hidden states, mask, positions), and one with a cache is always run whole. Exact to the last bit, because the same blocks
read the same tensors. A caller that hooks the blocks themselves sees only those that run. Scores nothing. Called by the workbench.

Shapes: B documents in a batch, T tokens, D width. A path names what every block computes, from the first to the last.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache

from evopress.models.calls import Call, Forward, Returns, replaced

Path = tuple[Hashable, ...]


class Prefixes:
    """The hidden states of the last path a model was run along, at most `limit_bytes` of them.

    Calls are told apart by their order and recognised by the input of the first block, so a call on other tokens is run whole.
    blocks: in the order they run; a block may read nothing of those before it but the hidden states, which `exact` finds out.
    blocks_run, blocks_reused: so far.
    """

    def __init__(self, blocks: Sequence[nn.Module], limit_bytes: int) -> None:
        self._blocks = list(blocks)
        self._limit_bytes = limit_bytes
        self._returns: dict[int, Returns] = {}
        self._path: Path = ()
        self._states: list[list[Tensor]] = []  # per call: the input of the first block, then the output of each block
        self._inputs: list[list[Tensor]] = []  # per call: every tensor the first block was given
        self._calls = self._shared = self._reuse = self._planned_bytes = 0
        self._keep = False
        self.blocks_run = self.blocks_reused = 0

    @contextmanager
    def along(self, path: Path) -> Iterator[None]:
        """Run the model on a path inside the block: forward passes of the last path are continued where the two part."""
        if len(path) != len(self._blocks):
            raise ValueError(f"a path names all {len(self._blocks)} blocks, got {len(path)}")
        self._shared = common(self._path, path)
        self._path = path[: self._shared]  # all that holds if the run fails half-way
        self._calls = self._planned_bytes = 0
        with replaced({block: self._forward(index, block.forward) for index, block in enumerate(self._blocks)}):
            yield
        del self._states[self._calls :], self._inputs[self._calls :]
        self._path = path

    def forget(self) -> None:
        """Free the hidden states."""
        self._path, self._states, self._inputs = (), [], []

    def exact(self, model: nn.Module, ids_BT: Tensor) -> bool:
        """Does this model give the same bits with and without reuse, from any block on? Forgets everything."""
        with torch.no_grad():
            whole = model(input_ids=ids_BT, use_cache=False).logits
            same, count = True, len(self._blocks)
            for depth in range(count, -1, -1):
                # Equal blocks under other names from `depth` on: what is reused before them must lead to the same output.
                with self.along((*["same"] * depth, *[depth] * (count - depth))):
                    same = same and torch.equal(model(input_ids=ids_BT, use_cache=False).logits, whole)
        self.forget()
        return same

    def _forward(self, index: int, real: Forward) -> Forward:
        def forward(*args: Any, **kwargs: Any) -> Any:
            call = Call(args, kwargs)
            hidden_BTD = call.hidden
            if index == 0:
                self._begin(call)
            entry = self._states[self._calls - 1]
            if index < self._reuse:
                self.blocks_reused += 1
                # Only the last block before the change is read by anybody.
                return self._returns[index].wrap(entry[self._reuse] if index == self._reuse - 1 else hidden_BTD)
            self.blocks_run += 1
            out = real(*args, **kwargs)
            self._returns.setdefault(index, Returns.of(out))
            if self._keep:
                entry.append(Returns.first(out))
            return out

        return forward

    def _begin(self, call: Call) -> None:
        """A new call: find its entry, or make one."""
        entry = self._states[self._calls] if self._calls < len(self._states) else []
        before = self._inputs[self._calls] if self._calls < len(self._inputs) else []
        given = list(_tensors(call.values()))
        self._planned_bytes += call.hidden.nbytes * (len(self._blocks) + 1)
        plain = not any(isinstance(value, Cache) for value in call.values())
        self._keep = plain and self._planned_bytes <= self._limit_bytes
        # What the host knows comes first: comparing waits for the device.
        may = self._keep and 0 < self._shared < len(entry)
        self._reuse = self._shared if may and _equal(before, given) else 0
        kept = entry[: self._reuse + 1] if self._reuse else [call.hidden]
        self._states[self._calls : self._calls + 1] = [kept if self._keep else []]
        self._inputs[self._calls : self._calls + 1] = [given if self._keep else []]
        self._calls += 1


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    """Every tensor among arguments, those in tuples and lists too."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, tuple | list):
            yield from _tensors(value)


def _equal(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> bool:
    """The same tensors, one by one? Waits for a GPU once, however many they are, and only where they may be the same at all."""
    if [(a.shape, a.dtype, a.device) for a in ours] != [(b.shape, b.dtype, b.device) for b in theirs]:
        return False
    pairs = list(zip(ours, theirs, strict=True))
    if not all(torch.equal(a, b) for a, b in pairs if a.device.type == "cpu"):
        return False
    there = [(a == b).all() for a, b in pairs if a.device.type != "cpu"]
    return not there or bool(torch.stack(there).all())


def common(one: Path, other: Path) -> int:
    """Number of leading blocks two paths share."""
    shared = 0
    for a, b in zip(one, other, strict=False):
        if a != b:
            break
        shared += 1
    return shared
