"""The texts of a study: its tokenizer, and the token set of every role, each made once.

Needs the model's tokenizer but none of its weights. Called by the workbench, and by a dry run that checks a study before anything heavy.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

from evopress.api import Slice
from evopress.data.sources import read
from evopress.data.tokens import Role, TokenSet, build
from evopress.events import Listener, Progress
from evopress.models.load import tokenizer
from evopress.plan import Plan


class Texts:
    """Token sets of one study."""

    def __init__(self, plan: Plan, listen: Listener) -> None:
        self.plan, self.listen = plan, listen
        self._made: dict[Role, TokenSet] = {}

    @cached_property
    def tokenizer(self) -> Any:
        """The model's tokenizer."""
        return tokenizer(self.plan.ref)

    @cached_property
    def _documents(self) -> list[str]:
        return read(self.plan.study.text)

    def tokens(self, role: Role) -> TokenSet:
        """The token set of a role. Raises NotFound and UsageError for a text that is missing, unreadable or too short."""
        if role not in self._made:
            study = self.plan.study
            count = {"calibration": study.calibration_tokens, "search": study.search_tokens, "heldout": study.heldout_tokens}[role]
            self.listen(Progress("text", f"{role}: {count:,} tokens of {study.text}"))

            def encode(text: str) -> list[int]:
                return list(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

            self._made[role] = build(study.text, self._documents, encode, role, count, study.window, study.seed)
        return self._made[role]

    def whole(self, role: Role) -> Slice:
        """The slice of a whole token set."""
        made = self.tokens(role)
        return Slice(made.digest, tuple((index, len(ids)) for index, ids in enumerate(made.documents)))

    def first(self, role: Role, tokens: int) -> Slice:
        """The first documents of a token set, at least so many tokens of them where there are so many."""
        made, documents, taken = self.tokens(role), [], 0
        for index, ids in enumerate(made.documents):
            if taken >= tokens:
                break
            documents.append((index, len(ids)))
            taken += len(ids)
        return Slice(made.digest, tuple(documents))
