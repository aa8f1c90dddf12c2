"""What the weights and the inputs of a site tell of it before anything is compressed: outliers, singular values, similarities.

Pure functions of a dense model. Layer errors and energies are the bank's. Called by `evopress.knowledge`.

Shapes: R rows out, C columns in, B documents in a batch, T tokens, D width of the hidden states.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from evopress.api.site import Site
from evopress.models.calls import Call, Forward, Returns, replaced
from evopress.models.sites import SiteMap
from evopress.models.weights import module_of


def outlier_share(weight_RC: Tensor, moment_CC: Tensor, multiple: float) -> float:
    """Share of the scores A_ij = |W_ij|·‖X_j‖₂ that are above `multiple` times their mean, in [0, 1].

    The layerwise outlier distribution of Outlier Weighed Layerwise Sparsity (2024, 2310.05175), as a share and not in percent.
    moment_CC: mean of x xᵀ; ‖X_j‖₂ is the root of its diagonal but for a factor that all scores share. Departure: the paper takes mean and
    share over all matrices of a block; here each matrix is taken by itself, and `owl` pools them.
    """
    scores_RC = weight_RC.abs() * moment_CC.diagonal().clamp_min(0).sqrt()
    mean = float(scores_RC.sum(dtype=torch.float64)) / scores_RC.numel()
    return int((scores_RC > multiple * mean).sum()) / scores_RC.numel()


def spectrum(weight_RC: Tensor) -> tuple[float, ...]:
    """The min(R, C) singular values in float32, largest first, divided by the largest; a weight of zeros has zeros."""
    values = torch.linalg.svdvals(weight_RC.to(torch.float32))
    return tuple((values / values[0]).tolist()) if float(values[0]) > 0 else (0.0,) * len(values)


def similarities(model: nn.Module, sitemap: SiteMap, batches: Sequence[Tensor]) -> dict[str, float]:
    """Mean over tokens of the cosine between the hidden states before and after each block and each sublayer with its residual.

    Blocks: ShortGPT (2024, 2403.03853; its block influence is 1 minus this). Sublayers: What Matters in Transformers?
    (LLM-Drop, 2024, 2406.15786), where after is x + sublayer(norm(x)). No family's residuals are known here, so the states
    inside a block are found by running it again: the state after its k-th sublayer is what the block returns when the later ones add
    nothing, which in a block that adds them one after the other is that state to the last bit. Departure: sublayers that run side by side
    (GPT-NeoX) count as if they stood in the order of their sites, and what a block computes outside them (the MLP of OPT) counts in both
    states. batches: token ids (B, T), without padding; every token counts the same. The model must be dense; it is left as it was.
    """
    sublayers: dict[str, list[Site]] = {block.name: [] for block in sitemap.of_kind("block")}
    for site in sitemap.sites:
        if site.kind in ("attention", "mlp"):
            sublayers[str(site.parent)].append(site)
    sums = dict.fromkeys(sublayers, 0.0) | {site.name: 0.0 for inner in sublayers.values() for site in inner}
    device = next(model.parameters()).device
    with torch.no_grad(), ExitStack() as watching:
        for block in sitemap.of_kind("block"):
            modules = {site.name: module_of(model, site) for site in sublayers[block.name]}
            returns: dict[nn.Module, Returns] = {}
            for module in modules.values():
                watching.callback(module.register_forward_hook(_learner(returns)).remove)
            hook = _adder(block.name, modules, returns, sums)
            watching.callback(module_of(model, block).register_forward_hook(hook, with_kwargs=True).remove)
        for ids in batches:
            model(input_ids=ids.to(device), use_cache=False)
    tokens = sum(ids.numel() for ids in batches)
    return {name: total / max(tokens, 1) for name, total in sums.items()}


def _learner(returns: dict[nn.Module, Returns]) -> Callable[..., None]:
    """A hook that learns what a sublayer returns."""

    def hook(module: nn.Module, _: tuple[Any, ...], output: Any) -> None:
        returns[module] = Returns.of(output)

    return hook


def _adder(
    name: str, sublayers: Mapping[str, nn.Module], returns: Mapping[nn.Module, Returns], sums: dict[str, float]
) -> Callable[..., None]:
    """A hook of a block that adds up its cosines and those of its sublayers at every forward."""

    def hook(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        after, names = Returns.first(output), list(sublayers)
        sums[name] += _cosines(Call(args, kwargs).hidden, after)
        # From the last sublayer to the first: what stands before one is what stands after the one that precedes it.
        for kept in reversed(range(len(names))):
            # `forward` itself, not the module, whose hooks must not see this run.
            with replaced({sublayers[one]: _nothing(returns[sublayers[one]]) for one in names[kept:]}):
                before = Returns.first(block.forward(*args, **kwargs))
            sums[names[kept]] += _cosines(before, after)
            after = before

    return hook


def _nothing(returns: Returns) -> Forward:
    """A `forward` of a sublayer that adds nothing."""
    return lambda *args, **kwargs: returns.wrap(torch.zeros_like(Call(args, kwargs).hidden))


def _cosines(before: Tensor, after: Tensor) -> float:
    """Sum over tokens of the cosine of the D-vectors, in float64; a vector of zeros is like nothing, with a cosine of 0."""
    return float(nn.functional.cosine_similarity(before.double(), after.double(), dim=-1).sum())
