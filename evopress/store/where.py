"""A small, safe language for filters: `bytes<70e6`, `bits<=3.1 and kl<0.5`, `label='evolve' or not (decode < 20)`.

Parsed here by hand and evaluated in Python on typed rows; nothing of what the user writes ever reaches SQL. A comparison with a value
that a row does not have is false. Called by the leaderboard.

    or_expr   = and_expr { "or" and_expr }
    and_expr  = not_expr { "and" not_expr }
    not_expr  = "not" not_expr | "(" or_expr ")" | term op term
    term      = column | number [KB MB GB KiB MiB GiB] | 'text'        op = < <= > >= = == !=
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from evopress.api import UsageError, unknown

Value = float | str | None
Row = Mapping[str, Value]
Predicate = Callable[[Row], bool]

_MAX_CHARACTERS = 2000
_MAX_DEPTH = 50
_UNITS: Final = {"kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
_OPERATORS: Final[dict[str, Callable[[Any, Any], bool]]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "=": operator.eq,
    "==": operator.eq,
    "!=": operator.ne,
}
_TOKEN = re.compile(
    r"""\s*(?:
    (?P<number>[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)(?P<unit>[A-Za-z]*)
  | (?P<text>'[^']*'|"[^"]*")
  | (?P<name>[A-Za-z_][\w.\-]*)
  | (?P<symbol><=|>=|==|!=|<|>|=|\(|\))
)""",
    re.VERBOSE,
)
_Term = tuple[str, float | str]


def parse_where(text: str, columns: Iterable[str]) -> Predicate:
    """Turn a filter into a predicate on rows. Raises UsageError naming the place, or the columns when one is unknown."""
    if len(text) > _MAX_CHARACTERS:
        raise UsageError(f"The filter is {len(text):,} characters long.", f"At most {_MAX_CHARACTERS:,} are allowed.")
    return _Parser(text, sorted(columns)).parse()


class _Parser:
    """Recursive descent over the tokens of one filter."""

    def __init__(self, text: str, columns: list[str]) -> None:
        self.text = text
        self.columns = columns
        self.tokens = self._tokens()
        self.next = 0

    def _tokens(self) -> list[tuple[str, float | str, int]]:
        found: list[tuple[str, float | str, int]] = []
        place, end = 0, len(self.text.rstrip())
        while place < end:
            match = _TOKEN.match(self.text, place)
            if not match:
                raise self._wrong(f"cannot read {self.text[place:].strip()[:12]!r}", place)
            kind = str(match.lastgroup)
            if match["number"] is not None:
                found.append(("number", self._number(match), match.start("number")))
            elif kind == "text":
                found.append(("text", match["text"][1:-1], match.start("text")))
            elif kind == "name" and match["name"].lower() in ("and", "or", "not"):
                found.append(("word", match["name"].lower(), match.start("name")))
            else:
                found.append((kind, match[kind], match.start(kind)))
            place = match.end()
        return found

    def _number(self, match: re.Match[str]) -> float:
        unit = match["unit"].lower()
        if unit and unit not in _UNITS:
            raise unknown("unit", match["unit"], ["KB", "MB", "GB", "KiB", "MiB", "GiB"], f"filter {self.text!r}")
        return float(match["number"]) * _UNITS.get(unit, 1)

    def parse(self) -> Predicate:
        if not self.tokens:
            raise self._wrong("it is empty", 0)
        result = self._or(0)
        if self.next < len(self.tokens):
            _, shown, place = self.tokens[self.next]
            raise self._wrong(f"expected 'and' or 'or' before {shown!r}", place)
        return result

    def _or(self, depth: int) -> Predicate:
        parts = [self._and(depth)]
        while self._take("word", "or"):
            parts.append(self._and(depth))
        return parts[0] if len(parts) == 1 else lambda row: any(part(row) for part in parts)

    def _and(self, depth: int) -> Predicate:
        parts = [self._not(depth)]
        while self._take("word", "and"):
            parts.append(self._not(depth))
        return parts[0] if len(parts) == 1 else lambda row: all(part(row) for part in parts)

    def _not(self, depth: int) -> Predicate:
        if depth > _MAX_DEPTH:
            raise self._wrong(f"it is nested deeper than {_MAX_DEPTH}", self._place())
        if self._take("word", "not"):
            inner = self._not(depth + 1)
            return lambda row: not inner(row)
        if self._take("symbol", "("):
            inner = self._or(depth + 1)
            if not self._take("symbol", ")"):
                raise self._wrong("a ')' is missing", self._place())
            return inner
        return self._comparison()

    def _comparison(self) -> Predicate:
        left = self._term()
        kind, sign, place = self.tokens[self.next] if self.next < len(self.tokens) else ("end", "", len(self.text))
        if kind != "symbol" or str(sign) not in _OPERATORS:
            raise self._wrong("expected a comparison (< <= > >= = !=)", place)
        self.next += 1
        right = self._term()
        compare = _OPERATORS[str(sign)]

        def holds(row: Row) -> bool:
            a, b = _value(left, row), _value(right, row)
            if a is None or b is None:
                return False
            if isinstance(a, str) != isinstance(b, str):
                # A number never equals a text, and there is no order between them.
                return sign == "!="
            return compare(a, b)

        return holds

    def _term(self) -> _Term:
        if self.next >= len(self.tokens):
            raise self._wrong("it ends where a column or a value is expected", len(self.text))
        kind, value, place = self.tokens[self.next]
        if kind not in ("name", "number", "text"):
            raise self._wrong(f"expected a column or a value, got {value!r}", place)
        if kind == "name" and value not in self.columns:
            raise unknown("column", str(value), self.columns, f"filter {self.text!r}")
        self.next += 1
        return ("column" if kind == "name" else "value"), value

    def _take(self, kind: str, value: str) -> bool:
        if self.next < len(self.tokens) and self.tokens[self.next][:2] == (kind, value):
            self.next += 1
            return True
        return False

    def _place(self) -> int:
        return self.tokens[self.next][2] if self.next < len(self.tokens) else len(self.text)

    def _wrong(self, what: str, place: int) -> UsageError:
        return UsageError(
            f"Cannot read filter {self.text!r}: {what} (character {place + 1}).",
            f"Write comparisons like bytes<70e6 and kl<0.5; text in quotes. Columns: {', '.join(self.columns)}.",
        )


def _value(term: _Term, row: Row) -> Value:
    kind, value = term
    return row.get(str(value)) if kind == "column" else value
