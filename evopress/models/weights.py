"""Where the matrix of a linear site lives in a model, and how it is read and written.

Knows the three ways a matrix is stored: `nn.Linear`, transformers' transposed `Conv1D`, one slice of a stacked expert tensor. Does not
know what a profile is. Called by sites, calibrate, stitch and everyone who needs a weight.

Shapes: R rows out, C columns in, E experts.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from evopress.api.errors import UsageError
from evopress.api.site import Site

_EXPERT = re.compile(r"(.*)\.([^.\[\]]+)\[(\d+)\]")


@dataclass(frozen=True)
class Slot:
    """Place of one matrix: parameter `attribute` of `module`, slice `index` of a stacked tensor, stored C×R if `transposed`."""

    module: nn.Module
    attribute: str
    index: int | None
    transposed: bool

    @property
    def parameter(self) -> nn.Parameter:
        """The parameter that holds the matrix, as it is now."""
        parameter: nn.Parameter = getattr(self.module, self.attribute)
        return parameter

    def view(self, tensor: Tensor) -> Tensor:
        """The matrix of this slot as an R×C view of `tensor`, which is laid out as the parameter is."""
        matrix = tensor if self.index is None else tensor[self.index]
        return matrix.t() if self.transposed else matrix


def is_linear(module: nn.Module) -> bool:
    """Does the module hold one matrix that can be compressed?"""
    return isinstance(module, nn.Linear | Conv1D)


def expert_tensors(module: nn.Module) -> dict[str, nn.Parameter]:
    """Stacked expert matrices that a module holds itself, E×R×C (E×C×R where `module.is_transposed`), by attribute name.

    `is_transposed` is the mark that transformers puts on modules with stacked experts; without it the layout of a 3-D tensor cannot be
    known, so other 3-D parameters are left alone (and are counted as missed).
    """
    if not isinstance(getattr(module, "is_transposed", None), bool):
        return {}
    return {name: parameter for name, parameter in module.named_parameters(recurse=False) if parameter.ndim == 3}


def module_of(model: nn.Module, site: Site) -> nn.Module:
    """The module a site names; for an expert matrix the module that holds the stack. Raises UsageError when the model has none."""
    match = _EXPERT.fullmatch(site.name)
    path = match.group(1) if match else site.name
    try:
        return model.get_submodule(path)
    except AttributeError:
        raise UsageError(f"The model has no module {path!r} for site {site.name!r}.", "Use the sites found in this very model.") from None


def slot_of(model: nn.Module, site: Site) -> Slot:
    """Where the matrix of a linear site is stored. Raises UsageError for a container or for a site of another model."""
    module = module_of(model, site)
    match = _EXPERT.fullmatch(site.name)
    if match and match.group(2) in expert_tensors(module):
        slot = Slot(module, match.group(2), int(match.group(3)), bool(module.is_transposed))
        fits = slot.index is not None and slot.index < slot.parameter.shape[0]
    elif not match and is_linear(module):
        slot, fits = Slot(module, "weight", None, isinstance(module, Conv1D)), True
    else:
        raise UsageError(f"Site {site.name!r} of kind {site.kind} holds no matrix.", "Only linear sites have weights.")
    if not fits or tuple(slot.view(slot.parameter).shape) != site.shape:
        raise UsageError(f"Site {site.name!r} has another shape in this model than {site.shape}.", "Find the sites of this model anew.")
    return slot


def read(model: nn.Module, site: Site) -> Tensor:
    """The weight of a linear site as contiguous R×C float32; may share memory with the model, so it is not to be changed."""
    slot = slot_of(model, site)
    return slot.view(slot.parameter.detach()).to(torch.float32).contiguous()


def write(model: nn.Module, site: Site, weight_RC: Tensor) -> None:
    """Overwrite the weight of a linear site in place, rounding to the model's type. Raises UsageError for a wrong shape."""
    slot = slot_of(model, site)
    with torch.no_grad():
        slot.view(slot.parameter).copy_(checked(site, weight_RC))


def checked(site: Site, weight_RC: Tensor) -> Tensor:
    """`weight_RC` itself if it has the shape of the site; a silent broadcast would hide a wrong decoder. Raises UsageError."""
    if tuple(weight_RC.shape) != site.shape:
        raise UsageError(f"A weight of shape {tuple(weight_RC.shape)} came for site {site.name!r}.", f"It must be {site.shape}.")
    return weight_RC
