"""Finds the sites of a model from its structure: no list of model types, no weights needed.

A decoder is a list of blocks that all hold matrices; in a block, the child whose `forward` asks for a mask, positions or a cache mixes
tokens (attention), any other child with matrices is an MLP. Matrices that stand directly in a block (OPT) have the block as parent.
Which matrices share an input is observed, by a forward on the meta device. Called by run, calibrate and tests.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from evopress.api.errors import InfeasibleBudget, UsageError
from evopress.api.site import Site, SiteKind
from evopress.models.calls import replaced
from evopress.models.weights import expert_tensors, is_linear, slot_of

_TOKEN_MIXING = frozenset(
    {"attention_mask", "past_key_values", "past_key_value", "layer_past", "cache_params", "position_ids", "position_embeddings", "alibi"}
)


@dataclass(frozen=True)
class SiteMap:
    """The sites of a model and how much of it they reach.

    sites: model order, a parent before its children.
    stack: module path of the list of blocks.
    fixed_params: parameters outside all blocks (embeddings, final norm, an untied head); a tied tensor counts once.
    embedding_params: those of them in embeddings and the head. reached: parameters in linear sites.
    missed: (module path, parameters) of what no linear site holds, largest first.
    input_error: why it is unknown which sites share an input ("" if known); then every site has an input of its own, which is
        right but costs memory and time.
    """

    sites: tuple[Site, ...]
    stack: str
    fixed_params: int
    embedding_params: int
    total_params: int
    reached: int
    missed: tuple[tuple[str, int], ...]
    input_error: str = ""

    @property
    def coverage(self) -> float:
        """Share of the parameters without embeddings and head that linear sites hold: does the search see the transformer?"""
        return self.reached / max(1, self.total_params - self.embedding_params)

    @property
    def coverage_total(self) -> float:
        """Share of all parameters that linear sites hold."""
        return self.reached / max(1, self.total_params)

    def of_kind(self, kind: SiteKind) -> tuple[Site, ...]:
        """The sites of one kind, in model order."""
        return tuple(site for site in self.sites if site.kind == kind)


def find_sites(model: nn.Module) -> SiteMap:
    """Find all sites of a causal language model; works on the meta device. Raises UsageError if it has no list of blocks."""
    stack, blocks = block_stack(model)
    sites: list[Site] = []
    for depth, block in enumerate(blocks):
        sites += _block_sites(f"{stack}.{depth}", block, depth)
    groups, error = _observed_inputs(model, [site for site in sites if site.kind == "linear"])
    sites = [_with_input(site, groups.get(site.name, site.name)) if site.kind == "linear" else site for site in sites]
    return _site_map(model, stack, tuple(sites), error)


def check_coverage(sitemap: SiteMap, least: float = 0.5) -> None:
    """Raise InfeasibleBudget, naming the largest modules that no site reaches, when `coverage` is below `least`."""
    if sitemap.coverage >= least:
        return
    shown = ", ".join(f"{name} ({params:,})" for name, params in sitemap.missed[:8])
    raise InfeasibleBudget(
        f"The sites reach {sitemap.coverage:.1%} of the parameters outside embeddings and head; at least {least:.0%} is needed. "
        f"Missed modules, largest first (parameters): {shown}.",
        "Sites are nn.Linear, Conv1D and stacked experts inside the list of blocks; use a model that keeps its weights there.",
    )


def block_stack(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """Path and module of the list of blocks: the outermost ModuleList of matrix-holding modules with most parameters."""
    found: list[tuple[str, nn.ModuleList]] = []
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer, _ in found)
        if isinstance(module, nn.ModuleList) and len(module) and not inside and all(_has_matrices(child) for child in module):
            found.append((name, module))
    if not found:
        raise UsageError(
            f"{type(model).__name__} has no list of blocks that hold matrices, so it has no sites.",
            "Give a causal language model whose blocks stand in an nn.ModuleList.",
        )
    return max(found, key=lambda item: _params(item[1]))


def _params(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _has_matrices(module: nn.Module) -> bool:
    return any(is_linear(child) or expert_tensors(child) for child in module.modules())


def _mixes_tokens(module: nn.Module) -> bool:
    """An MLP works token by token, so it needs no mask, position or cache; whatever asks for one mixes tokens."""
    return not _TOKEN_MIXING.isdisjoint(inspect.signature(type(module).forward).parameters)


def _matrices(path: str, module: nn.Module, experts: set[int]) -> Iterator[tuple[str, tuple[int, int]]]:
    """Name and R×C shape of every compressible matrix at or below a module, in model order; routers over `experts` are left out."""
    for name, child in module.named_modules(prefix=path):
        if is_linear(child):
            rows, columns = child.weight.shape if isinstance(child, nn.Linear) else reversed(child.weight.shape)
            # A router or an expert's gate picks experts; it is tiny, decides everything, and is never worth compressing.
            if not (experts and rows in experts | {1}):
                yield name, (rows, columns)
        for attribute, tensor in expert_tensors(child).items():
            rows, columns = tensor.shape[:0:-1] if child.is_transposed else tensor.shape[1:]
            for index in range(tensor.shape[0]):
                yield f"{name}.{attribute}[{index}]", (rows, columns)


def _block_sites(path: str, block: nn.Module, depth: int) -> list[Site]:
    below: list[Site] = []
    experts = {tensor.shape[0] for child in block.modules() for tensor in expert_tensors(child).values()}
    for name, child in _units(path, block):
        matrices = list(_matrices(name, child, set() if _mixes_tokens(child) else experts))
        if is_linear(child) and matrices:
            below.append(Site(name, "linear", matrices[0][1], depth, path))
        elif matrices:
            own = _params(child) - sum(rows * columns for _, (rows, columns) in matrices)
            below.append(Site(name, "attention" if _mixes_tokens(child) else "mlp", (0, 0), depth, path, own_params=own))
            below += [Site(matrix, "linear", shape, depth, name) for matrix, shape in matrices]
    own = _params(block) - sum(site.weights + site.own_params for site in below)
    return [Site(path, "block", (0, 0), depth, None, own_params=own), *below]


def _units(path: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Children of a block; lists and dictionaries have no `forward` of their own that could be dropped, so their items count."""
    for name, child in module.named_children():
        if isinstance(child, nn.ModuleList | nn.ModuleDict):
            yield from _units(f"{path}.{name}", child)
        else:
            yield f"{path}.{name}", child


def _with_input(site: Site, name: str) -> Site:
    return Site(site.name, site.kind, site.shape, site.depth, site.parent, name, site.own_params)


def _observed_inputs(model: nn.Module, linears: list[Site]) -> tuple[dict[str, str], str]:
    """Site name -> name of the first site that read the very same tensor, from one forward of two tokens on the meta device.

    Expert matrices see tokens of their own, so they are not observed. Returns an empty mapping and the reason if the forward fails.
    """
    first: dict[tuple[object, ...], str] = {}
    groups: dict[str, str] = {}
    alive: list[Tensor] = []

    def observe(name: str, x: Tensor) -> None:
        alive.append(x)  # a freed tensor could hand its identity to a later one
        key = (x.untyped_storage()._cdata, x.storage_offset(), x.numel(), x.shape[-1], x._version)
        groups[name] = first.setdefault(key, name)

    handles = []
    embedding = model.get_input_embeddings()  # type: ignore[operator]
    state = {name: tensor.to("meta") for name, tensor in [*model.named_parameters(), *model.named_buffers()]}
    inputs = {"inputs_embeds": torch.empty(1, 2, embedding.weight.shape[1], device="meta", dtype=embedding.weight.dtype)}
    try:
        for site in linears:
            if not site.expert:
                module = model.get_submodule(site.name)
                handles.append(module.register_forward_pre_hook(lambda _, args, name=site.name: observe(name, args[0])))
        # Routing depends on values, which meta tensors lack; experts keep the shape of what they are given.
        experts = {module: _same_shape for module in model.modules() if expert_tensors(module)}
        with torch.no_grad(), replaced(experts):
            torch.func.functional_call(model, state, args=(), kwargs={**inputs, "use_cache": True})
    except Exception as error:  # any model code may fail on meta tensors; the answer below stays right, and the reason is kept
        return {}, f"{type(error).__name__}: {error}"
    finally:
        for handle in handles:
            handle.remove()
    return groups, ""


def _same_shape(hidden_states: Tensor, *_: object, **__: object) -> Tensor:
    return torch.empty_like(hidden_states)


def _site_map(model: nn.Module, stack: str, sites: tuple[Site, ...], error: str) -> SiteMap:
    slots = [slot_of(model, site) for site in sites if site.kind == "linear"]
    parameters = {id(slot.parameter) for slot in slots}
    total = _params(model)
    reached = sum(site.weights for site in sites)
    if sum(parameter.numel() for parameter in model.parameters() if id(parameter) in parameters) != reached:
        raise UsageError(
            f"Some blocks of {type(model).__name__} share their weights, so a matrix cannot be compressed in one place only.",
            "Models with shared blocks are not supported.",
        )
    embeddings = {id(module.weight): module.weight.numel() for module in model.modules() if isinstance(module, nn.Embedding)}
    head = model.get_output_embeddings()  # type: ignore[operator]
    if head is not None:
        embeddings[id(head.weight)] = head.weight.numel()
    missed: list[tuple[str, int]] = []
    seen = set(parameters)
    for name, module in model.named_modules():
        own = {id(tensor): tensor.numel() for tensor in module.parameters(recurse=False) if id(tensor) not in seen}
        seen |= own.keys()
        if own:
            missed.append((name, sum(own.values())))
    return SiteMap(
        sites=sites,
        stack=stack,
        fixed_params=total - sum(site.weights + site.own_params for site in sites),
        embedding_params=sum(embeddings.values()),
        total_params=total,
        reached=reached,
        missed=tuple(sorted(missed, key=lambda item: -item[1])),
        input_error=error,
    )
