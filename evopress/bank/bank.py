"""The bank: every variant on disk, packed, content-addressed, written atomically, checked when read.

One safetensors file a variant, named by the digest of what determines it: model weights, calibration tokens, site, level, method version.
It does not compress anything (`evopress.bank.build` does) and never holds a dense copy. Called by the run.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from evopress.api import Cost, Level, Site, StorageError, Variant
from evopress.files import write_whole

if TYPE_CHECKING:
    from torch import Tensor


TAG = "evopress-bank-2"
"""Raised when the same recipe comes to mean other variants."""


@dataclass(frozen=True)
class Recipe:
    """The inputs that determine every variant of a bank. model and calibration are digests."""

    model: str
    calibration: str

    @property
    def digest(self) -> str:
        """SHA-256 of both and of TAG, hexadecimal."""
        return hashlib.sha256(f"{TAG}\n{self.model}\n{self.calibration}".encode()).hexdigest()

    def key(self, site: Site, level: Level, method_version: int) -> str:
        """File name of a variant: SHA-256 of its inputs, hexadecimal. Derived floats never enter, so a bank stays resumable."""
        text = "\n".join([TAG, self.model, self.calibration, site.name, str(level), str(method_version)])
        return hashlib.sha256(text.encode()).hexdigest()


class Bank:
    """Variants under one folder, at most `quota_bytes` of them (None: no limit)."""

    def __init__(self, root: Path, quota_bytes: int | None = None) -> None:
        self.root = root
        self.quota_bytes = quota_bytes
        self._used_bytes: int | None = None

    def path(self, key: str) -> Path:
        """Where a variant lies."""
        return self.root / key[:2] / f"{key}.safetensors"

    def __contains__(self, key: str) -> bool:
        return self.path(key).exists()

    @property
    def used_bytes(self) -> int:
        """Bytes of all files of the bank."""
        if self._used_bytes is None:
            self._used_bytes = sum(file.stat().st_size for file in self.root.glob("*/*.safetensors"))
        return self._used_bytes

    def put(self, key: str, variant: Variant, error: float) -> None:
        """Write a variant and its relative layer error. Raises StorageError when the disk or the quota is full, or cannot be written."""
        from safetensors.torch import save

        tensors = {name: tensor.contiguous() for name, tensor in variant.tensors.items()}
        about = {"format": variant.format, "level": str(variant.level), "site": variant.site.name, "error": repr(error)}
        about |= {"bytes": str(variant.cost.bytes), "params": str(variant.cost.params), "checksum": checksum(tensors)}
        data = save(tensors, metadata={**about, "seal": _seal(about)})
        if self.quota_bytes is not None and self.used_bytes + len(data) > self.quota_bytes:
            raise StorageError(
                f"The bank {self.root} would exceed its quota of {self.quota_bytes:,} bytes ({self.used_bytes:,} used).",
                "Raise it with --bank-quota, offer fewer levels, or delete the folder.",
            )
        keep(self.root, self.path(key), data)
        self._used_bytes = self.used_bytes + len(data)

    def discard_partial(self, before: float) -> None:
        """Delete what a killed writer left half written, unless it was touched after `before` (seconds since the epoch): it may live."""
        for file in self.root.glob("*/.*.safetensors.*"):
            with contextlib.suppress(FileNotFoundError):  # another process may tidy up too
                if file.stat().st_mtime < before:
                    file.unlink()

    def get(self, key: str, site: Site, level: Level) -> Variant:
        """Read a variant and check it. Raises StorageError naming the file when it is missing or damaged."""
        about, tensors = self._read(self.path(key))
        if about["checksum"] != checksum(tensors):
            raise self._damaged(self.path(key), "its checksum does not match")
        return Variant(site, level, about["format"], tensors, Cost(int(about["bytes"]), int(about["params"])))

    def error(self, key: str) -> float:
        """Relative layer error of a variant, tr(ΔHΔᵀ)/tr(WHWᵀ), from the file's header alone."""
        return float(self._header(self.path(key))["error"])

    def _read(self, path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="pt") as file:
                about = dict(file.metadata() or {})
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        except FileNotFoundError as error:
            raise StorageError(f"The bank file {path} is missing.", "Run the same command again to rebuild it.") from error
        except (SafetensorError, OSError) as error:
            raise self._damaged(path, str(error)) from error
        self._check_seal(path, about)
        return about, tensors

    def _header(self, path: Path) -> Mapping[str, str]:
        # The header alone: 8 bytes of length, then JSON. Reading hundreds of errors must not read hundreds of megabytes.
        try:
            with path.open("rb") as file:
                size = int.from_bytes(file.read(8), "little")
                if size > 1_000_000:
                    raise self._damaged(path, "its header is too long")
                about: Mapping[str, str] = dict(json.loads(file.read(size))["__metadata__"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise self._damaged(path, str(error)) from error
        self._check_seal(path, about)
        return about

    def _check_seal(self, path: Path, about: Mapping[str, str]) -> None:
        if about.get("seal") != _seal({key: value for key, value in about.items() if key != "seal"}):
            raise self._damaged(path, "its header does not match its seal")

    def _damaged(self, path: Path, why: str) -> StorageError:
        return StorageError(f"The bank file {path} is damaged: {why}.", "Delete that file and run the same command again to rebuild it.")


class Decoder:
    """Dense float weights of variants, decoded once and kept within a memory limit, least recently used out first."""

    def __init__(self, read: Callable[[Site, Level], Variant], dtype: object, limit_bytes: int, device: str = "cpu") -> None:
        self._read = read
        self._dtype = dtype
        self._device = device
        self._limit_bytes = limit_bytes
        self._kept: OrderedDict[tuple[str, Level], Tensor] = OrderedDict()
        self._kept_bytes = 0

    def __call__(self, site: Site, level: Level) -> Tensor:
        """weight_RC of a site at a level, in the compute type, on the device."""
        from evopress.api.formats import decode

        key = (site.name, level)
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        variant = self._read(site, level)
        weight: Tensor = decode(variant.format, variant.tensors, site.shape).to(self._dtype).to(self._device)  # type: ignore[call-overload]
        self._kept[key] = weight
        self._kept_bytes += weight.nbytes
        while self._kept_bytes > self._limit_bytes and len(self._kept) > 1:
            self._kept_bytes -= self._kept.popitem(last=False)[1].nbytes
        return weight


def keep(root: Path, target: Path, data: bytes) -> None:
    """Write a file of the bank, whole or not at all. Raises StorageError when the disk is full or cannot be written."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_whole(target, data)
    except OSError as error:
        raise _disk_error(root, error) from error


def checksum(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, types, shapes and contents."""
    import torch

    hasher = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        hasher.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
        hasher.update(tensor.view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")
    return hasher.hexdigest()


def _seal(about: Mapping[str, str]) -> str:
    """Digest of the metadata, which is read without the tensors and so needs a check of its own."""
    return hashlib.sha256(json.dumps(dict(about), sort_keys=True).encode()).hexdigest()


def _disk_error(root: Path, error: OSError) -> StorageError:
    if error.errno == errno.ENOSPC:
        return StorageError(f"The disk of the bank {root} is full.", "Free space or set EVOPRESS_HOME to another disk; then run again.")
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return StorageError(f"The bank {root} cannot be written: {error.strerror}.", "Set EVOPRESS_HOME to a folder you may write to.")
    return StorageError(f"The bank {root} cannot be written: {error}.", "Check the disk; then run the same command again.")
