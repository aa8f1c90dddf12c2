"""How fast a search measures its candidates, against a bare forward pass of the same tokens in the same run.

Candidates are drawn as a search draws them: a profile and neighbours of it. Nothing is stored. The floor is the time that the
multiplications of one bare pass would take at the speed of a bare matrix product on the same device. Everything is timed until the device
is done with it. Called by `evopress search bench`.
"""

from __future__ import annotations

import random
import resource
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch.profiler import ProfilerActivity

from evopress.api import Budget, Problem, Profile, Slice, Space, UsageError
from evopress.api.study import Study
from evopress.events import Listener
from evopress.fitness.head import batches
from evopress.hooks.registry import Registry
from evopress.latency.bench import measure_floor, wait
from evopress.latency.clock import Timing, fingerprint, ratio, time_once
from evopress.plan import make_plan, with_weights
from evopress.precision import check_device
from evopress.pricing import tables
from evopress.provenance import commit
from evopress.search.baselines import uniform_genotype
from evopress.search.ledger import Ledger
from evopress.search.moves import mutate, switch_count
from evopress.store import Store
from evopress.texts import Texts
from evopress.workbench import Workbench

MATMULS = ("mm", "addmm", "bmm", "baddbmm", "linear", "scaled_dot_product", "attention_forward", "convolution")
"""Operators that multiply matrices, as their names appear in a profile."""


@dataclass(frozen=True)
class Throughput:
    """bare: seconds of one forward pass with logits over the tokens of all candidates. engine: seconds to measure the candidates.

    ratio: bare over engine, round by round: 1 where measuring is as fast as a bare pass. tokens: of all candidates together. reused: share
    of the blocks that were not run, because the hidden states before the first change were known. matmul: share of the engine's time
    inside matrix products, on a GPU of the time of its kernels. floor_seconds: of the bare pass at the speed of a bare product. peak_bytes:
    most memory the process ever held, on a GPU most that was ever allocated there; the floor's own is not among it.
    """

    candidates: int
    tokens: int
    bare: Timing
    engine: Timing
    ratio: Timing
    reused: float
    matmul: float
    floor_seconds: float
    peak_bytes: int


def neighbours(space: Space, budgets: Sequence[Budget], count: int, rng: random.Random) -> list[Profile]:
    """The uniform profile and mutants of it, all different."""
    ledger = Ledger(space, budgets)
    start = uniform_genotype(Problem(space, tuple(budgets), "", ()), ledger)
    found = {ledger.key(start): start}
    for _ in range(100 * count):
        if len(found) == count:
            break
        mutant = mutate(ledger, start, rng, switch_count(rng, 3))
        found.setdefault(ledger.key(mutant), mutant)
    return [space.profile(genotype) for genotype in found.values()]


def bench_study(
    study: Study, storage: str, home: Path, listen: Listener, device: str, dtype: str, candidates: int, tokens: int, rounds: int
) -> dict[str, Any]:
    """Measure on a study, and return the document. Raises UsageError where its search set has fewer tokens."""
    if tokens > study.search_tokens:
        raise UsageError(
            f"The search set of the study holds {study.search_tokens:,} tokens.", f"Write --tokens {study.search_tokens} or less."
        )
    registry = Registry.load()
    check_device(device)
    plan = make_plan(study, registry, home, tables(storage, home, device, dtype))
    texts = Texts(plan, listen)
    plan = with_weights(plan, home)
    with Store.open(storage) as store:
        bench = Workbench(plan, texts, registry, store, home, listen, device, dtype)
        return throughput_json(bench, measure_throughput(bench, candidates, tokens, rounds))


def measure_throughput(bench: Workbench, candidates: int, tokens: int, rounds: int) -> Throughput:
    """Time both in turns. Builds what is missing of the bank first."""
    bench.complete_bank()
    fitness, slice_ = bench.plan.study.fitness, bench.texts.first("search", tokens)
    profiles = bench.in_order(neighbours(bench.plan.space, bench.plan.budgets, candidates, random.Random(bench.plan.study.seed)))
    bench.fitness(fitness, "search")

    def engine() -> None:
        bench.prefixes.forget()
        for profile in profiles:
            bench.take(profile, slice_, fitness, "search")

    def bare() -> None:
        for _ in profiles:
            _forward(bench, slice_)

    engine()  # warm: variants are decoded, the dense model's answers are known
    run, reused = bench.prefixes.blocks_run, bench.prefixes.blocks_reused
    share = _matmul_share(engine, bench.device)
    run, reused = bench.prefixes.blocks_run - run, bench.prefixes.blocks_reused - reused
    bare_seconds, engine_seconds = [], []
    for _ in range(rounds):
        bench.stitcher.restore()  # a bare pass is one of the dense model: what a candidate drops, it would not run
        bare_seconds.append(_timed(bare, bench))
        engine_seconds.append(_timed(engine, bench))
    bare_timing, engine_timing = Timing.of(bare_seconds), Timing.of(engine_seconds)
    total = len(profiles) * slice_.tokens
    flops = 2 * multiplied_params(bench) * total
    peak = peak_bytes(bench.device)
    speed = measure_floor([bench.dtype], clock=bench.clock, device=bench.device).flops_per_second
    return Throughput(
        len(profiles),
        total,
        bare_timing,
        engine_timing,
        ratio(bare_timing, engine_timing),
        reused / max(run + reused, 1),
        share,
        flops / max(speed.values()),
        peak,
    )


def throughput_json(bench: Workbench, found: Throughput) -> dict[str, Any]:
    """What was measured, and what it traces to, as JSON values; the keys are told in results/README.md."""
    study = bench.plan.study
    return {
        "study": {"name": study.name, "digest": study.digest, **study.identity},
        "model": bench.plan.ref.name,
        "commit": commit(),
        "environment": {**fingerprint(bench.device), "arithmetic": bench.arithmetic},
        **asdict(found),
    }


def peak_bytes(device: str) -> int:
    """Most resident memory this process ever held; on a GPU the most it ever had allocated there."""
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def multiplied_params(bench: Workbench) -> int:
    """Parameters that a forward pass with logits multiplies by: those outside embeddings, and the head whether tied or not."""
    sitemap, model = bench.plan.sitemap, cast(Any, bench.model)
    head = sum(int(weight.numel()) for weight in model.get_output_embeddings().parameters())
    return sitemap.total_params - sitemap.embedding_params + head


def _forward(bench: Workbench, slice_: Slice) -> None:
    documents = bench.documents(slice_, "search")
    with torch.no_grad():
        for members in batches(documents):
            bench.model(input_ids=torch.stack([documents[i][1] for i in members]), use_cache=False)


def _timed(work: Callable[[], object], bench: Workbench) -> float:
    """Seconds until the device is done with it, and not with what came before."""

    def whole() -> None:
        work()
        wait(bench.device)

    wait(bench.device)
    return time_once(whole, bench.clock)


def _matmul_share(work: Callable[[], object], device: str) -> float:
    """Share of the time of `work` spent inside matrix products, by the profiler's own-time of operators; on a GPU of its kernels' time."""
    gpu = torch.device(device).type == "cuda"
    activities = [ProfilerActivity.CPU, ProfilerActivity.CUDA] if gpu else [ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities) as found:
        work()
        wait(device)
    return matmul_share(found.key_averages(), gpu)


def matmul_share(rows: Iterable[Any], gpu: bool) -> float:
    """The share by the profiler's rows, those of kernels left out: their time is in the row of the operator that launched them too."""
    inside = total = 0.0
    for row in rows:
        if row.device_type.name == "CPU":
            own = float(row.self_device_time_total if gpu else row.self_cpu_time_total)
            total += own
            inside += own if any(name in row.key for name in MATMULS) else 0.0
    return inside / max(total, 1e-9)
