"""A planted store: one study with four labelled profiles of a made-up model, with scores and speeds, and an empty study.

Not a fixture file: `conftest.py` makes fixtures of it. Also runs commands for tests.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from evopress.api import ABSENT, DENSE, DROP, Cost, Level, Profile, Site, Slice, Trial
from evopress.api.study import Study
from evopress.store import LatencyRow, Owner, Store, TaskScore, TokenSetRow, TrialKey

MODEL = "m" * 64
DEPTHS = 3


def sites() -> tuple[Site, ...]:
    """Three blocks of attention (q_proj 16×64) and mlp (down_proj 64×128)."""
    found = []
    for depth in range(DEPTHS):
        block = f"model.layers.{depth}"
        found += [
            Site(block, "block", (0, 0), depth, None, own_params=128),
            Site(f"{block}.self_attn", "attention", (0, 0), depth, block),
            Site(f"{block}.self_attn.q_proj", "linear", (16, 64), depth, f"{block}.self_attn"),
            Site(f"{block}.mlp", "mlp", (0, 0), depth, block),
            Site(f"{block}.mlp.down_proj", "linear", (64, 128), depth, f"{block}.mlp"),
        ]
    return tuple(found)


def profile(q: list[str], down: list[str], drop: tuple[str, ...] = ()) -> Profile:
    """A profile from the level texts of q_proj and down_proj by depth; `drop` names containers."""
    levels = {}
    for site in sites():
        if site.kind != "linear":
            levels[site.name] = DROP if site.name in drop else DENSE
        elif any(site.name.startswith(f"{name}.") for name in drop):
            levels[site.name] = ABSENT
        else:
            levels[site.name] = Level.parse((q if site.role == "q_proj" else down)[site.depth])
    return Profile.of(levels)


def gptq(bits: int) -> str:
    """Text of a level."""
    return f"gptq(bits={bits},group=64)"


PROFILES = {
    "dense": profile(["dense"] * 3, ["dense"] * 3),
    "uniform": profile([gptq(3)] * 3, [gptq(3)] * 3),
    "knapsack": profile([gptq(4)] * 3, [gptq(2), gptq(3), gptq(4)]),
    "evolve": profile([gptq(4), gptq(2), gptq(3)], [gptq(2), "sparsegpt(sparsity=0.6)", "dense"], ("model.layers.1.self_attn",)),
}
BYTES = {"dense": 60_000, "uniform": 20_000, "knapsack": 20_500, "evolve": 19_900}
KL = {"dense": 0.0, "uniform": 0.5, "knapsack": 0.6, "evolve": 0.25}


class Planted(NamedTuple):
    """The store's URL and what is in it."""

    url: str
    digests: dict[str, str]
    ids: dict[str, int]


def plant(url: str) -> Planted:
    """Fill a store through its own interface."""
    study = Study.make({"name": "demo", "searcher": "evolve(offspring=8)"})
    heldout = Slice("t" * 64, ((0, 11), (1, 21)))
    ids = {}
    with Store.open(url) as store:
        model_id = store.save_model("tiny", MODEL, {}, sites(), 30_000)
        store.save_token_set(TokenSetRow("sotu", "heldout", heldout.token_set, "sotu", 2, 32, 0, "tok"))
        study_id = store.study(study.name, study.identity, study.digest).id
        for label, found in PROFILES.items():
            cost, bits = Cost(BYTES[label], 30_000), {"dense": 16.0}.get(label, 3.5)
            for fitness, base in (("kl", 0.0), ("perplexity", 2.0)):
                values = (base + KL[label] - 0.1 * KL[label], base + KL[label] + 0.05 * KL[label])  # weighted 10:20 this is base + KL
                key = TrialKey(MODEL, found.digest, heldout.digest, fitness, "float32/cpu")
                ids[label] = store.put_trial(key, Trial(found, heldout, values, (10, 20), cost, 0.1), bits=bits).profile_id
            store.put_result(study_id, label, ids[label], role="winner" if label == "evolve" else "baseline")
        run = store.start_run(study_id, seed=0, command="", environment={}, code_version="", owner=Owner.current())
        for label, rate in (("uniform", 40.0), ("dense", 30.0)):
            for phase in ("prefill", "decode"):
                seconds = (1 / rate) * (0.1 if phase == "prefill" else 1)
                store.put_latency(
                    LatencyRow(
                        "torch-int4" if label == "uniform" else "dense",
                        "cpu",
                        phase,
                        1,
                        1,
                        1,
                        5,
                        seconds,
                        seconds,
                        seconds,
                        1 / seconds,
                        ids[label],
                        run_id=run,
                    )
                )
        store.finish_run(run, "finished")
        store.put_task_scores(ids["evolve"], [TaskScore("arc_easy", "acc", 0.61, 0.02, 500)])
        empty = Study.make({"name": "empty"})
        store.study(empty.name, empty.identity, empty.digest)
        assert model_id
    return Planted(url, {label: found.digest for label, found in PROFILES.items()}, ids)


def invoke(app: Any, *arguments: str) -> Any:
    """Run commands; an error that is none of ours is raised, so that a test shows where it came from."""
    from typer.testing import CliRunner

    from evopress.api import EvopressError

    result = CliRunner().invoke(app, list(arguments))
    if result.exception is not None and not isinstance(result.exception, EvopressError | SystemExit):
        raise result.exception
    return result
