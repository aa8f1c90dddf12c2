"""Makes a model compute what a profile says, and undoes it.

Swaps pointers to weights and stands in for dropped sublayers; does not decode variants (the caller's `decode` does) and does not measure.
Called by the fitness runs, `Run.best.apply` and the exporters.

Shapes: R rows out, C columns in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, CacheLayerMixin

from evopress.api.errors import UsageError
from evopress.api.level import ABSENT, DENSE, DROP, Level
from evopress.api.profile import Profile
from evopress.api.site import Site
from evopress.models.calls import Call, Forward, Returns, replace_forward
from evopress.models.weights import Slot, checked, module_of, slot_of

Decode = Callable[[Site, Level], Tensor]


class Stitcher:
    """Holds a model whose sites it sets to levels. The model must be dense when it is given, and belongs to the stitcher from then on.

    The dense tensors are kept by reference, so a linear site costs only its decoded weight; of a stacked expert tensor one copy is made
    as soon as one of its experts changes. One forward of two tokens at the start learns what each sublayer returns.
    """

    def __init__(self, model: nn.Module, sites: Sequence[Site]) -> None:
        self._model = model
        self._sites = {site.name: site for site in sites}
        self._slots = {site.name: slot_of(model, site) for site in sites if site.kind == "linear"}
        self._containers = {site.name: module_of(model, site) for site in sites if site.kind != "linear"}
        self._dense = {id(slot.parameter): slot.parameter.data for slot in self._slots.values()}
        self._returns = _observed_returns(model, list(self._containers.values()))
        self._undo: dict[str, Callable[[], None]] = {}
        self._current = {site.name: DENSE for site in sites}

    @property
    def profile(self) -> Profile:
        """The profile the model computes now."""
        return Profile.of(self._current)

    def set(self, profile: Profile, decode: Decode) -> None:
        """Make the model compute `profile`; only sites whose level differs from the present one are touched.

        decode gives the R×C weight of a linear site at a level in any floating type. One decoded weight is alive at a time; if decode
        raises, `profile` still tells what the model computes, and the next `set` or `restore` mends it.
        Raises UsageError for a profile of other sites, or a level that its kind of site cannot have; then nothing has changed.
        """
        self._check(profile)
        for name, level in profile:
            if self._current[name] == level:
                continue
            site = self._sites[name]
            if site.kind != "linear":
                self._stand(site, level)
            elif level != ABSENT:  # a site under a dropped parent is never run, so whatever weight it has may stay
                weight_RC = None if level == DENSE else checked(site, decode(site, level))
                with torch.no_grad():
                    self._put(self._slots[name], weight_RC)
            self._current[name] = level

    def dense(self, site: Site) -> Tensor:
        """R×C dense weight of a linear site, whatever the model computes now. Not to be changed."""
        slot = self._slots[site.name]
        return slot.view(self._dense[id(slot.parameter)])

    def restore(self) -> None:
        """Make the model dense again, to the last bit."""
        self.set(Profile.of(dict.fromkeys(self._sites, DENSE)), _no_decode)
        for slot in self._slots.values():  # sets the pointers of experts back too, which frees the copies
            slot.parameter.data = self._dense[id(slot.parameter)]

    def _check(self, profile: Profile) -> None:
        named = {name for name, _ in profile}
        if named != self._sites.keys():
            odd = sorted(named ^ self._sites.keys())
            raise UsageError(
                f"The profile names {len(named)} sites and the model has {len(self._sites)}; they differ in {', '.join(odd[:5])}.",
                "Use a profile of this model.",
            )
        hidden: set[str] = set()
        for name, site in self._sites.items():
            level = profile[name]
            if site.parent is not None and (site.parent in hidden or profile[site.parent] == DROP):
                hidden.add(name)
            if (level == ABSENT) != (name in hidden):
                rule = "must be absent, because its parent is dropped" if name in hidden else "cannot be absent, because its parent is kept"
                raise UsageError(f"Site {name!r} has level {level} but {rule}.", "Build profiles with Space.profile.")
            if site.kind != "linear" and level not in (DENSE, DROP, ABSENT):
                raise UsageError(f"Site {name!r} of kind {site.kind} cannot have level {level}.", "Allowed: dense, drop.")

    def _put(self, slot: Slot, weight_RC: Tensor | None) -> None:
        parameter, dense = slot.parameter, self._dense[id(slot.parameter)]
        if slot.index is not None:
            if weight_RC is None and parameter.data_ptr() == dense.data_ptr():
                return
            if parameter.data_ptr() == dense.data_ptr():
                parameter.data = dense.clone()
            slot.view(parameter).copy_(slot.view(dense) if weight_RC is None else weight_RC)
        elif weight_RC is None:
            parameter.data = dense
        else:
            stored = weight_RC.t() if slot.transposed else weight_RC
            parameter.data = stored.to(dtype=dense.dtype, device=dense.device)

    def _stand(self, site: Site, level: Level) -> None:
        """Drop a container or bring it back. Under a dropped parent it is not called, so it is brought back there too."""
        if site.name in self._undo:
            self._undo.pop(site.name)()
        if level == DROP:
            module = self._containers[site.name]
            found = {getattr(child, "layer_idx", None) for child in module.modules()} if site.kind != "mlp" else set()
            layers = sorted(index for index in found if isinstance(index, int))
            stand_in = _stand_in(self._returns[module], keep=site.kind == "block", cache_layers=layers)
            self._undo[site.name] = replace_forward(module, stand_in)


def _no_decode(site: Site, level: Level) -> Tensor:
    raise AssertionError(f"a dense profile asked for {site.name} at {level}")


def _observed_returns(model: nn.Module, modules: list[nn.Module]) -> dict[nn.Module, Returns]:
    found: dict[nn.Module, Returns] = {}
    handles = [module.register_forward_hook(lambda module, _, out: found.update({module: Returns.of(out)})) for module in modules]
    try:
        with torch.no_grad():
            device = next(model.parameters()).device
            model(input_ids=torch.ones(1, 2, dtype=torch.long, device=device), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    if len(found) < len(modules):
        raise UsageError(f"{type(model).__name__} does not call some of its blocks or sublayers.", "This family cannot be searched yet.")
    return found


def _stand_in(returns: Returns, keep: bool, cache_layers: Sequence[int]) -> Forward:
    """A `forward` that adds nothing: a block hands its hidden states on, a sublayer returns zeros.

    A key-value cache still learns how many tokens went by, through keys of one number a token: the length of the first layer gives the
    positions and the masks of all, so a layer that stayed empty would make generation silently wrong. The kept layers keep their index,
    and with it their sliding window.
    """

    def forward(*args: object, **kwargs: object) -> object:
        call = Call(args, kwargs)
        hidden = call.hidden
        for value in call.values():
            if isinstance(value, Cache):
                for layer in cache_layers:
                    _tick(value, layer, hidden)
        return returns.wrap(hidden if keep else torch.zeros_like(hidden))

    return forward


def _tick(cache: Cache, layer: int, hidden: Tensor) -> None:
    if layer < len(cache.layers) and not isinstance(cache.layers[layer], CacheLayerMixin):
        raise UsageError(
            f"Layer {layer} keeps a {type(cache.layers[layer]).__name__} in the cache, which a dropped sublayer cannot stand in for.",
            "Generate with use_cache=False.",
        )
    nothing = hidden.new_zeros(hidden.shape[0], 1, hidden.shape[1], 1)
    cache.update(nothing, nothing, layer)
