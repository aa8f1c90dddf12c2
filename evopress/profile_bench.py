"""Times one stored profile as a whole model with its kernels beside the dense model, and says what it reads, holds and computes.

Measures no fitness. Called by `evopress profile bench`. Shapes: T tokens, V vocabulary.
"""

from __future__ import annotations

import resource
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from evopress.api import ABSENT, DENSE, DROP, NotFound, NumericalError, Profile, Site, UsageError, dense_cost
from evopress.api.budget import workload_of
from evopress.api.workload import Phase, Workload
from evopress.bank.bank import Decoder
from evopress.events import Listener, Progress
from evopress.gate import dense_profile
from evopress.latency.clock import Clock, Timing, ratio
from evopress.latency.runtime import PackedModel, Pick, Speed, bench_interleaved, build, fastest, first_fitting, last_logits
from evopress.latency.table import Cell, LatencyTable, kept_kinds
from evopress.models.weights import module_of, slot_of
from evopress.pricing import bench_command, cell_of, environment, read_table, runnable
from evopress.reopening import reopen
from evopress.speed import rows_of
from evopress.store import ProfileRow, Store
from evopress.workbench import Workbench

CHECK_TOKENS = 64
LOGIT_LIMIT = {"float32": 1e-3, "bfloat16": 0.2}
"""Largest difference of the logits at a position, in shares of their norm, that rounding in another order makes through a whole model.

In bfloat16 30 blocks of the demo model make 0.065 of it where every next token stays the same."""
PHASES: tuple[Phase, Phase] = ("prefill", "decode")


@dataclass(frozen=True)
class Asked:
    """What is timed: sequences at a time, tokens of a prompt, tokens that are decoded, how often, and with how many threads."""

    batch: int = 1
    prompt: int = 512
    decode: int = 64
    repeats: int = 7
    threads: int | None = None

    def workload(self, phase: Phase) -> Workload:
        """As a latency budget would name it."""
        return Workload(phase, self.batch, self.prompt)


def bench_profile(
    store: Store, row: ProfileRow, home: Path, asked: Asked, listen: Listener, device: str | None = None, dtype: str | None = None,
    clock: Clock = time.perf_counter,
) -> dict[str, Any]:  # fmt: skip
    """Everything `evopress profile bench` prints, as JSON values; the times are stored like those of a run.

    Raises UsageError for more tokens than the model has positions, NumericalError where the packed model does not compute the profile, and
    whatever `reopen` raises.
    """
    if asked.threads is not None:
        torch.set_num_threads(asked.threads)
    bench, study = reopen(store, row, home, listen, device, dtype)
    positions = bench.plan.positions
    if positions is not None and asked.prompt + asked.decode > positions:
        raise UsageError(
            f"A prompt of {asked.prompt} and {asked.decode} decoded tokens do not fit the {positions} positions of {row.model}.",
            "Lower --prompt or --decode.",
        )
    bench.complete_bank()
    here = environment(bench.device, str(bench.dtype).removeprefix("torch."))
    table = runnable(read_table(store, bench.device, here["dtype"]), bench.registry.kernels())
    limited = workload_of(study.definition["budgets"])
    tokens = asked.workload(limited.phase if limited else "decode").tokens
    pick, reason = _pick(bench, row.profile, table, tokens)
    listen(Progress("speed", "packing the weights for their kernels"))
    bench.stitcher.restore()
    sites, dense = bench.plan.sitemap.sites, dense_profile(bench.plan.space)
    packed = build(bench.model, sites, row.profile, bench.variant, pick)
    models = {"dense": build(bench.model, sites, dense, bench.variant, pick), "profile": packed}
    listen(Progress("speed", "comparing its logits with those of the stitched model"))
    check = _check(bench, packed, asked.batch)
    listen(Progress("speed", f"timing the profile and the dense model in turns, {asked.repeats} times"))
    with store.holding(f"timing on {bench.owner.host}", bench.owner):
        since = _forget_peak(bench.device)
        speeds = bench_interleaved(models, asked.prompt, asked.decode, asked.batch, asked.repeats, clock=clock)
        peak = _peak_bytes(bench.device)
    for name, profile in (("dense", dense), ("profile", row.profile)):
        for found in rows_of(bench, profile, speeds[name], here).values():
            store.put_latency(found)
    return {
        "profile": row.profile.digest, "model": row.model, "bytes": row.cost.bytes, "bits": row.bits, "study": study.name,
        "environment": here, "batch": asked.batch, "prompt_tokens": asked.prompt, "decode_tokens": asked.decode, "repeats": asked.repeats,
        "kernels_chosen": reason,
        **{f"{name}_run": _told(bench, models[name], speeds[name], table, asked) for name in models},
        "times_as_fast": {
            "prefill": _span(ratio(speeds["dense"].prefill, speeds["profile"].prefill)),
            "decode": _span(ratio(speeds["dense"].decode, speeds["profile"].decode)),
        },
        "peak": {"bytes": peak, "of": _what_peaks(bench.device), "since": since},
        "check": check,
        "storage": store.describe(),
    }  # fmt: skip


def _pick(bench: Workbench, profile: Profile, table: LatencyTable, tokens: int) -> tuple[Pick, str]:
    """The fastest kernels by the table where it holds every cell of the profile, else the first that fit; and why."""
    kernels, methods = bench.registry.kernels(), bench.plan.methods
    workload, wanted = Workload("decode", tokens), list[Cell]()
    for site in bench.plan.sitemap.sites:
        level = profile[site.name]
        if site.kind == "linear" and slot_of(bench.model, site).index is None:
            wanted.append(cell_of(site, "dense", dense_cost(site.weights), workload))  # for the dense model beside it
            if level not in (DENSE, ABSENT, DROP):
                method = methods[level.method]
                wanted.append(cell_of(site, method.format(site, level), method.cost(site, level), workload))
    missing = sorted({cell for cell in wanted if not table.cells.get(cell)})
    if not missing:
        return fastest(kernels, table, tokens), f"the fastest of those timed here at {tokens:,} tokens a call"
    more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
    why = f"{missing[0].format} of {missing[0].shape[0]}x{missing[0].shape[1]}{more} was never timed here at {tokens:,} tokens a call"
    return first_fitting(kernels, torch.device(bench.device).type), f"the first that fits each format ({why})"


def _check(bench: Workbench, packed: PackedModel, batch: int) -> dict[str, Any]:
    """Logits of the packed model against the stitched one on held-out text, of a prompt and of a decoded token, where kernels take another
    way. Raises NumericalError where they are not the same model.
    """
    ids = torch.tensor([bench.tokens("heldout").documents[0][:CHECK_TOKENS]], device=bench.device)
    model = cast(Any, bench.model)
    with torch.no_grad():
        bench.stitcher.set(packed.profile, Decoder(bench.variant, bench.dtype, 0, bench.device))
        expected_TV = model(ids).logits[0].double()
        bench.stitcher.restore()
        with packed:
            prompt_TV = model(ids).logits[0].double()
            several = ids.repeat(batch, 1)
            begun = model(several[:, :-1], use_cache=True, **last_logits(model)).past_key_values
            step_BV = model(several[:, -1:], past_key_values=begun, use_cache=True).logits[:, -1].double()
    found_TV = torch.cat([prompt_TV, step_BV])
    expected_TV = torch.cat([expected_TV, expected_TV[-1:].expand(batch, -1)])
    norms_T = expected_TV.norm(dim=-1)
    difference = float(((found_TV - expected_TV).norm(dim=-1) / norms_T.clamp_min(torch.finfo(torch.float32).tiny)).max())
    same = int((prompt_TV.argmax(-1) == expected_TV[: len(prompt_TV)].argmax(-1)).sum())
    limit = LOGIT_LIMIT[str(bench.dtype).removeprefix("torch.")]
    if not difference <= limit:  # NaN is not within it either
        names = ", ".join(sorted({one.label for one in packed.running} - {"dense"}))
        raise NumericalError(
            f"The packed model's logits are {difference:.2e} of their norm away from the stitched model's; {limit:g} is rounding.",
            f"One of these kernels does not compute its weights here: {names}. Find it: evopress plugins check.",
        )
    return {"tokens": ids.shape[1], "largest_relative_difference": difference, "limit": limit, "same_next_token": same}


def _told(bench: Workbench, packed: PackedModel, speed: Speed, table: LatencyTable, asked: Asked) -> dict[str, Any]:
    """What one of the two models showed."""
    head, others = outside_bytes(bench.model, bench.plan.sitemap.sites, packed.profile, asked.batch)
    linear = sum(one.read_bytes(asked.batch) for one in packed.running)
    phases: dict[str, Any] = {}
    for phase in PHASES:
        timing, passes = (speed.prefill, 1) if phase == "prefill" else (speed.decode, asked.decode)
        rates = speed.prefill_tokens_per_second if phase == "prefill" else speed.decode_tokens_per_second
        seconds = {"median": timing.median / passes, "low": timing.low / passes, "high": timing.high / passes}
        phases[phase] = {
            "tokens_per_second": dict(zip(("median", "low", "high"), rates, strict=True)),
            "pass_seconds": seconds,
            "samples": timing.n,
            "table": _against_table(bench, packed, table, asked.workload(phase), seconds["median"]),
        }
    read = {"linear": linear, "head": head, "others": others, "total": linear + head + others}
    read_bytes = {**read, "per_token": read["total"] / asked.batch}
    by_kernel = [{"format": format, "kernel": name, "sites": count} for (format, name), count in sorted(packed.by_format.items())]
    rate = read["total"] / phases["decode"]["pass_seconds"]["median"]
    return {**phases, "kernels": by_kernel, "weight_bytes": packed.weight_bytes, "read_bytes": read_bytes, "read_bytes_per_second": rate}


def _against_table(bench: Workbench, packed: PackedModel, table: LatencyTable, workload: Workload, measured: float) -> dict[str, Any]:
    """The table's sum beside the measurement; why there is none where a cell is missing, and the command that measures it."""
    try:
        seconds = table_sum(packed, bench.plan.sitemap.sites, table, bench.plan.ref.config_digest, workload)
    except NotFound as missing:
        formats = sorted({one.cell for one in packed.running} - {"dense", "absent"})
        command = bench_command(table, workload, bench.plan.study.model, formats)
        return {"seconds": None, "missing": missing.message, "command": command}
    return {"seconds": seconds, "error": seconds / measured - 1}


def table_sum(packed: PackedModel, sites: tuple[Site, ...], table: LatencyTable, model: str, workload: Workload) -> float:
    """Seconds of one pass by the table, with the kernels that this model runs. model: digest. Raises NotFound for a missing cell."""
    cells = [(Cell(one.cell, one.site.shape, workload.tokens), one.label if one.kernel else None) for one in packed.running]
    return table.sum(kept_kinds(packed.profile, sites), cells, model, workload)


def outside_bytes(model: nn.Module, sites: tuple[Site, ...], profile: Profile, tokens: int) -> tuple[int, int]:
    """Bytes that one step of so many tokens reads outside its linear sites: of the head, and of the rest.

    The rest is norms and biases of what is kept, and one row of each embedding a token. Buffers and the cache of keys and values are not
    weights.
    """
    dropped = [module_of(model, site) for site in sites if site.kind != "linear" and profile[site.name] == DROP]
    done = {id(parameter) for module in dropped for parameter in module.parameters()}
    done |= {id(slot_of(model, site).parameter) for site in sites if site.kind == "linear"}
    lookups = {id(module.weight): module.weight for module in model.modules() if isinstance(module, nn.Embedding)}
    rows = sum(min(tokens, weight.shape[0]) * weight.shape[1] * weight.element_size() for weight in lookups.values())
    output = cast(Any, model).get_output_embeddings()
    head = {id(parameter): parameter for parameter in (output.parameters() if output is not None else ())}
    done |= lookups.keys() | head.keys()
    rest = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters() if id(parameter) not in done)
    return sum(parameter.numel() * parameter.element_size() for parameter in head.values()), rows + rest


def _span(timing: Timing) -> dict[str, float]:
    return {"median": timing.median, "low": timing.low, "high": timing.high, "samples": timing.n}


# Memory -----------------------------------------------------------------------------------------------------------------------------------


def _forget_peak(device: str) -> str:
    """Begin the peak anew where the system lets a process do so; since when it counts."""
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return "during the timing"
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return "since the process began"
    return "during the timing"


def _peak_bytes(device: str) -> int:
    """Most resident memory of this process; on a GPU the most that torch had allocated there."""
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.is_file():
        line = next((line for line in status.read_text(encoding="ascii").splitlines() if line.startswith("VmHWM:")), "")
        if line:
            return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _what_peaks(device: str) -> str:
    if torch.device(device).type == "cuda":
        return "memory that torch allocated on the GPU: the dense model, the packed weights, and what they compute"
    return "resident memory of the whole process: Python and its libraries, the dense model, the packed weights, and what they compute"
