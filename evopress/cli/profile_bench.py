"""What `evopress profile bench` prints, from its document. Formats only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evopress.cli.output import print_table, say

Document = Mapping[str, Any]


def print_bench(document: Document) -> None:
    """The document for people: two rows of speed, then what was read, held, estimated and checked."""
    about, batch, own = document["environment"], document["batch"], document["profile_run"]
    dense, steps = document["dense_run"], "a token" if batch == 1 else f"a step of {batch} tokens"
    print(f"profile {document['profile'][:12]} of {document['model']}, {document['bytes']:,} bytes, {document['bits']:.3f} bits a weight")
    lengths = f"{document['prompt_tokens']:,} prompt and {document['decode_tokens']:,} decoded tokens, batch {batch}"
    print(f"{about['cpu']}, {about['threads']} threads, torch {about['torch']}, {about['dtype']}")
    print(f"{lengths}; {document['repeats']} times in turns\n")
    header = ("model", "prefill tok/s", "decode tok/s", f"decode, ms {steps}", "linear weights, MiB")
    print_table(header, [("dense", *_speeds(dense)), ("profile", *_speeds(own))])
    faster = document["times_as_fast"]
    told = " and ".join(f"{_span(faster[phase], 2)} times as fast in {phase}" for phase in ("prefill", "decode"))
    print(f"\nthe profile is {told} (95 % intervals of paired rounds)")
    kernels = ", ".join(f"{one['kernel']} for {one['format']} x{one['sites']}" for one in own["kernels"])
    print(f"kernels: {kernels}")
    print(f"  chosen: {document['kernels_chosen']}")
    for name, run in (("profile", own), ("dense", dense)):
        read = run["read_bytes"]
        parts = f"{read['linear']:,} in linear layers, {read['head']:,} in the head, {read['others']:,} in norms, biases and embedding rows"
        rate = f"{run['read_bytes_per_second'] / 1e9:.1f} GB/s"
        print(f"weights read by {steps}, {name}: {read['total']:,} bytes: {parts}; {rate}")
    peak = document["peak"]
    print(f"peak memory {peak['since']}: {peak['bytes'] / 2**30:.2f} GiB, {peak['of']}")
    for name, run in (("profile", own), ("dense", dense)):
        for phase in ("prefill", "decode"):
            print(_against_table(name, phase, run[phase], steps if phase == "decode" else "a pass"))
    check = document["check"]
    difference = f"{check['largest_relative_difference']:.1e} of their norm, where {check['limit']:g} is rounding"
    same = f"the same next token at {check['same_next_token']} of {check['tokens']} positions"
    print(f"check: logits of the packed and of the stitched model differ by at most {difference}; {same}")
    say(f"times kept in {document['storage']}")


def _speeds(run: Mapping[str, Any]) -> tuple[str, ...]:
    seconds = {key: 1e3 * value for key, value in run["decode"]["pass_seconds"].items()}
    rates = (_span(run[phase]["tokens_per_second"], 1) for phase in ("prefill", "decode"))
    return (*rates, _span(seconds, 3), f"{run['weight_bytes'] / 2**20:,.1f}")


def _span(found: Mapping[str, float], digits: int) -> str:
    return f"{found['median']:,.{digits}f} [{found['low']:,.{digits}f}, {found['high']:,.{digits}f}]"


def _against_table(name: str, phase: str, run: Mapping[str, Any], what: str) -> str:
    table, measured = run["table"], 1e3 * run["pass_seconds"]["median"]
    if table["seconds"] is None:
        return f"{phase} of the {name} model: no estimate. {table['missing']} Run: {table['command']}"
    said = f"table says {1e3 * table['seconds']:,.3f} ms {what}, measured {measured:,.3f} ms ({table['error']:+.1%})"
    return f"{phase} of the {name} model: {said}"
