"""Prices: which stored rows make a table, what a profile takes to the nanosecond, and what is said when a time is missing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from evopress.api import DENSE, DROP, Cost, Level, NotFound, Profile, Site, Space, UsageError
from evopress.api.workload import Workload
from evopress.latency.table import Cell, Factor, LatencyTable, Measured, Part
from evopress.pricing import (
    ABOUT,
    KERNEL,
    PART,
    WORKING_SET_BYTES,
    environment,
    priced,
    read_table,
    runnable,
    table_of,
    tables,
    without_useless,
)  # fmt: skip
from evopress.store import LatencyRow, Store

RAN = [[8, 64, "k", "1"]]
HERE = {**dict.fromkeys(ABOUT, "same"), "device": "cpu", "cpu": "A CPU", "threads": 2, "dtype": "bfloat16", "torch": "2.13"}
DECODE = Workload()


def row(median=1.0, format="int4-g64", kernel="native-int", phase=KERNEL, shape=(8, 64), tokens=1, **about):
    numbers = {"batch": 1, "threads": 2, "samples": 9, "low_seconds": median / 2, "high_seconds": 2 * median}
    return LatencyRow(
        kernel=kernel, device="cpu", phase=phase, tokens=tokens, median_seconds=median, tokens_per_second=1 / median, format=format,
        shape=shape if phase == KERNEL else (0, 0), environment={**HERE, **about}, **numbers,
    )  # fmt: skip


# Which rows count -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ABOUT)
def test_a_row_of_another_machine_library_or_type_is_in_no_table(key):
    assert not table_of([row(**{key: "another"})], HERE).cells
    assert not table_of([row(phase=PART, model="m", workload="decode", format="mlp", **{key: "another"})], HERE).parts


def test_a_row_of_another_device_is_in_no_table():
    assert not table_of([replace(row(), device="cuda")], HERE).cells
    assert table_of([row(python="another", system="too")], HERE).cells


def test_the_last_row_of_each_kernel_counts_and_all_kernels_stand_beside_each_other():
    rows = [row(1.0), row(3.0, kernel="ggml"), row(2.0), row(9.0, tokens=2), row(9.0, shape=(64, 8)), row(9.0, "int3-g64")]
    table = table_of(rows, HERE)
    assert table.cells[Cell("int4-g64", (8, 64), 1)] == (Measured("native-int", 2.0, 1.0, 4.0, 9), Measured("ggml", 3.0, 1.5, 6.0, 9))
    assert len(table.cells) == 4
    assert (table.about, table.dtype, table.device) == ("A CPU with 2 threads in bfloat16, torch 2.13", "bfloat16", "cpu")


def test_kernels_that_round_the_activations_are_left_out():
    table = table_of([row(1.0, kernel="onnxruntime-int8", rounding=0.01), row(2.0, rounding=0.0)], HERE)
    assert [measured.kernel for measured in table.cells[Cell("int4-g64", (8, 64), 1)]] == ["native-int"]


def test_times_of_larger_working_sets_are_left_out():
    found = table_of([row(1.0, working_set_bytes=2**30), row(2.0, working_set_bytes=WORKING_SET_BYTES)], HERE)
    assert [measured.median for measured in found.cells[Cell("int4-g64", (8, 64), 1)]] == [2.0]


class Runs:
    """Stands for a kernel that runs one format on the CPU."""

    packed = True

    def __init__(self, name, version="", formats=("int4-g64", "bitmask")):
        self.name, self.version, self.formats = name, version, formats

    def supports(self, format, shape, device, dtype):
        return format in self.formats and device == "cpu" and dtype is torch.bfloat16


@pytest.mark.parametrize(("kernels", "left"), [
    ((Runs("native-int"), Runs("ggml", "1.0")), ["native-int", "ggml"]),
    ((Runs("native-int"), Runs("ggml", "2.0")), ["native-int"]),
    ((Runs("native-int", formats=()), Runs("ggml", "1.0")), ["ggml"]),
    ((), []),
])  # fmt: skip
def test_a_kernel_that_does_not_run_here_now_is_in_no_table(kernels, left):
    table = table_of([row(1.0), row(2.0, kernel="ggml", version="1.0"), row(1.0, format="bitmask@0.3")], HERE)
    found = runnable(table, kernels)
    assert [measured.kernel for measured in found.cells[Cell("int4-g64", (8, 64), 1)]] == left
    assert bool(found.cells[Cell("bitmask@0.3", (8, 64), 1)]) == ("native-int" in left)


def test_parts_are_of_one_model_and_workload_and_the_last_counts():
    def part(seconds, **about):
        return row(seconds, "mlp", "transformers", PART, **{"model": "m", "workload": "prefill,batch=2,context=64", **about})

    table = table_of([part(1.0), part(2.0), part(3.0, model="other"), part(4.0, workload="decode")], HERE)
    assert {place: measured.median for place, measured in table.parts.items()} == {
        Part("m", "mlp", Workload("prefill", 2, 64)): 2.0, Part("other", "mlp", Workload("prefill", 2, 64)): 3.0,
        Part("m", "mlp", DECODE): 4.0,
    }  # fmt: skip
    assert not table.cells


def test_a_format_within_a_model_gives_its_factor_and_the_last_counts():
    about = {"model": "m", "workload": "decode"}
    rows = [row(seconds, "int4-g64", "transformers", PART, **about, cells_seconds=4.0, kernels=RAN) for seconds in (5.0, 6.0)]
    table = table_of([*rows, row(1.0, "mlp", "transformers", PART, **about)], HERE)
    assert table.factors == {Part("m", "int4-g64", DECODE): Factor(1.5, {(8, 64): ("k", "1")})}
    assert [part.kind for part in table.parts] == ["mlp"]


def test_a_table_is_read_from_the_store_and_leaves_whole_models_out(tmp_path: Path):
    url, here = f"sqlite:///{tmp_path / 'store.db'}", environment("cpu", "float32")
    with Store.open(url) as store:
        for median, phase, dtype in ((2.0, KERNEL, "float32"), (1.0, "decode", "float32"), (1.0, KERNEL, "bfloat16")):
            store.put_latency(replace(row(median), phase=phase, environment={**here, "dtype": dtype}))
        found = read_table(store, "cpu", "float32")
    assert found.cells == {Cell("int4-g64", (8, 64), 1): (Measured("native-int", 2.0, 1.0, 4.0, 9),)}
    assert tables(url, tmp_path, "cpu", "float32")() == found


def test_an_older_row_that_was_imported_later_does_not_count(tmp_path: Path):
    with Store.open(f"sqlite:///{tmp_path / 'store.db'}") as store:
        for median, created in ((2.0, 20.0), (1.0, 10.0)):
            store.put_latency(replace(row(median), created=created, environment=environment("cpu", "float32")))
        (found,) = read_table(store, "cpu", "float32").cells.values()
    assert [measured.median for measured in found] == [2.0]


# Prices ---------------------------------------------------------------------------------------------------------------------------------

INT, MASK = Level.of("gptq", bits=4, group=8), Level.of("sparsegpt", sparsity=0.5)
SHAPES = {"b.a.q": (8, 8), "b.m.up": (16, 8), "b.m.down": (8, 16)}


class Formats:
    """Stands for both methods: a level's format is all that prices ask for."""

    def format(self, site, level):
        return "int4-g8" if level == INT else "bitmask"


METHODS = {"gptq": Formats(), "sparsegpt": Formats()}


def space(**options):
    containers = {"b": "block", "b.a": "attention", "b.m": "mlp"}
    order = ("b", "b.a", "b.a.q", "b.m", "b.m.up", "b.m.down")
    sites, levels, costs = [], [], []
    for name in order:
        parent = name.rpartition(".")[0] or None
        shape = SHAPES.get(name, (0, 0))
        sites.append(Site(name, containers.get(name, "linear"), shape, 0, parent))
        size = shape[0] * shape[1]
        levels.append((DROP, DENSE) if name in containers else (INT, MASK, DENSE))
        costs.append(
            (Cost(), Cost()) if name in containers else (Cost(size // 2, size), Cost(size * 9 // 8, size // 2), Cost(2 * size, size))
        )
    return Space(tuple(sites), tuple(levels), tuple(costs), Cost(1000, 500), **options)


def measured(nanoseconds, kernel="k"):
    return Measured(kernel, nanoseconds * 1e-9, nanoseconds * 1e-9, nanoseconds * 1e-9, 9)


def scaled(values):
    """Factors by format, of kernel k."""
    kernels = dict.fromkeys(((8, 8), (16, 8), (8, 16)), ("k", ""))
    return {Part("m", format, DECODE): Factor(value, kernels) for format, value in values.items()}


def times(**changed):
    """Nanoseconds by shape: int4, half a bitmask, dense."""
    by_shape = {(8, 8): (3, 5, 10), (16, 8): (30, 50, 100), (8, 16): (300, 500, 1000)}
    cells = {Cell(format, shape, 1): [measured(10**6, "slow"), measured(own[place])] for shape, own in by_shape.items()
             for place, format in enumerate(("int4-g8", "bitmask@0.5", "dense"))}  # fmt: skip
    parts = {
        Part("m", kind, DECODE): measured(took) for kind, took in (("block", 2000), ("attention", 4000), ("mlp", 8000), ("model", 16000))
    }
    factors = scaled(dict.fromkeys(("int4-g8", "bitmask@0.5", "dense"), 1.0))
    return LatencyTable(**{"cells": cells, "parts": parts, "factors": factors, "about": "this machine", "dtype": "float32", **changed})


def profile(drop="", **levels):
    made = {"b": DENSE, "b.a": DENSE, "b.a.q": DENSE, "b.m": DENSE, "b.m.up": DENSE, "b.m.down": DENSE}
    made |= {f"b.{name}": level for name, level in ((key.replace("_", "."), level) for key, level in levels.items())}
    if drop:
        made |= {name: Level("absent") for name in made if name.startswith(f"{drop}.")} | {drop: DROP}
    return Profile.of(made)


@pytest.mark.parametrize(
    ("chosen", "nanoseconds"),
    [
        (profile(), 16000 + 2000 + 4000 + 8000 + 10 + 100 + 1000),
        (profile(a_q=INT, m_up=MASK), 16000 + 2000 + 4000 + 8000 + 3 + 50 + 1000),
        (profile("b.a", m_down=MASK), 16000 + 2000 + 8000 + 100 + 500),
        (profile("b.m", a_q=MASK), 16000 + 2000 + 4000 + 5),
        (profile("b"), 16000),
    ],
)
def test_a_profile_takes_the_sum_of_its_cells_and_parts(chosen, nanoseconds):
    found = priced(space(), METHODS, times(), DECODE, "m", "")
    assert found.cost(chosen).nanoseconds == nanoseconds
    assert replace(found.cost(chosen), nanoseconds=0) == space().cost(chosen)


def test_prices_are_those_within_the_model():
    factors = scaled({"int4-g8": 1.5, "bitmask@0.5": 1.0, "dense": 0.9})
    found = priced(space(), METHODS, times(factors=factors), DECODE, "m", "")
    assert found.cost(profile(m_up=INT, m_down=MASK)).nanoseconds == 30000 + 9 + 45 + 500
    with pytest.raises(NotFound, match="and dense within the model were never timed on this machine as it would run now"):
        priced(space(), METHODS, times(factors=scaled({"int4-g8": 1.5, "bitmask@0.5": 1.0})), DECODE, "m", "")


def test_the_dense_the_cheapest_and_the_dearest():
    found = priced(space(), METHODS, times(), DECODE, "m", "")
    assert found.dense.nanoseconds == found.dearest.nanoseconds == 31110
    assert found.cheapest.nanoseconds == 16000


def test_a_mixture_of_experts_is_refused():
    site = Site("b.m.experts.up[3]", "linear", (16, 8), 0, "b.m")
    found = space()
    with pytest.raises(UsageError, match="cannot price a mixture of experts"):
        priced(replace(found, sites=(*found.sites[:-1], site)), METHODS, times(), DECODE, "m", "")


def test_a_missing_time_names_the_command_that_measures_it():
    known = times()
    lost = replace(known, cells={cell: found for cell, found in known.cells.items() if cell.format == "dense"},
                   parts={part: found for part, found in known.parts.items() if part.kind != "mlp"})  # fmt: skip
    with pytest.raises(NotFound) as caught:
        priced(space(), METHODS, lost, DECODE, "m", "my models/llama")
    assert caught.value.message == (
        "A latency budget needs measured times, and bitmask@0.5 of 8x8, bitmask@0.5 of 8x16, bitmask@0.5 of 16x8, the model's mlp "
        "and 3 more were never timed on this machine as it would run now."
    )
    assert caught.value.hint == (
        "Run: evopress kernels bench --workload decode,batch=1,context=512 --model 'my models/llama' --dtype float32 --threads 1 "
        "--format bitmask@0.5 --format int4-g8"
    )
    workload = Workload("decode", 1, 64)
    parts = {Part("m", kind, workload): measured(1) for kind in ("attention", "mlp", "model")}
    with pytest.raises(
        NotFound, match=r"and the model's block and 3 more were never timed .*context=64 --dtype float32 --threads 1 --device cuda --f"
    ):
        priced(space(), METHODS, replace(known, parts=parts, device="cuda"), workload, "m", "")


# What is of use -------------------------------------------------------------------------------------------------------------------------


def with_times(own, linked=False):
    """The space with these nanoseconds at the three levels of each linear site."""
    plain = space(links=((4, 5),) if linked else ())
    costs = [tuple(replace(cost, nanoseconds=took) for cost, took in zip(costs, own[site.name], strict=True)) if site.name in own else costs
             for site, costs in zip(plain.sites, plain.costs, strict=True)]  # fmt: skip
    return replace(plain, costs=tuple(costs))


def test_levels_that_are_no_quicker_than_dense_are_left_out():
    found = without_useless(with_times({"b.a.q": (5, 10, 10), "b.m.up": (11, 9, 10), "b.m.down": (10, 10, 10)}), ["nanoseconds"])
    assert found.levels == ((DROP, DENSE), (DROP, DENSE), (INT, DENSE), (DROP, DENSE), (MASK, DENSE), (DENSE,))
    assert [[cost.nanoseconds for cost in costs] for costs in found.costs[2:]] == [[5, 10], [0, 0], [9, 10], [10]]


def test_a_level_that_is_smaller_stays_where_bytes_are_limited_too():
    slow = with_times(dict.fromkeys(SHAPES, (11, 12, 10)))
    assert without_useless(slow, ["bytes", "nanoseconds"]) == slow
    assert [len(levels) for levels in without_useless(slow, ["nanoseconds", "params"]).levels] == [2, 2, 2, 2, 2, 2]


def test_linked_sites_keep_what_is_of_use_at_one_of_them():
    own = {"b.a.q": (10, 10, 10), "b.m.up": (9, 10, 10), "b.m.down": (11, 12, 10)}
    found = without_useless(with_times(own, linked=True), ["nanoseconds"])
    assert found.levels[4] == found.levels[5] == (INT, DENSE)
    assert [cost.nanoseconds for cost in found.costs[5]] == [11, 10]
    assert found.links == ((4, 5),)


def test_when_nothing_is_quicker_the_user_is_told():
    slow = with_times(dict.fromkeys(SHAPES, (11, 10, 10)))
    no_drops = replace(
        slow,
        levels=tuple(levels if len(levels) == 3 else (DENSE,) for levels in slow.levels),
        costs=tuple(costs if len(costs) == 3 else costs[1:] for costs in slow.costs),
    )
    with pytest.raises(UsageError, match=r"No level of the study is faster than the dense model here\. See: evopress kernels bench\."):
        without_useless(no_drops, ["nanoseconds"])
