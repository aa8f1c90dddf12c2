"""Compiles C into a shared library once and keeps it: a plain C interface through ctypes. Knows no kernel.

Why so: measured on two x86-64 cores, gcc 12 compiles one of these files in 1 to 2 s and Python needs nothing else to call it; an extension
against torch's headers takes about a minute a file and must match torch's version and compiler; Numba has no bfloat16, no AMX, and cannot
promise which instructions an inner loop becomes. The price is about 2 µs a call.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

from evopress.api import MissingDependency, StorageError

COMPILERS = ("cc", "gcc", "clang")
FLAGS = ("-O3", "-std=gnu11", "-shared", "-fPIC", "-fopenmp", "-fno-math-errno", "-ffp-contract=off", "-Wall")
VARIABLE = "CC"


@cache
def compiler() -> str | None:
    """Path of the C compiler: `CC`, else the system's."""
    for name in (os.environ.get(VARIABLE, ""), *COMPILERS):
        found = shutil.which(name) if name else None
        if found:
            return found
    return None


def missing_compiler() -> MissingDependency:
    """What to tell a user whose machine has no C compiler."""
    return MissingDependency(
        "The native kernels need a C compiler and found none.",
        "Install one (apt install gcc), or set CC to its path. Until then torch's kernels run.",
    )


def library(source: str, flags: tuple[str, ...], folder: Path | None = None) -> ctypes.CDLL:
    """The library of this source, compiled now if it never was. Safe for several processes at once: the file appears whole.

    Kept by the contents of source, flags and compiler, in `folder` or the user's cache. Raises MissingDependency without a compiler, or
    with one that refuses the source (its first error says why); StorageError where nothing can be kept.
    """
    path = compiler()
    if path is None:
        raise missing_compiler()
    folder = folder or cache_folder()
    key = hashlib.sha256("\n".join((source, *FLAGS, *flags, version(path))).encode()).hexdigest()[:24]
    file = folder / f"{key}.so"
    if not file.is_file():
        _compile(path, source, flags, file)
    return ctypes.CDLL(str(file))


def cache_folder() -> Path:
    """Where compiled kernels are kept: `kernels` under EVOPRESS_HOME, else under the user's cache."""
    home = os.environ.get("EVOPRESS_HOME")
    user = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "evopress"
    return (Path(home) if home else user).expanduser() / "kernels"


@cache
def version(path: str) -> str:
    """First line of what the compiler says of itself."""
    said = subprocess.run([path, "--version"], capture_output=True, text=True, check=False)
    return f"{path} {said.stdout.partition(chr(10))[0]}"


def _compile(path: str, source: str, flags: tuple[str, ...], file: Path) -> None:
    with _room(file.parent) as folder:
        text, made = Path(folder) / "kernel.c", Path(folder) / "kernel.so"
        text.write_text(source)
        done = subprocess.run([path, *FLAGS, *flags, "-o", str(made), str(text)], capture_output=True, text=True, check=False)
        if done.returncode:
            first = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr.strip() or "no message")
            raise MissingDependency(
                f"{path} does not compile the native kernels: {first.strip()}", "Set CC to gcc 11 or clang 15, or later."
            )
        made.replace(file)


def _room(folder: Path) -> tempfile.TemporaryDirectory[str]:
    """A folder to compile in, on the same disk, so that a library can be moved into place."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return tempfile.TemporaryDirectory(dir=folder)
    except OSError as error:
        raise StorageError(
            f"Kernels cannot be kept in {folder}: {error.strerror}.", "Set EVOPRESS_HOME to a folder you may write to."
        ) from error
