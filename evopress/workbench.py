"""The workbench: everything heavy a run may need (tokenizer, tokens, model, bank), each made at first use.

A run whose measurements are all in the store never loads the model. It measures profiles through the store, so that nothing is measured
twice. Called by `evopress.run` alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evopress.api import DENSE, DROP, Fitness, Level, NumericalError, Profile, Site, Slice, StorageError, Trial, UsageError, Variant
from evopress.bank.bank import Bank, Decoder, Recipe
from evopress.bank.build import Task, build, tasks
from evopress.data.sources import read as read_text
from evopress.data.tokens import Role, TokenSet
from evopress.data.tokens import build as build_tokens
from evopress.events import Listener, Progress
from evopress.hooks.registry import Registry
from evopress.models.load import load, pick_dtype, tokenizer, weights_digest
from evopress.models.stitch import Stitcher
from evopress.plan import Plan
from evopress.store import BankEntry, LatencyRow, Owner, Store, StoredTrial, TokenSetRow, TrialKey

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

DECODER_BYTES = 4 * 2**30
"""Memory for decoded weights."""
BUSY_POLL_SECONDS = 0.2
SPEED_REPEATS = 7
PARTIAL_SECONDS = 3600.0
"""Half-written bank files older than this belong to nobody."""
PROMPT_TOKENS, DECODE_TOKENS = 512, 64
"""Length of the timed passes, less where the model has fewer positions."""


class Workbench:
    """One study's model, tokens and bank on one device, with its store."""

    def __init__(
        self,
        plan: Plan,
        registry: Registry,
        store: Store,
        home: Path,
        listen: Listener,
        device: str = "cpu",
        dtype: str = "auto",
        bank_quota_bytes: int | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        check_device(device)
        self.plan, self.registry, self.store, self.home, self.listen = plan, registry, store, home, listen
        self.device, self.clock = device, clock
        self.asked_dtype = dtype
        self.bank = Bank(home / "bank", bank_quota_bytes)
        self.owner = Owner.current()
        self.run_id: int | None = None
        self._fitness: dict[tuple[str, str], Fitness] = {}
        self._token_sets: dict[Role, TokenSet] = {}
        self._stored: dict[TrialKey, StoredTrial] = {}

    # Digests and tokens -----------------------------------------------------------------------------------------------------------------

    @cached_property
    def model_digest(self) -> str:
        """Digest of the dense weights."""
        return weights_digest(self.plan.ref, self.home)

    @cached_property
    def texts(self) -> list[str]:
        """Documents of the study's text."""
        return read_text(self.plan.study.text)

    @cached_property
    def tokenizer(self) -> Any:
        """The model's tokenizer."""
        return tokenizer(self.plan.ref)

    def tokens(self, role: Role) -> TokenSet:
        """The token set of a role, made once."""
        if role not in self._token_sets:
            study = self.plan.study
            count = {"calibration": study.calibration_tokens, "search": study.search_tokens, "heldout": study.heldout_tokens}[role]
            self.listen(Progress("text", f"{role}: {count:,} tokens of {study.text}"))

            def encode(text: str) -> list[int]:
                return list(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

            made = build_tokens(study.text, self.texts, encode, role, count, study.window, study.seed)
            self._token_sets[role] = made
            about = (made.name, made.role, made.digest, made.source, len(made.documents), made.tokens, made.seed)
            self.store.save_token_set(TokenSetRow(*about, self.model_digest))
        return self._token_sets[role]

    @cached_property
    def recipe(self) -> Recipe:
        """What determines the bank: weights and activations are read in the compute type, so it belongs to the calibration."""
        return Recipe(self.model_digest, f"{self.tokens('calibration').digest}/{self.dtype}")

    @cached_property
    def dtype(self) -> torch.dtype:
        """Compute type: as asked, or the faster one on this device, measured once and remembered."""
        import torch

        if self.asked_dtype != "auto":
            return getattr(torch, self.asked_dtype)  # type: ignore[no-any-return]
        return remembered_dtype(self.home, self.device, self.clock)

    @cached_property
    def numerics(self) -> str:
        """What else changes a measured number: type, device and the bank's recipe."""
        versions = ",".join(f"{name}:{method.version}" for name, method in sorted(self.plan.methods.items()))
        bank = hashlib.sha256(f"{self.recipe.calibration};{versions}".encode()).hexdigest()[:16]
        return f"{str(self.dtype).removeprefix('torch.')}/{self.device} bank {bank}"

    # Model and bank ---------------------------------------------------------------------------------------------------------------------

    @cached_property
    def model(self) -> nn.Module:
        """The dense model on its device; the bank is completed first, while the weights are at hand."""
        self.listen(Progress("model", f"loading {self.plan.ref.name}"))
        return load(self.plan.ref, self.dtype, self.device)[0]

    @cached_property
    def stitcher(self) -> Stitcher:
        """Writes profiles into the model."""
        return Stitcher(self.model, self.plan.sitemap.sites)

    @cached_property
    def decoder(self) -> Decoder:
        """Dense weights of variants."""
        return Decoder(self.variant, self.dtype, DECODER_BYTES)

    @cached_property
    def _tasks(self) -> dict[tuple[str, Level], Task]:
        return {(task.site.name, task.level): task for task in tasks(self.plan.space, self.plan.methods, self.recipe)}

    def variant(self, site: Site, level: Level) -> Variant:
        """A variant from the bank."""
        task = self._tasks[(site.name, level)]
        return self.bank.get(task.key, site, level)

    def complete_bank(self) -> None:
        """Build what is missing. Resumable; a kill costs at most one site."""
        missing = [task for task in self._tasks.values() if task.key not in self.bank]
        if not missing:
            return
        import torch

        from evopress.models import weights
        from evopress.models.calibrate import calibrate

        documents = self.tokens("calibration").documents
        by_length: dict[int, list[tuple[int, ...]]] = {}
        for document in documents:
            by_length.setdefault(len(document), []).append(document)
        batches = [
            torch.tensor(group[start : start + 8], device=self.device) for group in by_length.values() for start in range(0, len(group), 8)
        ]
        self.bank.discard_partial(time.time() - PARTIAL_SECONDS)
        self.stitcher.restore()
        done = 0

        def progress(site: Site, levels: int) -> None:
            nonlocal done
            done += levels
            self.listen(Progress("bank", site.name, done, len(missing)))

        build(
            missing,
            self.bank,
            lambda wanted: calibrate(self.model, self.plan.sitemap, batches, wanted),
            lambda site: weights.read(self.model, site),
            progress,
        )
        self._keep_bank_entries()

    def _keep_bank_entries(self) -> None:
        """Size and error of every variant as rows, so that SQL can ask about layers without the bank."""
        entries = []
        for task in self._tasks.values():
            cost = task.method.cost(task.site, task.level)
            entries.append(BankEntry(task.site.name, str(task.level), self.bank.error(task.key), cost.bytes))
        self.store.put_bank_entries(self.save_model(), self.recipe.digest, entries)

    def save_model(self) -> int:
        """Store the model with its sites; returns its id there."""
        ref, sitemap = self.plan.ref, self.plan.sitemap
        about = {"config_digest": ref.config_digest}
        return self.store.save_model(ref.name, self.model_digest, about, sitemap.sites, sitemap.total_params)

    @cached_property
    def errors(self) -> tuple[tuple[float, ...], ...]:
        """Relative layer error per site position and level index; a drop counts 1 for every linear site below it."""
        space = self.plan.space
        below = [0] * len(space.sites)
        for position in reversed(range(len(space.sites))):
            if space.parents[position] >= 0:
                below[space.parents[position]] += below[position] + (space.sites[position].kind == "linear")
        table = []
        for position, (site, levels) in enumerate(zip(space.sites, space.levels, strict=True)):
            row = []
            for level in levels:
                if level == DENSE:
                    row.append(0.0)
                elif level == DROP:
                    row.append(float(below[position]))
                else:
                    row.append(self.bank.error(self._tasks[(site.name, level)].key))
            table.append(tuple(row))
        return tuple(table)

    # Measuring --------------------------------------------------------------------------------------------------------------------------

    def fitness(self, name: str, role: Role) -> Fitness:
        """A fitness prepared on the dense model with a token set."""
        if (name, role) not in self._fitness:
            import torch

            made: Fitness = self.registry.get("fitness", name)()
            self.stitcher.restore()
            self.listen(Progress("model", f"reading the dense model's answers on the {role} text"))
            made.prepare(
                self.model, {index: torch.tensor(ids, device=self.device) for index, ids in enumerate(self.tokens(role).documents)}
            )
            self._fitness[(name, role)] = made
        return self._fitness[(name, role)]

    def key(self, profile: Profile, slice_: Slice, fitness: str) -> TrialKey:
        """The key a measurement has in the store."""
        return TrialKey(self.model_digest, profile.digest, slice_.digest, fitness, self.numerics)

    def measure(self, profiles: Sequence[Profile], slice_: Slice, fitness: str, role: Role) -> list[Trial]:
        """Trials of profiles on a slice: from the store where it has them, else taken now and stored at once.

        Another process on the same study may be taking some of them: those are waited for, never repeated.
        """
        wanted = {self.key(profile, slice_, fitness): profile for profile in profiles}
        found: dict[TrialKey, Trial] = {}

        def look(keys: Sequence[TrialKey]) -> bool:
            rows = self.store.find_trials(keys)
            self._stored |= rows
            found.update({key: row.trial(wanted[key], slice_) for key, row in rows.items()})
            return bool(rows)

        look(list(wanted))
        while missing := [key for key in wanted if key not in found]:
            progressed = False
            for key in missing:
                if self.store.claim([key], self.owner).claimed:
                    trial = self._take(wanted[key], slice_, fitness, role)
                    stored = self.store.put_trial(key, trial, bits=self.plan.space.bits(trial.cost), run_id=self.run_id)
                    # Another process may have been first by a hair: then its numbers count here too, and its seconds tell.
                    kept = stored.trial(wanted[key], slice_)
                    self._stored[key], found[key] = stored, replace(kept, cached=stored.seconds != trial.seconds)
                    progressed = True
            if not progressed and not look([key for key in missing if key not in found]):
                time.sleep(BUSY_POLL_SECONDS)
        return [found[self.key(profile, slice_, fitness)] for profile in profiles]

    def stored(self, profile: Profile, slice_: Slice, fitness: str) -> StoredTrial:
        """The stored row of something `measure` returned."""
        return self._stored[self.key(profile, slice_, fitness)]

    def _take(self, profile: Profile, slice_: Slice, fitness: str, role: Role) -> Trial:
        scorer = self.fitness(fitness, role)
        started = self.clock()
        self.stitcher.set(profile, self.decoder)
        values, weights = scorer.score(self.model, self._documents(slice_, role))
        seconds = self.clock() - started
        bad = [value for value in values if not abs(value) < float("inf")]
        if bad:
            raise NumericalError(
                f"The fitness {fitness} of profile {profile.digest[:12]} is {bad[0]} on slice {slice_.digest[:12]}.",
                "Leave out the cheapest levels or use --dtype float32; measurements so far are kept.",
            )
        return Trial(profile, slice_, tuple(values), tuple(weights), self.plan.space.cost(profile), seconds)

    # Speed ------------------------------------------------------------------------------------------------------------------------------

    def speeds(self, profiles: Mapping[str, Profile]) -> dict[str, dict[str, LatencyRow]]:
        """Label -> phase -> measured whole-model speed with real kernels: from the store where one run measured all here, else now.

        Profiles are timed in turns against drift of the machine, so times of different runs are never set side by side.
        """
        from evopress.latency.clock import fingerprint

        environment = {**fingerprint(), "dtype": str(self.dtype).removeprefix("torch.")}
        ids = {label: self.stored(profile, self.whole("heldout"), "kl").profile_id for label, profile in profiles.items()}
        rows = {label: [r for r in self.store.latencies(profile_id=i) if r.environment == environment] for label, i in ids.items()}
        together = common_run(rows)
        if together is not None:
            return together
        from evopress.latency.runtime import bench_interleaved
        from evopress.latency.runtime import build as pack

        self.listen(Progress("speed", f"timing {', '.join(profiles)}", 0, len(profiles)))
        self.stitcher.restore()
        kernels = self.registry.kernels()
        sites = self.plan.sitemap.sites
        packed = {label: pack(self.model, sites, profile, self.variant, kernels) for label, profile in profiles.items()}
        decode = min(DECODE_TOKENS, (self.plan.positions or PROMPT_TOKENS) // 4)
        prompt = min(PROMPT_TOKENS, (self.plan.positions or PROMPT_TOKENS + decode) - decode)
        known: dict[str, dict[str, LatencyRow]] = {label: {} for label in ids}
        for label, speed in bench_interleaved(packed, prompt, decode, repeats=SPEED_REPEATS).items():
            for phase, timing, tokens in (("prefill", speed.prefill, speed.prompt_tokens), ("decode", speed.decode, speed.decode_tokens)):
                row = LatencyRow(
                    kernel=" + ".join(f"{name} ×{count}" for name, count in sorted(speed.kernels.items())), device=self.device, phase=phase,
                    batch=speed.batch, tokens=tokens, threads=environment["threads"], samples=timing.n, median_seconds=timing.median,
                    low_seconds=timing.low, high_seconds=timing.high, tokens_per_second=speed.batch * tokens / timing.median,
                    profile_id=ids[label], environment=environment, run_id=self.run_id,
                )  # fmt: skip
                self.store.put_latency(row)
                known[label][phase] = row
        return known

    def _documents(self, slice_: Slice, role: Role) -> list[tuple[int, Tensor]]:
        import torch

        documents = self.tokens(role).documents
        return [(index, torch.tensor(documents[index][:tokens], device=self.device)) for index, tokens in slice_.documents]

    def whole(self, role: Role) -> Slice:
        """The slice of a whole token set."""
        made = self.tokens(role)
        return Slice(made.digest, tuple((index, len(ids)) for index, ids in enumerate(made.documents)))


def common_run(rows: Mapping[str, Sequence[LatencyRow]]) -> dict[str, dict[str, LatencyRow]] | None:
    """Label -> phase -> row of the latest run that timed every label in both phases; None where there is no such run."""
    by_run: dict[int, dict[str, dict[str, LatencyRow]]] = {}
    for label, found in rows.items():
        for row in found:
            if row.run_id is not None:
                by_run.setdefault(row.run_id, {}).setdefault(label, {})[row.phase] = row
    whole = [run_id for run_id, known in by_run.items() if all({"prefill", "decode"} <= known.get(label, {}).keys() for label in rows)]
    return by_run[max(whole)] if whole else None


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


def remembered_dtype(home: Path, device: str, clock: Callable[[], float]) -> torch.dtype:
    """The faster of bfloat16 and float32, measured at the first call on this processor and torch version and kept in a small file.

    It is kept because the type is part of every measurement's key: a coin that lands otherwise tomorrow would measure all again.
    """
    import torch

    from evopress.latency.clock import fingerprint

    about = fingerprint()
    key = hashlib.sha256(json.dumps([about.get("cpu"), torch.__version__, device]).encode()).hexdigest()[:16]
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
