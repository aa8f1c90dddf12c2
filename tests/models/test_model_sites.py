"""Sites of every family: counts, parents, shared inputs, and sums of parameters that must come out even."""

from __future__ import annotations

import pytest
import torch
from tiny import FAMILIES, build, skeleton, tokens
from torch import nn

from evopress.api import InfeasibleBudget, UsageError
from evopress.models.sites import check_coverage, find_sites
from evopress.models.weights import read

# family -> (blocks, attentions, mlps, linears, distinct inputs of linears)
COUNTS = {
    "llama": (3, 3, 3, 21, 12),
    "llama_tied": (3, 3, 3, 21, 12),
    "mistral": (3, 3, 3, 21, 12),
    "qwen3": (3, 3, 3, 21, 12),
    "gemma": (3, 3, 3, 21, 12),
    "gemma2": (4, 4, 4, 28, 16),
    "gemma3": (4, 4, 4, 28, 16),
    "phi3": (3, 3, 3, 12, 12),
    "opt": (3, 3, 0, 18, 12),
    "gpt2": (3, 3, 3, 12, 12),
    "gpt_neox": (3, 3, 3, 12, 12),
    "mixtral": (3, 3, 3, 3 * (4 + 8), 3 * (2 + 8)),
    "qwen3_moe": (3, 3, 3, 2 * (4 + 8) + 7, 2 * (2 + 8) + 4),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_counts_and_parameter_sums_on_the_meta_device(family: str) -> None:
    model = skeleton(family)
    found = find_sites(model)
    linears = found.of_kind("linear")
    counts = tuple(len(found.of_kind(kind)) for kind in ("block", "attention", "mlp", "linear"))
    assert (*counts, len({site.input for site in linears})) == COUNTS[family]
    assert found.input_error == ""
    total = sum(parameter.numel() for parameter in model.parameters())
    assert found.total_params == total
    assert sum(site.weights + site.own_params for site in found.sites) + found.fixed_params == total
    assert found.reached == sum(site.weights for site in linears)
    assert found.reached + sum(params for _, params in found.missed) == total
    assert all(site.own_params >= 0 for site in found.sites)
    in_blocks = sum(p.numel() for name, p in model.named_parameters() if name.startswith(f"{found.stack}."))
    assert found.fixed_params == total - in_blocks


@pytest.mark.parametrize("family", FAMILIES)
def test_a_real_model_has_the_sites_of_its_skeleton_and_is_left_alone(family: str) -> None:
    model = build(family)
    ids = tokens()
    before = model(ids).logits
    found = find_sites(model)
    assert found == find_sites(skeleton(family))
    assert torch.equal(model(ids).logits, before)
    for module in model.modules():
        assert "forward" not in module.__dict__
        assert not module._forward_pre_hooks


@pytest.mark.parametrize("family", FAMILIES)
def test_parents_come_first_and_depth_follows_the_path(family: str) -> None:
    found = find_sites(skeleton(family))
    kinds = {}
    for site in found.sites:
        assert site.name.startswith(f"{found.stack}.{site.depth}")
        if site.kind == "block":
            assert site.parent is None
        else:
            assert site.parent in kinds
            assert kinds[site.parent] in ("block", "attention", "mlp")
            assert site.name.startswith(f"{site.parent}.")
        kinds[site.name] = site.kind


@pytest.mark.parametrize("family", ["llama", "opt", "phi3", "gemma3"])
def test_sites_share_an_input_exactly_when_they_read_equal_activations(family: str) -> None:
    model = build(family)
    seen: dict[str, torch.Tensor] = {}
    linears = find_sites(model).of_kind("linear")
    for site in linears:
        module = model.get_submodule(site.name)
        module.register_forward_pre_hook(lambda _, args, name=site.name: seen.update({name: args[0].clone()}))
    model(tokens())
    for a in linears:
        for b in linears:
            x, y = seen[a.name].reshape(-1, a.shape[1]), seen[b.name].reshape(-1, b.shape[1])
            assert (x.shape == y.shape and torch.equal(x, y)) == (a.input == b.input), (a.name, b.name)


def test_named_groups_of_llama_and_opt() -> None:
    llama = {site.name: site for site in find_sites(skeleton("llama")).sites}
    path = "model.layers.1"
    assert llama[f"{path}.self_attn.q_proj"].input == llama[f"{path}.self_attn.v_proj"].input
    assert llama[f"{path}.mlp.gate_proj"].input == llama[f"{path}.mlp.up_proj"].input
    assert llama[f"{path}.self_attn.o_proj"].input == f"{path}.self_attn.o_proj"
    assert llama[f"{path}.mlp.down_proj"].shape == (32, 48)
    assert llama[path].own_params == 64  # two RMS norms
    opt = {site.name: site for site in find_sites(skeleton("opt")).sites}
    assert opt["model.decoder.layers.0.fc1"].parent == "model.decoder.layers.0"


def test_biases_and_query_norms_belong_to_their_container() -> None:
    tied = {site.name: site for site in find_sites(skeleton("llama_tied")).sites}
    assert tied["model.layers.0.self_attn"].own_params == 32 + 16 + 16 + 32
    assert tied["model.layers.0.mlp"].own_params == 48 + 48 + 32
    qwen = {site.name: site for site in find_sites(skeleton("qwen3")).sites}
    assert qwen["model.layers.0.self_attn"].own_params == 2 * 16


def test_routers_are_no_sites_but_are_paid_for_by_the_mlp() -> None:
    found = find_sites(skeleton("mixtral"))
    mlp = next(site for site in found.sites if site.kind == "mlp")
    assert mlp.own_params == 4 * 32
    assert not any("gate." in site.name for site in found.of_kind("linear"))
    expert = next(site for site in found.sites if site.name.endswith("experts.gate_up_proj[3]"))
    assert (expert.shape, expert.parent, expert.role) == ((96, 32), mlp.name, "gate_up_proj")


def test_tied_head_counts_once_and_untied_head_twice() -> None:
    tied, untied = find_sites(skeleton("llama_tied")), find_sites(skeleton("llama"))
    assert tied.embedding_params == 61 * 32
    assert untied.embedding_params == 2 * 61 * 32


def test_gpt2_shapes_are_rows_out_by_columns_in() -> None:
    site = next(site for site in find_sites(skeleton("gpt2")).sites if site.name.endswith("c_fc"))
    assert site.shape == (128, 32)
    assert read(build("gpt2"), site).shape == (128, 32)


def test_coverage_ignores_a_giant_vocabulary_and_reports_it() -> None:
    found = find_sites(skeleton("llama", vocab_size=50_000))
    assert found.coverage > 0.95
    assert found.coverage_total < 0.05
    check_coverage(found)


def test_low_coverage_is_an_error_that_names_what_was_missed() -> None:
    model = skeleton("llama")
    with torch.device("meta"):
        model.model.layers[1].adapter = nn.Conv1d(200, 200, 3)
    found = find_sites(model)
    assert found.coverage < 0.5
    with pytest.raises(InfeasibleBudget, match=r"model\.layers\.1\.adapter \(120,200\)") as raised:
        check_coverage(found)
    assert raised.value.exit_code == 3


def test_a_model_without_blocks_is_refused() -> None:
    with pytest.raises(UsageError, match="no list of blocks"):
        find_sites(nn.Sequential(nn.Linear(4, 4)))


def test_shared_blocks_are_refused() -> None:
    model = build("llama")
    model.model.layers[1] = model.model.layers[0]
    with pytest.raises(UsageError, match="share their weights"):
        find_sites(model)


def test_a_forward_that_fails_on_meta_keeps_the_answer_right() -> None:
    model = build("llama")

    def fail(*args: object, **kwargs: object) -> None:
        raise RuntimeError("needs values")

    model.model.norm.forward = fail
    found = find_sites(model)
    assert found.input_error == "RuntimeError: needs values"
    assert all(site.input == site.name for site in found.of_kind("linear"))
