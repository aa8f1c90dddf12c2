"""Second moments against float64 brute force, and hidden states against an ordinary forward."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny import FAMILIES, build, tokens

from evopress.api import UsageError
from evopress.models.calibrate import _Sum, calibrate
from evopress.models.calls import Call
from evopress.models.sites import find_sites

BATCHES = [tokens(2, 16, 0), tokens(1, 21, 1), tokens(2, 16, 2)]


@pytest.mark.parametrize("family", [name for name in FAMILIES if name not in ("mixtral", "qwen3_moe")])
def test_second_moments_equal_float64_brute_force(family: str) -> None:
    model = build(family)
    sitemap = find_sites(model)
    linears = sitemap.of_kind("linear")
    got = {name: value for _, found in calibrate(model, sitemap, BATCHES, {s.name for s in linears}) for name, value in found.items()}
    inputs: dict[str, list[torch.Tensor]] = {site.name: [] for site in linears}
    for site in linears:
        model.get_submodule(site.name).register_forward_pre_hook(lambda _, args, name=site.name: inputs[name].append(args[0]))
    for ids in BATCHES:
        model(ids)
    assert got.keys() == inputs.keys()
    for site in linears:
        x = torch.cat([part.reshape(-1, site.shape[1]) for part in inputs[site.name]]).double()
        expected = x.T @ x / len(x)
        assert got[site.name].tokens == len(x) == 2 * 16 + 21 + 2 * 16
        moment = got[site.name].second_moment
        assert moment is not None
        assert moment.dtype == torch.float32
        assert torch.allclose(moment.double(), expected, rtol=1e-5, atol=1e-5 * float(expected.diagonal().max())), site.name


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
def test_expert_moments_equal_float64_brute_force(family: str) -> None:
    model = build(family)
    sitemap = find_sites(model)
    linears = sitemap.of_kind("linear")
    before = model.get_experts_implementation()
    got = {name: value for _, found in calibrate(model, sitemap, BATCHES, {s.name for s in linears}) for name, value in found.items()}
    assert model.get_experts_implementation() == before
    # Brute force: route by hand from what the experts module is given.
    calls: dict[str, list[tuple[Any, ...]]] = {}
    for name, child in model.named_modules():
        if name.endswith("experts"):
            child.register_forward_pre_hook(lambda _, args, name=name: calls.setdefault(name, []).append(args))
    for ids in BATCHES:
        model(ids)
    checked = 0
    for site in linears:
        if not site.name.endswith("]"):
            continue
        path, _, expert = site.name.removesuffix("]").rpartition("[")
        owner, _, attribute = path.rpartition(".")
        rows = []
        for hidden, chosen, *_ in calls[owner]:
            x = hidden[(chosen == int(expert)).any(-1)].double()
            if attribute == "down_proj":
                experts = model.get_submodule(owner)
                gate, up = (x @ experts.gate_up_proj[int(expert)].double().T).chunk(2, -1)
                x = experts.act_fn(gate) * up
            rows.append(x)
        x = torch.cat(rows)
        assert got[site.name].tokens == len(x)
        expected = x.T @ x / max(1, len(x))
        moment = got[site.name].second_moment
        assert moment is not None
        assert torch.allclose(moment.double(), expected, rtol=1e-4, atol=1e-4 * (1e-9 + float(expected.diagonal().max()))), site.name
        checked += 1
    assert checked


def test_an_expert_without_tokens_has_a_zero_moment() -> None:
    model = build("mixtral")
    gate = model.model.layers[0].mlp.gate.weight
    gate.data[2:] = 0.0
    gate.data[:2] *= 100
    found = find_sites(model)
    model.model.layers[0].mlp.gate.register_forward_hook(
        lambda _, args, out: (out[0], out[1], torch.arange(2).expand_as(out[2]))  # every token to experts 0 and 1
    )
    names = {s.name for s in found.of_kind("linear") if s.depth == 0 and s.name.endswith(("[0]", "[3]"))}
    (_, got), *rest = calibrate(model, found, BATCHES, names)
    assert not rest
    assert got["model.layers.0.mlp.experts.down_proj[0]"].tokens == 2 * 16 + 21 + 2 * 16
    empty = got["model.layers.0.mlp.experts.down_proj[3]"]
    assert empty.tokens == 0
    assert empty.second_moment is not None
    assert not empty.second_moment.any()


@pytest.mark.parametrize("family", FAMILIES)
def test_hidden_states_are_those_of_an_ordinary_forward_to_the_last_bit(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(family)
    sitemap = find_sites(model)
    last = sitemap.of_kind("linear")[-1]
    if "moe" in family or family == "mixtral":
        model.set_experts_implementation("eager")
    blocks = list(model.get_submodule(sitemap.stack))
    expected: dict[int, list[torch.Tensor]] = {}
    handles = [
        block.register_forward_hook(lambda _, args, out, depth=depth: expected.setdefault(depth, []).append(out))
        for depth, block in enumerate(blocks)
    ]
    for ids in BATCHES:
        model(ids, use_cache=False)
    for handle in handles:
        handle.remove()
    got: dict[int, list[torch.Tensor]] = {}
    run = Call.run

    def spy(call: Call, block: torch.nn.Module, hidden: torch.Tensor) -> Any:
        out = run(call, block, hidden)
        got.setdefault(blocks.index(block), []).append(out)
        return out

    monkeypatch.setattr(Call, "run", spy)
    list(calibrate(model, sitemap, BATCHES, {last.name}))
    assert got.keys() == expected.keys()
    for depth, tensors in expected.items():
        for a, b in zip(tensors, got[depth], strict=True):
            assert torch.equal(a, b), depth


def test_only_wanted_blocks_are_yielded_and_sites_of_one_input_share_an_object() -> None:
    model = build("llama")
    sitemap = find_sites(model)
    wanted = {f"model.layers.1.self_attn.{role}_proj" for role in "qkv"}
    found = list(calibrate(model, sitemap, BATCHES, wanted))
    assert [depth for depth, _ in found] == [1]
    assert found[0][1].keys() == wanted
    assert len({id(statistics) for statistics in found[0][1].values()}) == 1


def test_the_model_is_left_as_it_was_even_when_the_caller_stops_early() -> None:
    model = build("mixtral")
    sitemap = find_sites(model)
    before = model(BATCHES[0]).logits
    steps = calibrate(model, sitemap, BATCHES, {site.name for site in sitemap.of_kind("linear")})
    next(steps)
    assert torch.equal(model(BATCHES[0]).logits, before)
    steps.close()
    assert torch.equal(model(BATCHES[0]).logits, before)
    assert not any(child._forward_pre_hooks or "forward" in child.__dict__ for child in model.modules())


def test_unknown_sites_and_no_tokens_are_refused() -> None:
    model = build("llama")
    sitemap = find_sites(model)
    with pytest.raises(UsageError, match=r"Unknown linear site 'model\.layers\.0\.mlp'"):
        calibrate(model, sitemap, BATCHES, {"model.layers.0.mlp"})
    with pytest.raises(UsageError, match="no tokens"):
        calibrate(model, sitemap, [], set())


def test_rounding_does_not_grow_with_the_number_of_batches() -> None:
    total = _Sum(4, torch.device("cpu"))
    x = torch.full((1000, 4), 1.0 + 2**-12)
    for _ in range(200):
        total.add(x)
    exact = (1.0 + 2**-12) ** 2
    moment = total.mean().second_moment
    assert moment is not None
    assert float((moment.double() - exact).abs().max()) < 2e-5 * exact


@pytest.mark.parametrize("columns", [1, 7, 256, 259, 301])
def test_strips_cover_the_whole_symmetric_moment(columns: int) -> None:
    total = _Sum(columns, torch.device("cpu"))
    x = torch.randn(3, 11, columns, generator=torch.Generator().manual_seed(columns))
    total.add(x)
    total.add(-x)
    moment = total.mean().second_moment
    flat = x.reshape(-1, columns).double()
    assert moment is not None
    assert torch.equal(moment, moment.T)
    assert torch.allclose(moment.double(), flat.T @ flat / len(flat), atol=1e-5)
