"""Compiles C into a shared library once and keeps it: a plain C interface through ctypes. Knows no kernel.

Why so: a file takes the compiler a second or two, torch's headers alone take it many times as long (measured by
`pytest -m slow -s tests/kernels/test_native_toolchain.py`), and Python needs nothing else to call it; an extension against those headers
must match torch's version and compiler; Numba has no bfloat16, no AMX, and cannot promise which instructions a loop becomes.
"""

from __future__ import annotations

import atexit
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


def accepts(flags: tuple[str, ...]) -> bool:
    """Is there a compiler, does it know these features, and can it link threads and what it makes be loaded? A small library is made."""
    path = compiler()
    return path is not None and _makes(path, flags)


SMALL = """#include <immintrin.h>
int count(void) {
    int n = 0;
#pragma omp parallel for reduction(+ : n)
    for (int i = 0; i < 4; i++) n++;
    return n;
}
"""


@cache
def _makes(path: str, flags: tuple[str, ...]) -> bool:
    try:
        made = library(SMALL, flags)
    except (MissingDependency, OSError):
        return False
    return bool(made.count() == 4)


def cache_folder() -> Path:
    """Where compiled kernels are kept, for every EVOPRESS_HOME alike: in the user's cache; where that cannot be written, in a folder that
    goes with this process.
    """
    return _writable((Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "evopress" / "kernels").expanduser())


@cache
def _writable(folder: Path) -> Path:
    try:
        _room(folder).cleanup()
    except StorageError:
        instead = tempfile.TemporaryDirectory(prefix="evopress-kernels-")
        atexit.register(instead.cleanup)
        return Path(instead.name)
    return folder


@cache
def version(path: str) -> str:
    """First line of what the compiler says of itself; nothing of none."""
    if not path:
        return ""
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
            f"Kernels cannot be kept in {folder}: {error.strerror}.", "Set XDG_CACHE_HOME to a folder you may write to."
        ) from error
