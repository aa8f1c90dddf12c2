"""Workload: what a time is of: decoding one token, or reading a prompt, for a batch of sequences. Used by latency budgets and tables."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from evopress.api.errors import UsageError, unknown

Phase = Literal["decode", "prefill"]
CONTEXT = 512


@dataclass(frozen=True, slots=True)
class Workload:
    """phase: `decode` is one step, one token a sequence with `context` tokens before it; `prefill` is a prompt of `context` tokens.

    batch: sequences at a time.
    """

    phase: Phase = "decode"
    batch: int = 1
    context: int = CONTEXT

    @property
    def tokens(self) -> int:
        """Tokens that every linear layer multiplies at once."""
        return self.batch * (self.context if self.phase == "prefill" else 1)

    def __str__(self) -> str:
        return f"{self.phase},batch={self.batch},context={self.context}"

    @staticmethod
    def parse(text: str, where: str) -> Workload:
        """`prefill,batch=4` as a workload; "" is decoding of one sequence. Raises UsageError."""
        phase: Phase = "decode"
        numbers = {"batch": 1, "context": CONTEXT}
        for part in filter(None, (part.strip().lower() for part in text.split(","))):
            name, equals, value = part.partition("=")
            if not equals and part in ("decode", "prefill"):
                phase = "prefill" if part == "prefill" else "decode"
            elif equals and name in numbers:
                if not re.fullmatch(r"[1-9]\d{0,5}", value):
                    raise UsageError(f"{name}={value!r} in {where} is not a positive whole number.", f"Write e.g. {name}=4.")
                numbers[name] = int(value)
            else:
                raise unknown("workload", part, ("decode", "prefill", "batch=N", "context=N"), where)
        return Workload(phase, numbers["batch"], numbers["context"])
