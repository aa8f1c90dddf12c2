"""Whole models with packed kernels against the same profile stitched in dequantised, with and without dropped sublayers and cache."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch
from evopress_kernels import evopress_kernels
from tiny import build as tiny
from tiny import tokens

from evopress.api import ABSENT, DENSE, DROP, Cost, Level, NotFound, Profile, Site, UsageError, Variant
from evopress.api.formats import bitmask_variant, decode, int_variant, minmax_grid
from evopress.api.workload import Workload
from evopress.hooks.registry import Registry
from evopress.latency.runtime import (
    HEAD,
    NO_KERNEL,
    bench_interleaved,
    build,
    choose,
    fastest,
    first_fitting,
    generate,
    label,
    workload_seconds,
)
from evopress.latency.table import Cell, LatencyTable, Measured
from evopress.models.sites import find_sites
from evopress.models.stitch import Stitcher
from evopress.models.weights import read

INT3, INT8, ODD, SPARSE = Level.of("rtn", bits=3), Level.of("rtn", bits=8), Level.of("rtn", bits=4, group=16), Level("half")


def kernels():
    return [cls() for cls in evopress_kernels()]


def rounding(model):
    """Round-to-nearest variants, 32 columns a group; fine for the runtime, which does not care how good they are."""

    def variant_of(site, level):
        weight = read(model, site)
        if level == SPARSE:
            return bitmask_variant(site, level, weight, weight.abs() > weight.abs().median())
        options = dict(level.options)
        bits, group = options["bits"], options.get("group", 32)
        if site.shape[1] % group:
            group = 16
        grouped = weight.view(site.shape[0], -1, group)
        scale, zero = minmax_grid(grouped.amin(-1), grouped.amax(-1), 2**bits - 1)
        codes = (grouped / scale[..., None] + zero[..., None]).round().clamp(0, 2**bits - 1).view(site.shape)
        return int_variant(site, level, codes, scale, zero, bits)

    return variant_of


def profile_of(sites, level, dropped=()):
    levels = {}
    for site in sites:
        if site.parent is not None and levels[site.parent] in (DROP, ABSENT):
            levels[site.name] = ABSENT
        elif site.name in dropped:
            levels[site.name] = DROP
        else:
            levels[site.name] = level if site.kind == "linear" else DENSE
    return Profile.of(levels)


def stitched_logits(model, sites, profile, variant_of, ids):
    stitcher = Stitcher(model, sites)
    # Decode everything first: the variants are made from the model's weights, which stitching changes.
    variants = {s.name: variant_of(s, profile[s.name]) for s in sites if s.kind == "linear" and profile[s.name] not in (DENSE, ABSENT)}
    stitcher.set(profile, lambda site, level: decode(variants[site.name].format, variants[site.name].tensors, site.shape))
    logits = model(ids).logits
    greedy = generate(model, ids, 6)[0]
    stitcher.restore()
    return logits, greedy


@pytest.mark.parametrize("family", ["llama", "llama_tied", "gpt2", "opt", "mistral"])
@pytest.mark.parametrize("level", [INT3, INT8, SPARSE], ids=str)
def test_packed_model_equals_the_stitched_model(family, level):
    model = tiny(family, num_hidden_layers=2)
    sites = find_sites(model).sites
    variant_of, ids = rounding(model), tokens(2, 9)
    profile = profile_of(sites, level)
    before = model(ids).logits
    expected, greedy = stitched_logits(model, sites, profile, variant_of, ids)
    packed = build(model, sites, profile, variant_of, first_fitting(kernels(), "cpu"))
    with packed:
        assert torch.allclose(model(ids).logits, expected, rtol=1e-4, atol=1e-4)
        assert torch.equal(generate(model, ids, 6)[0], greedy)
    assert not torch.allclose(before, expected, atol=1e-2)
    assert torch.equal(model(ids).logits, before)


@pytest.mark.parametrize("drop", [(0, "attention"), (1, "mlp"), (0, "block")])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_dropped_sublayers_are_skipped_with_and_without_cache(family, drop):
    model = tiny(family, num_hidden_layers=2)
    sites = find_sites(model).sites
    variant_of, ids = rounding(model), tokens(1, 7)
    depth, kind = drop
    gone = next(site for site in sites if site.kind == kind and site.depth == depth)
    profile = profile_of(sites, INT3, {gone.name})
    expected, _ = stitched_logits(model, sites, profile, variant_of, ids)
    calls = []
    below = [s for s in sites if s.kind == "linear" and profile[s.name] == ABSENT]
    with build(model, sites, profile, variant_of, first_fitting(kernels(), "cpu")) as packed:
        handles = [model.get_submodule(s.name).register_forward_hook(lambda *_: calls.append(1)) for s in below]
        assert torch.allclose(model(ids).logits, expected, rtol=1e-4, atol=1e-4)
        assert not calls
        assert sum(packed.kernels.values()) == sum(s.kind == "linear" for s in sites) - len(below)
        cached = generate(model, ids, 5)[0]
        whole = ids
        for _ in range(5):
            whole = torch.cat([whole, model(whole).logits[:, -1:].argmax(-1)], dim=1)
        assert torch.equal(cached, whole[:, ids.shape[1] :])
    for handle in handles:
        handle.remove()


def test_dense_profile_runs_the_plain_model():
    model = tiny("llama", num_hidden_layers=2)
    sites, ids = find_sites(model).sites, tokens(1, 8)
    before = model(ids).logits
    with build(model, sites, profile_of(sites, DENSE), rounding(model), first_fitting(kernels(), "cpu")) as packed:
        assert torch.equal(model(ids).logits, before)
        assert packed.kernels == {"dense": 14}
        assert not any("forward" in module.__dict__ for module in model.modules())


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("length", [1, 8, 9])
def test_every_installed_kernel_of_dense_weights_computes_the_plain_model(family, length):
    model = tiny(family)
    sites, ids = find_sites(model).sites, tokens(1, length)
    before = model(ids).logits
    for kernel in Registry.load().kernels():
        if kernel.supports("dense", (8, 8), "cpu", torch.float32):
            with build(model, sites, profile_of(sites, DENSE), rounding(model), lambda *_, kernel=kernel: kernel) as packed:
                assert list(packed.kernels) == [kernel.name if kernel.packed else NO_KERNEL]
                assert torch.allclose(model(ids).logits, before, atol=1e-4), kernel.name


class OtherDense(type(next(kernel for kernel in kernels() if kernel.name == "dense"))):
    """Another kernel for dense weights, which keeps what it is given."""

    name = "other-dense"
    seen: ClassVar = []

    def pack(self, variant, dtype):
        self.seen.append(variant.tensors["weight"].data_ptr())
        return {"weight": variant.tensors["weight"]}


def test_another_kernel_of_dense_weights_is_given_those_of_the_model():
    model = tiny("llama", num_hidden_layers=1)
    sites, ids = find_sites(model).sites, tokens(1, 8)
    before = model(ids).logits
    with build(model, sites, profile_of(sites, DENSE), rounding(model), first_fitting([OtherDense(), *kernels()], "cpu")) as packed:
        assert torch.allclose(model(ids).logits, before, atol=1e-5)
        assert packed.kernels == {"other-dense": 7}
        assert sum("forward" in module.__dict__ for module in model.modules()) == 8, "the output head has a kernel too"
    assert set(OtherDense.seen) <= {parameter.data_ptr() for parameter in model.parameters()}


def test_labels_say_where_no_packed_kernel_ran():
    model = tiny("llama", num_hidden_layers=2)
    sites = find_sites(model).sites
    down = [site.name for site in sites if site.role == "down_proj"]  # 48 columns: groups of 16, which no packed kernel takes
    levels = dict(profile_of(sites, INT3))
    packed = build(model, sites, Profile.of(levels), rounding(model), first_fitting(kernels(), "cpu"))
    assert packed.by_format == {("int3-g32", "torch-int4"): 12, ("int3-g16", NO_KERNEL): len(down)}
    assert packed.kernels == {"torch-int4": 12, "no packed kernel: dequantised": 2}


def test_bfloat16_model_stays_close_to_its_stitched_self():
    model = tiny("llama", num_hidden_layers=2).to(torch.bfloat16)
    sites = find_sites(model).sites
    variant_of, ids = rounding(model), tokens(2, 9)
    profile = profile_of(sites, INT3)
    expected, _ = stitched_logits(model, sites, profile, variant_of, ids)
    with build(model, sites, profile, variant_of, first_fitting(kernels(), "cpu")):
        logits = model(ids).logits
    assert logits.dtype == torch.bfloat16
    assert ((logits - expected).float().norm() / expected.float().norm()) < 0.05


def test_experts_are_stitched_and_counted_as_dequantised():
    model = tiny("mixtral", num_hidden_layers=1)
    sites = find_sites(model).sites
    variant_of, ids = rounding(model), tokens(1, 9)
    profile = profile_of(sites, ODD)
    expected, _ = stitched_logits(model, sites, profile, variant_of, ids)
    variants = {s.name: variant_of(s, ODD) for s in sites if s.kind == "linear"}
    with build(model, sites, profile, lambda site, level: variants[site.name], first_fitting(kernels(), "cpu")) as packed:
        assert torch.allclose(model(ids).logits, expected, rtol=1e-4, atol=1e-4)
        assert packed.kernels == {NO_KERNEL: len(variants)}


def test_model_is_restored_after_an_error_inside():
    model = tiny("llama", num_hidden_layers=2)
    sites, ids = find_sites(model).sites, tokens(1, 8)
    before = model(ids).logits
    packed = build(model, sites, profile_of(sites, INT3), rounding(model), first_fitting(kernels(), "cpu"))
    with pytest.raises(ValueError, match="boom"), packed:
        raise ValueError("boom")
    assert torch.equal(model(ids).logits, before)
    packed.restore()
    with packed, pytest.raises(RuntimeError, match="entered already"), packed:
        pass
    assert torch.equal(model(ids).logits, before)


def test_bench_interleaves_and_reports_rates():
    model = tiny("llama", num_hidden_layers=2)
    sites = find_sites(model).sites
    order = []

    class Ticking:
        now = 0.0

        def __call__(self):
            self.now += 0.5
            return self.now

    models = {
        name: build(model, sites, profile_of(sites, level), rounding(model), first_fitting(kernels(), "cpu"))
        for name, level in (("a", DENSE), ("b", INT3))
    }
    for name, packed in models.items():
        original = packed._stitcher.set
        packed._stitcher.set = lambda *args, name=name, original=original: (order.append(name), original(*args))[1]
    speeds = bench_interleaved(models, prompt_tokens=8, decode_tokens=4, batch=2, repeats=3, warmup=1, clock=Ticking())
    assert order == ["a", "a", "b", "b"] * 4  # each is set and restored in its turn
    assert speeds["a"].prefill.samples == (0.5,) * 3
    assert speeds["a"].prefill_tokens_per_second == (32.0, 32.0, 32.0)
    assert speeds["b"].decode_tokens_per_second == (16.0, 16.0, 16.0)
    assert speeds["b"].kernels == {"torch-int4": 12, NO_KERNEL: 2}
    assert speeds["b"].weight_bytes < speeds["a"].weight_bytes


@pytest.mark.parametrize("phase", ["decode", "prefill"])
def test_models_take_turns_after_every_pass_of_a_workload(phase):
    model = tiny("llama", num_hidden_layers=2)
    sites = find_sites(model).sites
    order, fed = [], []
    model.get_input_embeddings().register_forward_pre_hook(lambda _, args: fed.append(tuple(args[0].shape)))
    levels = {"a": DENSE, "b": INT3}
    models = {
        name: build(model, sites, profile_of(sites, level), rounding(model), first_fitting(kernels(), "cpu"))
        for name, level in levels.items()
    }
    for name, packed in models.items():
        enter = packed._stitcher.set
        packed._stitcher.set = lambda *args, name=name, enter=enter: (order.append(name), enter(*args))[1]
    seconds = workload_seconds(models, Workload(phase, batch=2, context=8), repeats=3)
    turns = [order[at] for at in range(0, len(order), 2)]  # set and restored
    assert turns == ["a", "b"] * (len(turns) // 2)
    assert {name: len(samples) for name, samples in seconds.items()} == {"a": 3, "b": 3}
    assert all(sample > 0 for samples in seconds.values() for sample in samples)
    if phase == "decode":  # one prompt a model, then single tokens, each after the same prompt
        assert fed.count((2, 8)) == 2
        assert fed.count((2, 1)) == len(turns)
    with pytest.raises(UsageError, match="positions"):
        workload_seconds(models, Workload(phase, batch=1, context=128))
    with pytest.raises(UsageError, match="at least 1"):
        workload_seconds({}, Workload(phase))


def test_bench_takes_real_time():
    model = tiny("gpt2", num_hidden_layers=2)
    sites = find_sites(model).sites
    packed = build(model, sites, profile_of(sites, INT3), rounding(model), first_fitting(kernels(), "cpu"))
    speed = bench_interleaved({"one": packed}, 8, 3, repeats=2)["one"]
    assert speed.prefill.n == speed.decode.n == 2
    assert speed.prefill.median > 0
    with pytest.raises(UsageError, match="positions"):
        bench_interleaved({"one": build(model, sites, profile_of(sites, DENSE), rounding(model), first_fitting(kernels(), "cpu"))}, 128, 3)
    with pytest.raises(UsageError, match="at least 1"):
        bench_interleaved({})


def test_choose_prefers_packed_and_says_when_nothing_runs():
    assert choose("int4-g32", (16, 32), "cpu", torch.bfloat16, kernels()).name == "torch-int4"
    dequantised_first = sorted(kernels(), key=lambda kernel: kernel.packed)
    assert choose("int4-g32", (16, 32), "cpu", torch.bfloat16, dequantised_first).name == "torch-int4"
    assert label(choose("int4-g32", (24, 64), "cpu", torch.bfloat16, kernels())) == NO_KERNEL
    assert choose("int8-g64", (16, 64), "cpu", torch.bfloat16, kernels()).name == "torch-int4x2"
    assert choose("int8-g48", (5, 48), "cpu", torch.bfloat16, kernels()).name == "torch-int8"
    assert label(choose("bitmask", (16, 32), "cpu", torch.bfloat16, kernels())) == NO_KERNEL
    with pytest.raises(UsageError, match="No kernel runs format 'fp4'"):
        choose("fp4", (16, 32), "cpu", torch.bfloat16, kernels())


def test_other_types_are_refused():
    model = tiny("llama", num_hidden_layers=1).half()
    sites = find_sites(model).sites
    with pytest.raises(UsageError, match="bfloat16 or float32"):
        build(model, sites, profile_of(sites, DENSE), rounding(model), first_fitting(kernels(), "cpu"))


def test_the_head_runs_on_what_is_fastest_for_the_largest_dense_matrix():
    model = tiny("llama", num_hidden_layers=1)
    variant = Variant(Site(HEAD, "linear", tuple(model.lm_head.weight.shape), 0, None), DENSE, "dense", {}, Cost())
    cells = {
        Cell("dense", (32, 32), 1): [Measured("dense", 1.0, 1.0, 1.0, 7)],
        Cell("dense", (48, 32), 1): [Measured("other-dense", 1.0, 1.0, 1.0, 7), Measured("dense", 2.0, 2.0, 2.0, 7)],
        Cell("dense", (480, 32), 2): [Measured("dense", 1.0, 1.0, 1.0, 7)],
    }
    pick = fastest([OtherDense(), *kernels()], LatencyTable(cells, about="here"), 1)
    assert pick(variant, torch.float32).name == "other-dense"
    with pytest.raises(NotFound, match="was never timed on here"):
        fastest(kernels(), LatencyTable({}, about="here"), 1)(variant, torch.float32)
