"""Outliers, spectra and similarities against brute force in float64, and similarities against hidden states read off by hand."""

from __future__ import annotations

import pytest
import torch
from tiny import build, tokens
from torch import Tensor, nn

from evopress.models.sitefacts import outlier_share, similarities, spectrum
from evopress.models.sites import find_sites

BATCHES = [tokens(2, 16, 0), tokens(1, 21, 1)]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_outliers_of_a_weight_by_hand() -> None:
    """Scores 1, 1, 1, 9 and four zeros have the mean 1.5; only 9 is above 5 times that."""
    weight = torch.tensor([[1.0, -1.0, 0.5, 4.5], [0.0, 0.0, 0.0, 0.0]])
    moment = torch.diag(torch.tensor([1.0, 1.0, 4.0, 4.0]))
    assert outlier_share(weight, moment, 5) == 1 / 8
    assert outlier_share(weight, moment, 6) == 0
    assert outlier_share(weight, moment, 0.5) == 4 / 8
    assert outlier_share(torch.zeros(2, 4), moment, 5) == 0


def test_outliers_equal_brute_force_over_the_inputs_themselves() -> None:
    """‖X_j‖₂ from the tokens; the number of tokens cancels."""
    weight, x = random(12, 20) ** 3, random(50, 20, seed=1) * torch.linspace(0.1, 9, 20)
    scores = weight.double().abs() * x.double().pow(2).sum(0).sqrt()
    expected = float((scores > 3 * scores.mean()).double().mean())
    assert outlier_share(weight, x.T @ x / 50, 3) == pytest.approx(expected, abs=1e-9)
    assert expected > 0.02


@pytest.mark.parametrize("shape", [(5, 9), (9, 5)])
def test_a_spectrum_is_that_of_the_gram_matrix(shape: tuple[int, int]) -> None:
    weight = random(*shape)
    gram = weight.double() @ weight.double().T if shape[0] < shape[1] else weight.double().T @ weight.double()
    expected = torch.linalg.eigvalsh(gram).flip(0).clamp_min(0).sqrt()
    assert spectrum(weight) == pytest.approx((expected / expected[0]).tolist(), rel=1e-4)
    assert spectrum(weight)[0] == 1
    assert spectrum(torch.zeros(2, 3)) == (0, 0)


def cosine(before: list[Tensor], after: list[Tensor]) -> float:
    """Mean over all tokens in float64, written out."""
    a = torch.cat([part.reshape(-1, part.shape[-1]) for part in before]).double()
    b = torch.cat([part.reshape(-1, part.shape[-1]) for part in after]).double()
    return float(((a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1))).mean())


def seen(model: nn.Module, names: list[str]) -> dict[str, tuple[list[Tensor], list[Tensor]]]:
    """First tensor into and out of modules, over the batches."""
    found: dict[str, tuple[list[Tensor], list[Tensor]]] = {name: ([], []) for name in names}

    def hook(name: str):  # type: ignore[no-untyped-def]
        def take(_: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor], out: Tensor | tuple[Tensor, ...]) -> None:
            found[name][0].append(args[0] if args else kwargs["hidden_states"])
            found[name][1].append(out[0] if isinstance(out, tuple) else out)

        return take

    handles = [model.get_submodule(name).register_forward_hook(hook(name), with_kwargs=True) for name in names]
    for ids in BATCHES:
        model(ids)
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.parametrize("family", ["llama", "mixtral"])
def test_similarities_of_a_family_that_adds_its_sublayers_one_after_the_other(family: str) -> None:
    """The state between attention and MLP is what the second norm reads."""
    model = build(family)
    got = similarities(model, find_sites(model), BATCHES)
    for depth in range(3):
        block = f"model.layers.{depth}"
        between, whole = f"{block}.post_attention_layernorm", seen(model, [block, f"{block}.post_attention_layernorm"])
        (start, end), (middle, _) = whole[block], whole[between]
        assert got[block] == pytest.approx(cosine(start, end), abs=1e-6)
        assert got[f"{block}.self_attn"] == pytest.approx(cosine(start, middle), abs=1e-6)
        assert got[f"{block}.mlp"] == pytest.approx(cosine(middle, end), abs=1e-6)
        assert len({got[block], got[f"{block}.self_attn"], got[f"{block}.mlp"]}) == 3
    assert len(got) == 9


def test_similarities_where_a_sublayers_output_is_normalised_before_it_is_added() -> None:
    """Gemma 2: the residual before the MLP is what its pre-norm reads."""
    model = build("gemma2")
    got = similarities(model, find_sites(model), BATCHES)
    block = "model.layers.1"
    states = seen(model, [block, f"{block}.pre_feedforward_layernorm"])
    middle = states[f"{block}.pre_feedforward_layernorm"][0]
    assert got[f"{block}.self_attn"] == pytest.approx(cosine(states[block][0], middle), abs=1e-6)
    assert got[f"{block}.mlp"] == pytest.approx(cosine(middle, states[block][1]), abs=1e-6)


@pytest.mark.parametrize("family", ["gpt_neox", "opt", "gpt2"])
def test_similarities_leave_other_families_as_they_were(family: str) -> None:
    model = build(family)
    before = model(BATCHES[0]).logits
    sitemap = find_sites(model)
    got = similarities(model, sitemap, BATCHES)
    assert got.keys() == {site.name for site in sitemap.sites if site.kind != "linear"}
    assert all(-1 <= value < 1 for value in got.values())
    assert torch.equal(model(BATCHES[0]).logits, before)
    assert not any(module._forward_hooks or "forward" in module.__dict__ for module in model.modules())
