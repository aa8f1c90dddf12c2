"""Profile: a level for every site. The genotype of a search and the recipe of a compressed model."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

from evopress.api.errors import UsageError
from evopress.api.level import Level


@dataclass(frozen=True)
class Profile:
    """Site name -> level, in model order. Sites under a dropped parent carry the level `absent`.

    Two profiles with equal digests describe the same compressed model. Text form: one `site: level` a line.
    """

    levels: tuple[tuple[str, Level], ...]

    @staticmethod
    def of(levels: Mapping[str, Level]) -> Profile:
        """Build from a mapping, keeping its order."""
        return Profile(tuple(levels.items()))

    @staticmethod
    def parse(text: str) -> Profile:
        """Read the text form; blank lines and `#` comments are skipped. Raises UsageError."""
        levels: dict[str, Level] = {}
        for number, line in enumerate(text.splitlines(), 1):
            line = line.split("#", 1)[0].strip()
            if not line:
                continue
            site, colon, level = line.partition(":")
            if not colon or not site.strip():
                raise UsageError(f"Line {number} of the profile is {line!r}.", "Write every line as site: level.")
            if site.strip() in levels:
                raise UsageError(f"Line {number} of the profile names site {site.strip()!r} again.", "Keep one line a site.")
            levels[site.strip()] = Level.parse(level.strip())
        return Profile.of(levels)

    def __str__(self) -> str:
        return "\n".join(f"{site}: {level}" for site, level in self.levels)

    def __iter__(self) -> Iterator[tuple[str, Level]]:
        return iter(self.levels)

    def __len__(self) -> int:
        return len(self.levels)

    def __getitem__(self, site: str) -> Level:
        return self._by_site[site]

    @cached_property
    def _by_site(self) -> dict[str, Level]:
        return dict(self.levels)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the text form, hexadecimal."""
        return hashlib.sha256(str(self).encode()).hexdigest()
