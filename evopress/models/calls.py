"""How a block or sublayer is called and what it returns, so that it can be stood in for without knowing its family.

Does not run models. Called by calibrate (to skip blocks) and stitch (to drop them).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from evopress.api.errors import UsageError

Forward = Callable[..., Any]


@dataclass(frozen=True)
class Call:
    """Arguments of one call, from which the hidden states can be told apart."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    @property
    def hidden(self) -> Tensor:
        """The hidden states: the first positional argument, else `hidden_states`. Raises UsageError when there are none."""
        hidden = self.args[0] if self.args else self.kwargs.get("hidden_states")
        if not isinstance(hidden, Tensor):
            raise UsageError(
                f"A module was called without hidden states, with {sorted(self.kwargs)}.", "This family cannot be searched yet; report it."
            )
        return hidden

    def run(self, module: nn.Module, hidden: Tensor) -> Any:
        """Call `module` with these arguments but other hidden states."""
        if self.args:
            return module(hidden, *self.args[1:], **self.kwargs)
        return module(**{**self.kwargs, "hidden_states": hidden})

    def values(self) -> Iterator[Any]:
        """All arguments."""
        yield from self.args
        yield from self.kwargs.values()


@dataclass(frozen=True)
class Returns:
    """What a module returns: a tensor (`length` None), or a tuple of that length that begins with one."""

    length: int | None

    @staticmethod
    def of(output: Any) -> Returns:
        """Read it off a real output. Raises UsageError for anything else."""
        if isinstance(output, Tensor):
            return Returns(None)
        if isinstance(output, tuple) and output and isinstance(output[0], Tensor):
            return Returns(len(output))
        raise UsageError(
            f"A module returned {type(output).__name__}, not a tensor or a tuple.", "This family cannot be searched yet; report it."
        )

    def wrap(self, hidden: Tensor) -> Any:
        """The structure with `hidden` in it; the rest (attention weights) becomes None."""
        return hidden if self.length is None else (hidden, *[None] * (self.length - 1))

    @staticmethod
    def first(output: Any) -> Tensor:
        """The tensor inside a real output."""
        tensor: Tensor = output[0] if isinstance(output, tuple) else output
        return tensor


def replace_forward(module: nn.Module, forward: Forward) -> Callable[[], None]:
    """Give one module another `forward`, keeping its parameters and hooks; returns what undoes it."""
    before = module.__dict__.get("forward")
    module.forward = forward

    def undo() -> None:
        if before is None:
            del module.__dict__["forward"]
        else:
            module.forward = before

    return undo


@contextmanager
def replaced(forwards: Mapping[nn.Module, Forward]) -> Iterator[None]:
    """Other `forward`s for some modules, for a while."""
    undos = [replace_forward(module, forward) for module, forward in forwards.items()]
    try:
        yield
    finally:
        for undo in reversed(undos):
            undo()
