"""The workbench: everything heavy a run may need (model, bank, fitnesses), each made at first use.

A run whose measurements are all in the store never loads the model. It measures profiles through the store, so that nothing is measured
twice. Made by the two composition roots, `evopress.run` and `evopress.contest`, and by `evopress search bench`; used by all that measures.
"""

from __future__ import annotations

import hashlib
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from evopress.api import (
    ABSENT,
    DENSE,
    DROP,
    Differentiable,
    Fitness,
    Level,
    NumericalError,
    Profile,
    Site,
    Slice,
    StorageError,
    Trial,
    Variant,
)
from evopress.bank.bank import Bank, Decoder, Recipe
from evopress.bank.build import Task, build, tasks
from evopress.bank.times import note_seconds, spent_seconds
from evopress.data.tokens import Role, TokenSet
from evopress.events import Listener, Progress
from evopress.hooks.registry import Registry
from evopress.models.load import load, weights_digest
from evopress.models.prefix import Path, Prefixes
from evopress.models.slopes import slopes as slopes_of
from evopress.models.stitch import Stitcher
from evopress.plan import Plan
from evopress.precision import arithmetic, remembered_dtype
from evopress.store import BankEntry, Owner, Store, StoredTrial, TokenSetRow, TrialKey
from evopress.texts import Texts

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

DECODER_BYTES = 4 * 2**30
"""Memory for decoded weights."""
PREFIX_BYTES = 2 * 2**30
"""Memory for hidden states that the next candidate may share."""
BATCH = 8
"""Calibration documents that run together."""
BUSY_POLL_SECONDS = 0.2
PARTIAL_SECONDS = 3600.0
"""Half-written bank files older than this belong to nobody."""


class Workbench:
    """One study's model, tokens and bank on one device, with its store."""

    def __init__(
        self,
        plan: Plan,
        texts: Texts,
        registry: Registry,
        store: Store,
        home: pathlib.Path,
        listen: Listener,
        device: str = "cpu",
        dtype: str = "auto",
        bank_quota_bytes: int | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.plan, self.texts, self.registry, self.store, self.home, self.listen = plan, texts, registry, store, home, listen
        self.device, self.clock = device, clock
        self.asked_dtype = dtype
        self.bank = Bank(home / "bank", bank_quota_bytes)
        self.owner = Owner.current()
        self.run_id: int | None = None
        self._fitness: dict[tuple[str, str], Fitness] = {}
        self._token_sets: set[Role] = set()
        self._stored: dict[TrialKey, StoredTrial] = {}
        self._estimated: set[int] = set()

    # Digests and tokens -----------------------------------------------------------------------------------------------------------------

    @cached_property
    def model_digest(self) -> str:
        """Digest of the dense weights."""
        return weights_digest(self.plan.ref, self.home)

    @property
    def tokenizer(self) -> Any:
        """The model's tokenizer."""
        return self.texts.tokenizer

    def tokens(self, role: Role) -> TokenSet:
        """The token set of a role; the store learns of it."""
        made = self.texts.tokens(role)
        if role not in self._token_sets:
            self._token_sets.add(role)
            about = (made.name, made.role, made.digest, made.source, len(made.documents), made.tokens, made.seed)
            self.store.save_token_set(TokenSetRow(*about, self.model_digest, made.origins, made.texts))
        return made

    @cached_property
    def dtype(self) -> torch.dtype:
        """Compute type: as asked, or the faster one on this device, measured once and remembered."""
        import torch

        if self.asked_dtype != "auto":
            return getattr(torch, self.asked_dtype)  # type: ignore[no-any-return]
        return remembered_dtype(self.home, self.device, self.clock)

    @cached_property
    def arithmetic(self) -> str:
        """Type, device and library version: numbers of another arithmetic are other numbers."""
        return arithmetic(self.dtype, self.device)

    @cached_property
    def recipe(self) -> Recipe:
        """What determines the bank: weights and activations are read in this arithmetic, so it belongs to the calibration."""
        return Recipe(self.model_digest, f"{self.tokens('calibration').digest}/{self.arithmetic}")

    def bank_of(self, profile: Profile) -> str:
        """Digest of what a profile's variants are made with: the recipe, and the versions of the methods it uses. "" for none."""
        used = sorted({level.method for _, level in profile if level not in (DENSE, DROP, ABSENT)})
        if not used:
            return ""
        versions = ",".join(f"{name}:{self.plan.methods[name].version}" for name in used)
        return hashlib.sha256(f"{self.recipe.digest};{versions}".encode()).hexdigest()[:16]

    # Model and bank ---------------------------------------------------------------------------------------------------------------------

    @cached_property
    def model(self) -> nn.Module:
        """The study's model on its device."""
        self.listen(Progress("model", f"loading {self.plan.ref.name}"))
        return load(self.plan.ref, self.dtype, self.device)[0]

    @cached_property
    def stitcher(self) -> Stitcher:
        """Writes profiles into the model."""
        return Stitcher(self.model, self.plan.sitemap.sites)

    @cached_property
    def prefixes(self) -> Prefixes:
        """Hidden states shared by candidates; none are kept for a model whose blocks read more than the hidden states."""
        import torch

        self.stitcher.restore()  # the proof must be of the dense model, in which every block runs
        blocks = list(self.model.get_submodule(self.plan.sitemap.stack).children())
        made = Prefixes(blocks, PREFIX_BYTES)
        if not made.exact(self.model, torch.tensor([self.tokens("search").documents[0][:16]], device=self.device)):
            self.listen(Progress("model", "its blocks read more than the hidden states, so candidates share none"))
            return Prefixes(blocks, 0)
        return made

    def path(self, profile: Profile) -> Path:
        """What every block computes under a profile."""
        blocks: dict[int, list[Level]] = {}
        for site in self.plan.sitemap.sites:
            blocks.setdefault(site.depth, []).append(profile[site.name])
        return tuple(tuple(levels) for _, levels in sorted(blocks.items()))

    @cached_property
    def decoder(self) -> Decoder:
        """Dense weights of variants."""
        return Decoder(self.variant, self.dtype, DECODER_BYTES, self.device)

    @cached_property
    def _tasks(self) -> dict[tuple[str, Level], Task]:
        return {(task.site.name, task.level): task for task in tasks(self.plan.space, self.plan.methods, self.recipe)}

    def variant(self, site: Site, level: Level) -> Variant:
        """A variant from the bank."""
        task = self._tasks[(site.name, level)]
        return self.bank.get(task.key, site, level)

    def error(self, site: Site, level: Level) -> float:
        """Relative layer error of a variant, from the bank."""
        return self.bank.error(self._tasks[(site.name, level)].key)

    def complete_bank(self) -> None:
        """Build what is missing. Resumable; a kill costs at most one site. Raises StorageError for a quota that it cannot meet."""
        if self.bank.quota_bytes is not None and self.plan.bank_bytes > self.bank.quota_bytes:
            raise StorageError(
                f"The bank of this study takes {self.plan.bank_bytes:,} bytes, more than its quota of {self.bank.quota_bytes:,}.",
                "Raise it with --bank-quota, or offer fewer levels.",
            )
        if not self._missing():
            if not self.store.bank_entries(self.model_id, self.recipe.digest):  # built for another store
                self._keep_bank_entries()
            return
        # One process builds; another on the same bank waits here, and finds it complete.
        with self.store.holding(f"bank {self.owner.host} {self.bank.root.resolve()} {self.recipe.digest}", self.owner):
            missing = self._missing()
            if missing:
                self._build_bank(missing)

    def calibration_batches(self) -> list[Tensor]:
        """The calibration documents in batches of equal length, so that none is padded."""
        import torch

        by_length: dict[int, list[tuple[int, ...]]] = {}
        for document in self.tokens("calibration").documents:
            by_length.setdefault(len(document), []).append(document)
        return [
            torch.tensor(group[start : start + BATCH], device=self.device)
            for group in by_length.values()
            for start in range(0, len(group), BATCH)
        ]

    @property
    def bank_is_complete(self) -> bool:
        """Is every variant there?"""
        return not self._missing()

    @property
    def bank_seconds(self) -> float | None:
        """What building this study's variants took, calibration included; None where nobody noted it."""
        return spent_seconds(self.bank.root, self.recipe.digest, [task.key for task in self._tasks.values()])

    def _missing(self) -> list[Task]:
        return [task for task in self._tasks.values() if task.key not in self.bank]

    def _build_bank(self, missing: Sequence[Task]) -> None:
        from evopress.models import weights
        from evopress.models.calibrate import calibrate

        batches = self.calibration_batches()
        self.bank.discard_partial(time.time() - PARTIAL_SECONDS)
        self.stitcher.restore()
        keys: dict[str, list[str]] = {}
        for task in missing:
            keys.setdefault(task.site.name, []).append(task.key)
        done, since = 0, self.clock()

        def progress(site: Site, levels: int) -> None:
            nonlocal done, since
            done += levels
            note_seconds(self.bank.root, self.recipe.digest, keys[site.name], (now := self.clock()) - since)
            since = now
            self.listen(Progress("bank", site.name, done, len(missing)))

        build(
            missing,
            self.bank,
            lambda wanted: calibrate(self.model, self.plan.sitemap, batches, wanted),
            lambda site: weights.read(self.model, site).cpu(),
            progress,
        )
        self._keep_bank_entries()

    def _keep_bank_entries(self) -> None:
        """Size and error of every variant as rows, so that SQL can ask about layers without the bank."""
        entries = []
        for task in self._tasks.values():
            cost = task.method.cost(task.site, task.level)
            entries.append(BankEntry(task.site.name, str(task.level), self.bank.error(task.key), cost.bytes))
        self.store.put_bank_entries(self.model_id, self.recipe.digest, entries)

    @cached_property
    def model_id(self) -> int:
        """Row of the model in the store, which learns of it and its sites at first use."""
        ref, sitemap = self.plan.ref, self.plan.sitemap
        about = {"config_digest": ref.config_digest}
        return self.store.save_model(ref.name, self.model_digest, about, sitemap.sites, sitemap.total_params)

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

    def key(self, profile: Profile, slice_: Slice, fitness: str, slopes: bool = False) -> TrialKey:
        """The key a measurement has in the store. One with slopes runs in other batches, so its last bits are its own."""
        numerics = f"{self.numerics(fitness)}{' with slopes' if slopes else ''}"
        return TrialKey(self.model_digest, profile.digest, slice_.digest, fitness, numerics, self.bank_of(profile))

    def numerics(self, fitness: str) -> str:
        """What the last bits of a measurement depend on beside weights and tokens."""
        return f"{self.arithmetic} {fitness}-{self.registry.get('fitness', fitness).version}"

    def measure_after(self, before: Profile, profile: Profile, slice_: Slice, fitness: str, role: Role) -> Trial:
        """As `measure`, with another profile stitched in before: the answer also says whether un-stitching is exact."""
        if not self.store.find_trials([self.key(profile, slice_, fitness)]):
            self.fitness(fitness, role)
            self.stitcher.set(before, self.decoder)
        return self.measure([profile], slice_, fitness, role)[0]

    def measure(self, profiles: Sequence[Profile], slice_: Slice, fitness: str, role: Role, slopes: bool = False) -> list[Trial]:
        """Trials of profiles on a slice: from the store where it has them, else taken now and stored at once. slopes: as in `Trial`.

        Another process on the same study may be taking some of them: those are waited for, never repeated.
        """
        wanted = {self.key(profile, slice_, fitness, slopes): profile for profile in profiles}
        found: dict[TrialKey, Trial] = {}

        def look(keys: Sequence[TrialKey]) -> bool:
            rows = self.store.find_trials(keys)
            self._stored |= rows
            if rows and self.plan.workload is not None:
                self._estimate({rows[key].id: wanted[key] for key in rows})
            found.update({key: row.trial(wanted[key], slice_) for key, row in rows.items()})
            return bool(rows)

        look(list(wanted))
        while missing := [key for key in wanted if key not in found]:
            progressed = False
            order = {profile: place for place, profile in enumerate(self.in_order([wanted[key] for key in missing]))}
            for key in sorted(missing, key=lambda key: order[wanted[key]]):
                if self.store.claim([key], self.owner).claimed:
                    trial = (self._take_slopes if slopes else self.take)(wanted[key], slice_, fitness, role)
                    stored = self.store.put_trial(key, trial, bits=self.plan.space.bits(trial.cost), run_id=self.run_id)
                    # Another process may have been first by a hair: then its numbers count here too.
                    self._stored[key], found[key] = stored, stored.trial(wanted[key], slice_)
                    progressed = True
            if not progressed and not look([key for key in missing if key not in found]):
                time.sleep(BUSY_POLL_SECONDS)
        return [found[self.key(profile, slice_, fitness, slopes)] for profile in profiles]

    def _estimate(self, profiles: Mapping[int, Profile]) -> None:
        """Note the time of trials that an earlier study may have taken without one; each once."""
        cost = self.plan.space.cost
        new = {number: cost(profile).nanoseconds / 1e9 for number, profile in profiles.items() if number not in self._estimated}
        if new:
            self.store.estimate_trials(new)
            self._estimated |= new.keys()

    def stored(self, profile: Profile, slice_: Slice, fitness: str, slopes: bool = False) -> StoredTrial:
        """The stored row of something `measure` returned."""
        return self._stored[self.key(profile, slice_, fitness, slopes)]

    def profile_id(self, profile: Profile) -> int:
        """Row of a profile in the store, where it is kept with its cost."""
        cost = self.plan.space.cost(profile)
        return self.store.save_profile(self.model_id, profile, cost, self.plan.space.bits(cost), self.bank_of(profile))

    def in_order(self, profiles: Sequence[Profile]) -> list[Profile]:
        """Neighbours next to each other: each continues the one before at the first block where they part."""
        return sorted(profiles, key=lambda profile: str(self.path(profile)))

    def take(self, profile: Profile, slice_: Slice, fitness: str, role: Role) -> Trial:
        """Measure now, whatever the store holds, and keep nothing."""
        scorer, prefixes = self.fitness(fitness, role), self.prefixes
        started = self.clock()
        self.stitcher.set(profile, self.decoder)
        with prefixes.along(self.path(profile)):
            values, weights = scorer.score(self.model, self.documents(slice_, role))
        return self._trial(profile, slice_, fitness, values, weights, self.clock() - started)

    def _take_slopes(self, profile: Profile, slice_: Slice, fitness: str, role: Role) -> Trial:
        scorer, space = self.fitness(fitness, role), self.plan.space
        assert isinstance(scorer, Differentiable), "a study whose searcher needs slopes was let through with a fitness without them"
        started = self.clock()
        self.stitcher.set(profile, self.decoder)
        answer: list[tuple[list[float], list[int]]] = []
        documents = self.documents(slice_, role)
        found = slopes_of(
            self.model, self.stitcher, space.sites, space.levels, lambda: answer.append(scorer.backward(self.model, documents))
        )
        return self._trial(profile, slice_, fitness, *answer[0], self.clock() - started, found)

    def _trial(
        self, profile: Profile, slice_: Slice, fitness: str, values: list[float], weights: list[int], seconds: float,
        slopes: tuple[float, ...] = (),
    ) -> Trial:  # fmt: skip
        bad = [value for value in values if not abs(value) < float("inf")]
        if bad:
            raise NumericalError(
                f"The fitness {fitness} of profile {profile.digest[:12]} is {bad[0]} on slice {slice_.digest[:12]}.",
                "Leave out the cheapest levels or use --dtype float32; measurements so far are kept.",
            )
        return Trial(profile, slice_, tuple(values), tuple(weights), self.plan.space.cost(profile), seconds, slopes=slopes)

    def documents(self, slice_: Slice, role: Role) -> list[tuple[int, Tensor]]:
        """The token ids of a slice, by index in the token set."""
        import torch

        documents = self.tokens(role).documents
        return [(index, torch.tensor(documents[index][:tokens], device=self.device)) for index, tokens in slice_.documents]
