"""In which version a plugin's code is: a digest of its files, and the libraries it calls. Used by kernels; no torch."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

SOURCES = (".py", ".c", ".h", ".cpp", ".cu")


def code_version(module: str, libraries: Iterable[str] = ()) -> str:
    """`3f0c2a9d4b7e onnxruntime-1.32.0`: of the top package that holds a module, or of a module's file; libraries that are here."""
    return " ".join((_digest(module.partition(".")[0]), *(f"{name}-{found}" for name in libraries if (found := library_version(name)))))


@cache
def library_version(name: str) -> str:
    """Of an installed distribution, "" where it is not."""
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


@cache
def _digest(package: str) -> str:
    """SHA-256 of a package's files, the first 12 hexadecimal digits; "interactive" for what was typed."""
    found = sys.modules.get(package)
    file = Path(getattr(found, "__file__", None) or "")
    if not file.is_file():
        return "interactive"
    own = sorted(path for path in file.parent.rglob("*") if path.suffix in SOURCES) if file.stem == "__init__" else [file]
    return hashlib.sha256(b"".join(path.read_bytes() for path in own)).hexdigest()[:12]
