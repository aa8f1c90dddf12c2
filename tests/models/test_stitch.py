"""Stitching: what a profile computes, that restoring is exact, and that generation with a cache agrees with generation without."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import FAMILIES, build, tokens
from torch import Tensor, nn

from evopress.api import ABSENT, DENSE, DROP, Level, Profile, Site, UsageError
from evopress.models.sites import SiteMap, find_sites
from evopress.models.stitch import Stitcher
from evopress.models.weights import read

IDS = tokens(2, 16)


def decode(site: Site, level: Level) -> Tensor:
    """A weight that depends on site and level only: stands in for a bank."""
    seed = sum(map(ord, f"{site.name} {level}"))
    return torch.randn(site.shape, generator=torch.Generator().manual_seed(seed)) * 0.2


def profile_of(sitemap: SiteMap, levels: dict[str, Level]) -> Profile:
    """`levels` with everything else dense, and whatever stands under a drop absent."""
    out: dict[str, Level] = {}
    for site in sitemap.sites:
        hidden = site.parent is not None and out[site.parent] in (DROP, ABSENT)
        out[site.name] = ABSENT if hidden else levels.get(site.name, DENSE)
    return Profile.of(out)


def mixed(sitemap: SiteMap, salt: int) -> Profile:
    """Different kinds of level over the whole model, other ones for another salt."""
    levels: dict[str, Level] = {}
    for number, site in enumerate(sitemap.sites):
        if site.kind == "linear":
            levels[site.name] = (DENSE, Level.of("a"), Level.of("b", bits=3))[(number * 7 + salt) % 3]
        elif (site.depth + salt + len(site.kind)) % 5 == 0:
            levels[site.name] = DROP
    return profile_of(sitemap, levels)


def logits(model: nn.Module, ids: Tensor = IDS) -> Tensor:
    out: Tensor = model(input_ids=ids, use_cache=False).logits
    return out


@pytest.mark.parametrize("family", FAMILIES)
def test_restore_is_bit_identical_and_leaves_no_trace(family: str) -> None:
    model = build(family)
    before, weights = logits(model), {name: tensor.clone() for name, tensor in model.state_dict().items()}
    pointers = {name: parameter.data_ptr() for name, parameter in model.named_parameters()}
    sitemap = find_sites(model)
    stitcher = Stitcher(model, sitemap.sites)
    assert torch.equal(logits(model), before)
    for salt in range(3):
        stitcher.set(mixed(sitemap, salt), decode)
        assert not torch.equal(logits(model), before)
    stitcher.restore()
    assert torch.equal(logits(model), before)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    assert pointers == {name: parameter.data_ptr() for name, parameter in model.named_parameters()}
    assert stitcher.profile == profile_of(sitemap, {})
    assert not any("forward" in child.__dict__ or child._forward_hooks for child in model.modules())


@pytest.mark.parametrize("family", FAMILIES)
def test_b1_b2_the_model_computes_the_last_profile_whatever_came_before(family: str) -> None:
    model = build(family)
    sitemap = find_sites(model)
    stitcher = Stitcher(model, sitemap.sites)
    for salt in (0, 1, 0):
        stitcher.set(mixed(sitemap, salt), decode)
    assert stitcher.profile == mixed(sitemap, 0)
    fresh = build(family)
    Stitcher(fresh, sitemap.sites).set(mixed(sitemap, 0), decode)
    assert torch.equal(logits(model), logits(fresh))


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=4))
def test_any_sequence_of_profiles_ends_where_the_last_one_alone_does(salts: list[int]) -> None:
    model, fresh = build("llama"), build("llama")
    sitemap = find_sites(model)
    stitcher = Stitcher(model, sitemap.sites)

    def profile(salt: int) -> Profile:
        picks = torch.randint(0, 4, (len(sitemap.sites),), generator=torch.Generator().manual_seed(salt)).tolist()
        choices = {"linear": [DENSE, Level.of("a"), Level.of("b"), Level.of("c")]}
        return profile_of(
            sitemap, {s.name: choices.get(s.kind, [DENSE, DENSE, DENSE, DROP])[pick] for s, pick in zip(sitemap.sites, picks, strict=True)}
        )

    for salt in salts:
        stitcher.set(profile(salt), decode)
    Stitcher(fresh, sitemap.sites).set(profile(salts[-1]), decode)
    assert torch.equal(logits(model), logits(fresh))
    stitcher.restore()
    assert torch.equal(logits(model), logits(build("llama")))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_linear_weight_is_what_was_decoded(family: str) -> None:
    model = build(family)
    sitemap = find_sites(model)
    level = Level.of("a")
    Stitcher(model, sitemap.sites).set(profile_of(sitemap, {s.name: level for s in sitemap.of_kind("linear")}), decode)
    for site in sitemap.of_kind("linear"):
        assert torch.equal(read(model, site), decode(site, level)), site.name


@pytest.mark.parametrize("family", FAMILIES)
def test_a_dropped_block_is_an_identity(family: str) -> None:
    model = build(family)
    sitemap = find_sites(model)
    blocks = list(model.get_submodule(sitemap.stack))
    states: list[Tensor] = []
    for block in blocks:
        block.register_forward_hook(lambda _, args, out: states.append(out))
    stitcher = Stitcher(model, sitemap.sites)
    states.clear()
    stitcher.set(profile_of(sitemap, {f"{sitemap.stack}.1": DROP}), decode)
    logits(model)
    assert torch.equal(states[1], states[0])
    assert not torch.equal(states[2], states[1])


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "gpt2", "opt", "mixtral"])
@pytest.mark.parametrize("kind", ["attention", "mlp"])
def test_a_dropped_sublayer_equals_one_with_a_zero_output_matrix(family: str, kind: str) -> None:
    model, zeroed = build(family), build(family)
    sitemap = find_sites(model)
    container = next((site for site in sitemap.sites if site.kind == kind and site.depth == 1), None)
    if container is None:
        assert (family, kind) == ("opt", "mlp")
        return
    Stitcher(model, sitemap.sites).set(profile_of(sitemap, {container.name: DROP}), decode)
    last = {"attention": ("o_proj", "dense", "c_proj", "out_proj"), "mlp": ("down_proj", "dense_4h_to_h", "c_proj")}[kind]
    for name, parameter in zeroed.get_submodule(container.name).named_parameters():
        if any(part in last for part in name.split(".")):
            parameter.data.zero_()
    assert torch.allclose(logits(model), logits(zeroed), atol=1e-5)


def greedy(model: nn.Module, ids: Tensor, steps: int) -> Tensor:
    """Greedy decoding without a cache: the reference."""
    for _ in range(steps):
        ids = torch.cat([ids, logits(model, ids)[:, -1].argmax(-1, keepdim=True)], 1)
    return ids


def generated(model: Any, ids: Tensor, steps: int, **options: Any) -> Tensor:
    out: Tensor = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=steps, do_sample=False, use_cache=True, **options)
    return out


def drops(sitemap: SiteMap) -> Iterable[tuple[str, ...]]:
    """Interesting sets of dropped sites: first layers, last layers, all attention, all but one, everything."""
    attention = [site.name for site in sitemap.of_kind("attention")]
    blocks = [site.name for site in sitemap.of_kind("block")]
    mlps = [site.name for site in sitemap.of_kind("mlp")]
    yield from ((), (attention[0],), (attention[-1],), (blocks[0],), (blocks[-1],), (blocks[1], attention[0]), tuple(attention))
    yield from (tuple(attention[:-1]), tuple(attention[1:]), tuple(blocks[:-1]), tuple(blocks), (attention[0], attention[2], *mlps[:1]))


@pytest.mark.parametrize("family", FAMILIES)
def test_generation_with_a_cache_equals_generation_without(family: str) -> None:
    model = build(family)
    sitemap = find_sites(model)
    stitcher = Stitcher(model, sitemap.sites)
    prompt = tokens(2, 6, 3)
    for dropped in drops(sitemap):
        stitcher.set(profile_of(sitemap, dict.fromkeys(dropped, DROP)), decode)
        expected = greedy(model, prompt, 14)  # longer than the sliding window of 8
        assert torch.equal(generated(model, prompt, 14), expected), dropped


def test_generation_is_right_for_every_combination_of_dropped_sublayers_of_a_llama() -> None:
    model = build("llama", num_hidden_layers=2)
    sitemap = find_sites(model)
    stitcher = Stitcher(model, sitemap.sites)
    containers = [site.name for site in sitemap.sites if site.kind != "linear"]
    prompt = tokens(1, 5, 4)
    for mask in product((False, True), repeat=len(containers)):
        levels = {name: DROP for name, dropped in zip(containers, mask, strict=True) if dropped}
        stitcher.set(profile_of(sitemap, levels), decode)
        assert torch.equal(generated(model, prompt, 8), greedy(model, prompt, 8)), levels


@pytest.mark.parametrize("family", FAMILIES)
def test_a_cache_fed_in_pieces_gives_the_logits_of_a_whole_forward(family: str) -> None:
    # generate() hands over positions; here the model takes positions and masks from the cache, and queries are several tokens long.
    model = build(family)
    sitemap = find_sites(model)
    stitcher = Stitcher(model, sitemap.sites)
    ids = tokens(2, 20, 5)
    for dropped in drops(sitemap):
        stitcher.set(profile_of(sitemap, dict.fromkeys(dropped, DROP)), decode)
        cache, parts = None, []
        for piece in ids.split([7, 3, 1, 1, 8], 1):
            out = model(input_ids=piece, past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            parts.append(out.logits)
        assert torch.allclose(torch.cat(parts, 1), logits(model, ids), atol=1e-3), dropped


@pytest.mark.parametrize("family", ["llama", "gemma3", "opt"])
def test_generation_with_padding_and_a_cache_equals_generation_without(family: str) -> None:
    model = build(family)
    sitemap = find_sites(model)
    first = sitemap.of_kind("attention")[0].name
    Stitcher(model, sitemap.sites).set(profile_of(sitemap, {first: DROP}), decode)
    ids = tokens(2, 6, 3)
    ids[0, :3] = 0
    mask = (ids != 0).long()
    options = {"attention_mask": mask, "max_new_tokens": 8, "do_sample": False}
    assert torch.equal(model.generate(ids, use_cache=True, **options), model.generate(ids, use_cache=False, **options))


def test_beam_search_and_a_static_cache_survive_a_dropped_first_attention() -> None:
    model = build("llama")
    sitemap = find_sites(model)
    Stitcher(model, sitemap.sites).set(profile_of(sitemap, {"model.layers.0.self_attn": DROP}), decode)
    prompt = tokens(2, 6, 3)
    cached = generated(model, prompt, 8, num_beams=3)
    plain = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=8, do_sample=False, use_cache=False, num_beams=3)
    assert torch.equal(cached, plain)
    assert torch.equal(generated(model, prompt, 8, cache_implementation="static", disable_compile=True), greedy(model, prompt, 8))


def test_only_what_changed_is_decoded_and_unchanged_weights_are_not_copied() -> None:
    model = build("llama")
    sitemap = find_sites(model)
    stitcher = Stitcher(model, sitemap.sites)
    asked: list[str] = []

    def counting(site: Site, level: Level) -> Tensor:
        asked.append(site.name)
        return decode(site, level)

    names = [site.name for site in sitemap.of_kind("linear")]
    stitcher.set(profile_of(sitemap, dict.fromkeys(names, Level.of("a"))), counting)
    assert asked == names
    asked.clear()
    pointer = model.get_submodule(names[0]).weight.data_ptr()
    stitcher.set(profile_of(sitemap, dict.fromkeys(names, Level.of("a")) | {names[3]: Level.of("b"), names[4]: DENSE}), counting)
    assert asked == [names[3]]
    assert model.get_submodule(names[0]).weight.data_ptr() == pointer


def test_decoded_weights_take_the_type_of_the_model() -> None:
    model = build("llama").to(torch.bfloat16)
    sitemap = find_sites(model)
    site = sitemap.of_kind("linear")[0]
    Stitcher(model, sitemap.sites).set(profile_of(sitemap, {site.name: Level.of("a")}), decode)
    assert model.get_submodule(site.name).weight.dtype == torch.bfloat16
    assert torch.equal(read(model, site), decode(site, Level.of("a")).bfloat16().float())


def test_a_failing_decoder_leaves_a_state_that_can_be_mended() -> None:
    model = build("llama")
    before = logits(model)
    sitemap = find_sites(model)
    stitcher = Stitcher(model, sitemap.sites)
    names = [site.name for site in sitemap.of_kind("linear")]

    def failing(site: Site, level: Level) -> Tensor:
        if site.name == names[2]:
            raise OSError("bank is gone")
        return decode(site, level)

    target = profile_of(sitemap, dict.fromkeys(names, Level.of("a")) | {"model.layers.0.self_attn": DENSE})
    with pytest.raises(OSError, match="bank is gone"):
        stitcher.set(target, failing)
    assert [stitcher.profile[name] for name in names[:3]] == [Level.of("a"), Level.of("a"), DENSE]
    stitcher.restore()
    assert torch.equal(logits(model), before)


def test_profiles_that_do_not_fit_are_refused_and_change_nothing() -> None:
    model = build("llama")
    before = logits(model)
    sitemap = find_sites(model)
    stitcher = Stitcher(model, sitemap.sites)
    dense = dict(profile_of(sitemap, {}).levels)
    attention = "model.layers.0.self_attn"
    bad = {
        "differ in": Profile.of({"x": DENSE}),
        "must be absent": Profile.of(dense | {attention: DROP}),
        "cannot be absent": Profile.of(dense | {attention: ABSENT}),
        "cannot have level": Profile.of(dense | {attention: Level.of("gptq", bits=3)}),
    }
    for message, profile in bad.items():
        with pytest.raises(UsageError, match=message):
            stitcher.set(profile, decode)
    with pytest.raises(UsageError, match="must be"):
        stitcher.set(profile_of(sitemap, {f"{attention}.q_proj": Level.of("a")}), lambda site, level: torch.zeros(1, 1))
    assert torch.equal(logits(model), before)
