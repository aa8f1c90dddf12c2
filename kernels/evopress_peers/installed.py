"""Which version of a peer's library is installed. Imports none of them."""

from __future__ import annotations

from functools import cache
from importlib.metadata import PackageNotFoundError, version


@cache
def library_version(name: str) -> str:
    """Of a package, nothing where it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return ""
