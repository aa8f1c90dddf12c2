"""`evopress profile bench` on the tiny model: what it tells against what is known of it, what it keeps, and what it refuses."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_study
import tiny_times
import torch
from tiny import build as tiny_model
from tiny_study import Answer, Tiny, Whole

from evopress.api import ABSENT, DENSE, DROP, Profile
from evopress.hooks.registry import Registry
from evopress.latency.runtime import choose
from evopress.models.sites import find_sites
from evopress.profile_bench import outside_bytes
from evopress.store import Store

Command = Callable[..., Answer]
SHORT = ("--prompt", "32", "--decode", "8", "--repeats", "2", "--threads", "1")


@pytest.fixture
def searched(whole: Whole, home: Path) -> Path:
    """A home of its own with the finished standard study in it."""
    shutil.copytree(whole.home, home)
    return home


def bench(command: Command, *more: str) -> dict[str, Any]:
    answer = command("profile", "bench", "tiny", *SHORT, "--json", *more)
    assert answer.code == 0, answer.err
    document: dict[str, Any] = json.loads(answer.out)
    return document


def test_it_tells_what_the_profile_reads_and_how_fast(searched: Path, whole: Whole, evopress_command: Command) -> None:
    document = bench(evopress_command)
    run = whole.run
    assert document["profile"] == run.best.profile.digest
    assert (document["prompt_tokens"], document["decode_tokens"], document["batch"], document["repeats"]) == (32, 8, 1, 2)
    own, dense = document["profile_run"], document["dense_run"]
    running = [level for _, level in run.best.profile if level not in (DENSE, DROP, ABSENT)]
    assert sum(one["sites"] for one in own["kernels"] if one["format"] != "dense") == len(running)
    fitting = choose("dense", (64, 64), "cpu", torch.float32, Registry.load().kernels())  # our own where there is a C compiler
    assert [one["kernel"] for one in dense["kernels"]] == [fitting.name]
    # The model is in float32; it has a head of its own, beside 4 blocks with two norms of 64 and one norm at the end.
    assert dense["read_bytes"]["linear"] == 4 * run.plan.space.weights
    assert dense["read_bytes"]["head"] == 4 * 64 * (len(tiny_study.WORDS) + 2)
    assert dense["read_bytes"]["others"] == 4 * 64 * (9 + 1)
    assert own["read_bytes"]["linear"] < dense["read_bytes"]["linear"] / 2
    assert own["read_bytes"]["total"] == sum(own["read_bytes"][key] for key in ("linear", "head", "others"))
    for phase, tokens in (("prefill", 32), ("decode", 1)):
        rate, seconds = own[phase]["tokens_per_second"], own[phase]["pass_seconds"]
        assert rate["low"] <= rate["median"] <= rate["high"]
        assert rate["median"] == pytest.approx(tokens / seconds["median"])
        assert own[phase]["table"]["seconds"] is None
        assert own[phase]["table"]["command"].startswith(f"evopress kernels bench --workload {phase},batch=1,context=32 --model ")
        ratio = document["times_as_fast"][phase]
        assert ratio["low"] <= ratio["median"] <= ratio["high"]
        assert ratio["samples"] == 2
    assert "was never timed here at 1 tokens a call" in document["kernels_chosen"]
    assert 10 * 2**20 < document["peak"]["bytes"] < 2**36
    check = document["check"]
    assert check["tokens"] == 16
    assert check["same_next_token"] == 16
    assert check["largest_relative_difference"] < check["limit"] == 1e-3


def test_times_are_kept_like_those_of_a_run(searched: Path, evopress_command: Command) -> None:
    with Store.open(tiny_study.url(searched)) as store:
        assert not store.latencies()
    document = bench(evopress_command)
    with Store.open(tiny_study.url(searched)) as store:
        rows = store.latencies()
        profile = store.find_profile(document["profile"])
        own = [row for row in rows if row.profile_id == profile.id]
        assert [(row.phase, row.tokens, row.batch, row.samples) for row in own] == [("prefill", 32, 1, 2), ("decode", 8, 1, 2)]
        assert len(rows) == 4
        assert all(row.environment["dtype"] == "float32" and row.run_id is None for row in rows)
    shown = json.loads(evopress_command("profile", "show", "tiny", "--json").out)["speed"]
    assert shown["decode"]["tokens_per_second"] == pytest.approx(document["profile_run"]["decode"]["tokens_per_second"]["median"])


def test_the_text_says_all_of_it(searched: Path, evopress_command: Command) -> None:
    answer = evopress_command("profile", "bench", "tiny/uniform", *SHORT)
    assert answer.code == 0, answer.err
    starts = (
        *("profile ", "dense ", "the profile is ", "kernels: ", "  chosen: the first that fits each format", "peak memory "),
        *("weights read by a token, profile: ", "decode of the profile model: no estimate. ", "check: logits of the packed"),
    )
    for start in starts:
        assert any(line.startswith(start) for line in answer.out.splitlines()), (start, answer.out)
    assert "times kept in" in answer.err


@pytest.mark.parametrize("batch", [1, 2])
def test_with_a_table_kernels_are_its_fastest_and_its_sum_stands_beside(
    searched: Path, tiny: Tiny, whole: Whole, evopress_command: Command, batch: int
) -> None:
    for phase in ("decode", "prefill"):
        tiny_times.plant(tiny_study.url(searched), tiny, searched, f"{phase},batch={batch},context=32")
    document = bench(evopress_command, "--batch", str(batch))
    assert document["kernels_chosen"] == f"the fastest of those timed here at {batch} tokens a call"
    weights = whole.run.plan.space.weights
    parts = tiny_times.PART_SECONDS["model"] + 4 * sum(tiny_times.PART_SECONDS[kind] for kind in ("block", "attention", "mlp"))
    for phase in ("decode", "prefill"):
        dense = document["dense_run"][phase]
        assert dense["table"]["seconds"] == pytest.approx(parts + tiny_times.DENSE_NANOSECONDS * weights / 1e9)
        assert dense["table"]["error"] == pytest.approx(dense["table"]["seconds"] / dense["pass_seconds"]["median"] - 1)
        assert document["profile_run"][phase]["table"]["seconds"] < dense["table"]["seconds"]
    assert document["dense_run"]["read_bytes"]["per_token"] == document["dense_run"]["read_bytes"]["total"] / batch


def test_a_kernel_that_computes_something_else_is_an_error(
    searched: Path, whole: Whole, evopress_command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = next(site for site in whole.run.plan.sitemap.sites if site.kind == "linear")
    kernel = choose("int3-g32", site.shape, "cpu", torch.float32, Registry.load().kernels())
    honest = type(kernel).run
    monkeypatch.setattr(type(kernel), "run", lambda self, x, packed: 1.1 * honest(self, x, packed))
    answer = evopress_command("profile", "bench", "tiny/uniform", *SHORT)
    assert answer.code == 1
    assert "of their norm away from the stitched model's; 0.001 is rounding." in answer.err
    assert kernel.name in answer.err
    with Store.open(tiny_study.url(searched)) as store:
        assert not store.latencies(), "times of a wrong answer are worth nothing"


def test_only_what_the_profile_holds_is_built_again(searched: Path, whole: Whole, evopress_command: Command) -> None:
    shutil.rmtree(searched / "bank")
    bench(evopress_command)
    held = {(site, str(level)) for site, level in whole.run.best.profile if level not in (DENSE, DROP, ABSENT)}
    assert len(list((searched / "bank").rglob("*.safetensors"))) == len(held)


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["tiny", "--prompt", "120", "--decode", "16"], 2, "A prompt of 120 and 16 decoded tokens do not fit the 128 positions of model."),
        (["tinny"], 5, "Did you mean 'tiny'?"),
        (["tiny/unifrom"], 5, "Did you mean 'uniform'?"),
        (["tiny", "--batch", "0"], 2, "--batch"),
        (["tiny", "--repeats", "0"], 2, "--repeats"),
    ],
)
def test_bad_input_is_told(searched: Path, evopress_command: Command, arguments: list[str], code: int, text: str) -> None:
    answer = evopress_command("profile", "bench", *arguments)
    assert answer.code == code
    assert text in answer.err


@pytest.mark.parametrize("family", ["llama", "llama_tied", "gpt2"])
def test_what_is_read_outside_the_linear_layers(family: str) -> None:
    model: Any = tiny_model(family)
    sites = find_sites(model).sites
    dense = Profile.of(dict.fromkeys((site.name for site in sites), DENSE))
    head, others = outside_bytes(model, sites, dense, 2)
    width, vocabulary, positions = 32, 61, 128
    assert head == 4 * width * vocabulary
    linear = sum(site.weights for site in sites if site.kind == "linear")
    tables = width * vocabulary * (1 if family != "llama" else 2) + (width * positions if family == "gpt2" else 0)
    small = sum(parameter.numel() for parameter in model.parameters()) - linear - tables
    rows = 2 * width * (2 if family == "gpt2" else 1)
    assert others == 4 * (small + rows)
    block = next(site for site in sites if site.kind == "block")
    below = {site.name: ABSENT for site in sites if site.name.startswith(f"{block.name}.")}
    without = Profile.of({**dict(dense), **below, block.name: DROP})
    gone = sum(p.numel() for p in model.get_submodule(block.name).parameters())
    gone -= sum(site.weights for site in sites if site.kind == "linear" and site.name in below)
    assert outside_bytes(model, sites, without, 2) == (head, others - 4 * gone)
