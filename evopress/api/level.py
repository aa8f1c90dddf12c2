"""Level: one setting of one method at a site; prints and parses as `gptq(bits=3,group=64)`.

Also parses method specifications, where an option may list several values: `gptq(bits=2..5,group=64)`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from evopress.api.errors import UsageError

Scalar = int | float | bool | str
MOST_VALUES = 1000
"""A range of more values than this is a slip of the hand."""
_NUMERAL = re.compile(r"^[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?$", re.ASCII)
_CALL = re.compile(r"^\s*([A-Za-z_][\w\-]*)\s*(?:\((.*)\))?\s*$", re.DOTALL)


def _scalar(text: str) -> Scalar:
    text = text.strip()
    if text in ("true", "false"):
        return text == "true"
    if not _NUMERAL.match(text):  # `inf`, `nan` and `1_000` are words, not numbers
        return text
    return int(text) if text.lstrip("+-").isdigit() else float(text)


def show(value: Scalar) -> str:
    """A value as it is written in an option."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return repr(value) if isinstance(value, float) else str(value)


def _split_call(text: str, what: str) -> tuple[str, list[tuple[str, str]]]:
    match = _CALL.match(text)
    if not match:
        raise UsageError(f"Cannot read {what} {text!r}.", "Write it as name or name(option=value,…), e.g. gptq(bits=3,group=64).")
    name, body = match.group(1), (match.group(2) or "").strip()
    pairs: list[tuple[str, str]] = []
    for part in body.split(",") if body else []:
        key, equals, value = part.partition("=")
        if not equals or not key.strip() or not value.strip():
            raise UsageError(f"Cannot read option {part.strip()!r} of {what} {text!r}.", "Write options as key=value.")
        if key.strip() in (known for known, _ in pairs):
            raise UsageError(f"Option {key.strip()!r} stands twice in {what} {text!r}.", "Give it once; several values as 2|4 or 2..4.")
        pairs.append((key.strip(), value.strip()))
    return name, pairs


@dataclass(frozen=True, slots=True, order=True)
class Level:
    """Method name plus options. `dense` keeps a site, `drop` removes it, `absent` marks a site under a dropped parent."""

    method: str
    options: tuple[tuple[str, Scalar], ...] = ()

    @staticmethod
    def of(method: str, **options: Scalar) -> Level:
        """Build a level; options are kept in the order given."""
        return Level(method, tuple(options.items()))

    @staticmethod
    def parse(text: str) -> Level:
        """Read what `str(level)` wrote. Raises UsageError."""
        name, pairs = _split_call(text, "level")
        return Level(name, tuple((key, _scalar(value)) for key, value in pairs))

    def __str__(self) -> str:
        if not self.options:
            return self.method
        return f"{self.method}({','.join(f'{key}={show(value)}' for key, value in self.options)})"

    def option(self, key: str) -> Any:
        """Value of one option; KeyError if the level does not have it."""
        return dict(self.options)[key]


DENSE = Level("dense")
DROP = Level("drop")
ABSENT = Level("absent")


def parse_method(text: str) -> tuple[str, dict[str, Scalar | tuple[Scalar, ...]]]:
    """Read a method specification: `gptq(bits=2..5,group=64)` -> ("gptq", {"bits": (2, 3, 4, 5), "group": 64}).

    `a..b` is an inclusive integer range and `a|b|c` a list; both give a tuple. Raises UsageError.
    """
    name, pairs = _split_call(text, "method")
    options: dict[str, Scalar | tuple[Scalar, ...]] = {}
    for key, value in pairs:
        span = re.fullmatch(r"(-?\d+)\.\.(-?\d+)", value)
        if span:
            low, high = int(span.group(1)), int(span.group(2))
            if low > high:
                raise UsageError(f"Empty range {value!r} in method {text!r}.", "Write the lower end first.")
            if high - low >= MOST_VALUES:
                raise UsageError(
                    f"Range {value!r} in method {text!r} has {high - low + 1:,} values.", f"At most {MOST_VALUES:,} are allowed."
                )
            options[key] = tuple(range(low, high + 1))
        elif "|" in value:
            options[key] = tuple(_scalar(part) for part in value.split("|"))
        else:
            options[key] = _scalar(value)
    return name, options
