"""On what device and in what type a study computes: checks the device, picks the type, and names the arithmetic.

Measures no model. Called by the workbench.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from evopress.api import StorageError, UsageError, unknown
from evopress.models.load import pick_dtype

if TYPE_CHECKING:
    import torch

DTYPES = ("auto", "bfloat16", "float32")
"""What a study may compute in; float16 overflows in some models."""


def check_device(device: str) -> None:
    """Raise UsageError for a device that torch does not know or this machine does not have."""
    import torch

    try:
        wanted = torch.device(device)
    except RuntimeError:
        wanted = torch.device("meta")
    if wanted.type not in ("cpu", "cuda"):
        raise UsageError(f"Unknown device {device!r}.", "Allowed: cpu, cuda, cuda:1 and so on.")
    found = torch.cuda.device_count()
    if wanted.type == "cuda" and (wanted.index or 0) >= found:
        raise UsageError(
            f"Device {device!r} is not there: torch {torch.__version__} sees {found} CUDA devices.",
            "Leave out --device to run on the CPU, or install a torch built for CUDA and check the driver.",
        )


def check_dtype(dtype: str) -> None:
    """Raise UsageError for a type that is none of DTYPES."""
    if dtype not in DTYPES:
        raise unknown("type", dtype, DTYPES, "--dtype")


def arithmetic(dtype: torch.dtype, device: str) -> str:
    """Name of the arithmetic, `bfloat16/cpu AVX512 torch-2.13.0 transformers-5.0`: equal names, equal numbers up to the order of sums."""
    from importlib.metadata import version

    import torch

    kind = torch.device(device).type
    processor = torch.backends.cpu.get_cpu_capability() if kind == "cpu" else torch.cuda.get_device_name(device)
    return f"{str(dtype).removeprefix('torch.')}/{kind} {processor} torch-{torch.__version__} transformers-{version('transformers')}"


def remembered_dtype(home: Path, device: str, clock: Callable[[], float]) -> torch.dtype:
    """The faster of bfloat16 and float32, measured at the first call on this processor and torch version and kept in a small file.

    It is kept because the type is part of every measurement's key: a coin that lands otherwise tomorrow would measure all again.
    """
    import torch

    from evopress.latency.clock import fingerprint

    about = fingerprint(device)
    key = hashlib.sha256(json.dumps([about.get("gpu") or about.get("cpu"), torch.__version__, device]).encode()).hexdigest()[:16]
    file = home / "dtype" / f"{key}.txt"
    try:
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            fresh = file.with_name(f"{file.name}.{os.getpid()}")
            fresh.write_text(str(pick_dtype(device, clock)).removeprefix("torch."))
            with contextlib.suppress(FileExistsError):  # of two processes that measure at once, the first decides for both
                os.link(fresh, file)
            fresh.unlink()
        name = file.read_text().strip()
    except OSError as error:
        raise StorageError(
            f"The folder {file.parent} cannot be written: {error.strerror}.", "Set EVOPRESS_HOME to a folder you may write to."
        ) from error
    if name not in ("bfloat16", "float32"):
        raise StorageError(f"The file {file} is damaged: it says {name!r}.", "Delete it, or give --dtype bfloat16 or float32.")
    return getattr(torch, name)  # type: ignore[no-any-return]
