"""Reading and writing the matrix of a site, in all three storages."""

from __future__ import annotations

import pytest
import torch
from tiny import build, tokens

from evopress.api import Site, UsageError
from evopress.models.sites import find_sites
from evopress.models.weights import module_of, read, write


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral", "opt"])
def test_what_is_written_is_read_and_nothing_else_changes(family: str) -> None:
    model = build(family)
    linears = find_sites(model).of_kind("linear")
    before = {site.name: read(model, site).clone() for site in linears}
    target = linears[len(linears) // 2]
    new = torch.randn(target.shape, dtype=torch.float64)
    write(model, target, new)
    for site in linears:
        expected = new.float() if site is target else before[site.name]
        assert torch.equal(read(model, site), expected)


def test_an_expert_matrix_is_the_slice_its_name_says() -> None:
    model = build("mixtral")
    site = next(site for site in find_sites(model).sites if site.name.endswith("layers.2.mlp.experts.down_proj[3]"))
    assert torch.equal(read(model, site), model.model.layers[2].mlp.experts.down_proj[3])
    assert module_of(model, site) is model.model.layers[2].mlp.experts


def test_conv1d_computes_with_the_transposed_matrix() -> None:
    model = build("gpt2")
    site = next(site for site in find_sites(model).sites if site.name == "transformer.h.0.mlp.c_fc")
    module = module_of(model, site)
    x = torch.randn(5, 32)
    assert torch.allclose(module(x), x @ read(model, site).T + module.bias, atol=1e-5)


def test_wrong_shapes_and_foreign_sites_are_refused() -> None:
    model = build("llama")
    site = find_sites(model).of_kind("linear")[0]
    with pytest.raises(UsageError, match="must be"):
        write(model, site, torch.zeros(1, 1))
    for bad in (Site("model.layers.0", "block", (0, 0), 0, None), Site("model.layers.0.mlp", "mlp", (0, 0), 0, None)):
        with pytest.raises(UsageError, match="holds no matrix"):
            read(model, bad)
    with pytest.raises(UsageError, match="no module"):
        read(model, Site("transformer.h.0.attn.c_attn", "linear", (4, 4), 0, None))
    with pytest.raises(UsageError, match="another shape"):
        read(model, Site(site.name, "linear", (1, 1), 0, None))


def test_transposed_experts_are_read_rows_out_first() -> None:
    model = build("mixtral")
    experts = model.model.layers[0].mlp.experts
    original = experts.down_proj.data
    experts.is_transposed = True
    experts.down_proj.data = original.transpose(1, 2).contiguous()
    site = next(site for site in find_sites(model).sites if site.name.endswith("layers.0.mlp.experts.down_proj[1]"))
    assert site.shape == (32, 48)
    assert torch.equal(read(model, site), original[1])
    assert tokens().shape == (2, 16)
