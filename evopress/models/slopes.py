"""Slopes: what a loss would change, to first order, if one site alone were undone or removed; from one backward pass at a profile.

At a linear site <∂L/∂W, W_dense - W_now>: the derivative along fading its compression error out. At a sublayer -<∂L/∂out, out>, along
fading its output out; at a block, which hands its input on when dropped, <∂L/∂out, in - out>. A model that normalises a sublayer's output
(Gemma 2) does not feel a fading, so these are 0 there. Runs no loss of its own (`run` does). The products add up on the device and are
brought over once, at the end, so that the host waits for a GPU once and not at every site. Called by the workbench.

Shapes: R rows out, C columns in, S sites.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from evopress.api.level import ABSENT, DENSE, DROP, Level
from evopress.api.site import Site
from evopress.models.calls import Call, Returns
from evopress.models.stitch import Stitcher
from evopress.models.weights import Slot, module_of, slot_of


def slopes(
    model: nn.Module, stitcher: Stitcher, sites: Sequence[Site], levels: Sequence[Sequence[Level]], run: Callable[[], object]
) -> tuple[float, ...]:
    """One number a site, at the profile the stitcher holds. 0 at dense sites, at dropped ones and below them, and where nothing can change.

    levels: what each site may take. run: forward and backward passes; their gradients add up. The model is left without gradients.
    """
    now = dict(stitcher.profile)
    linear = [site for site in sites if site.kind == "linear" and now[site.name] not in (DENSE, ABSENT)]
    slots = {site.name: slot_of(model, site) for site in linear}
    parameters = {id(slot.parameter): slot.parameter for slot in slots.values()}
    found_S = torch.zeros(len(sites), dtype=torch.float64, device=next(model.parameters()).device)
    found = dict(zip((site.name for site in sites), found_S, strict=True))  # views: what is added to one is added to found_S
    try:
        with ExitStack() as watching, torch.enable_grad():
            for parameter in parameters.values():
                parameter.requires_grad_(True)
            removable = [site for site, own in zip(sites, levels, strict=True) if DROP in own and now[site.name] == DENSE]
            for site in removable:
                watching.callback(_watch(module_of(model, site), site, found).remove)
            # Where nothing is compressed no weight is trained, so the graph begins at the embedding.
            embedding: Any = model.get_input_embeddings()  # type: ignore[operator]
            watching.callback(embedding.register_forward_hook(lambda _, __, out: out.requires_grad_()).remove)
            for parameter in parameters.values():
                own = [site for site in linear if slots[site.name].parameter is parameter]
                hook = _taker(own, slots, stitcher, found)
                watching.callback(parameter.register_post_accumulate_grad_hook(hook).remove)  # type: ignore[no-untyped-call]
            run()
    finally:
        for parameter in parameters.values():
            parameter.requires_grad_(False)
            parameter.grad = None
    return tuple(found_S.tolist())


def _taker(sites: Sequence[Site], slots: dict[str, Slot], stitcher: Stitcher, found: Mapping[str, Tensor]) -> Callable[[Tensor], None]:
    """Take the products with a gradient the moment it is there, and free it: one matrix of gradients is alive at a time."""

    def take(parameter: Tensor) -> None:
        assert parameter.grad is not None
        for site in sites:
            slot = slots[site.name]
            error_RC = slot.view(parameter.detach()).to(torch.float32) - stitcher.dense(site).to(torch.float32)
            found[site.name].sub_((slot.view(parameter.grad).to(torch.float32) * error_RC).sum())
        parameter.grad = None

    return take


def _watch(module: nn.Module, site: Site, found: Mapping[str, Tensor]) -> Any:
    """Add up what removing this module's output would change, whenever a backward pass goes through it."""

    def forward(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        out = Returns.first(output)
        instead = Call(args, kwargs).hidden.detach() if site.kind == "block" else torch.zeros_like(out)
        step = instead.to(torch.float32) - out.detach().to(torch.float32)

        def backward(grad: Tensor) -> None:
            found[site.name].add_((grad.to(torch.float32) * step).sum())

        if out.requires_grad:
            out.register_hook(backward)  # type: ignore[no-untyped-call]

    return module.register_forward_hook(forward, with_kwargs=True)
