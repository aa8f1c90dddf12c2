"""Reused hidden states: the same bits as a whole run, whatever changed, failed or was asked in between."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import FAMILIES, build, tokens
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from evopress.api import DENSE, DROP, Level, Profile, Site
from evopress.models import prefix
from evopress.models.prefix import Prefixes, common
from evopress.models.sites import block_stack, find_sites
from evopress.models.stitch import Stitcher

IDS = (tokens(2, 16), tokens(1, 9), tokens(3, 16))
PLENTY = 2**30


def decode(site: Site, level: Level) -> Tensor:
    seed = sum(map(ord, f"{site.name} {level}"))
    return torch.randn(site.shape, generator=torch.Generator().manual_seed(seed)) * 0.2


def logits(model: nn.Module, ids: Tensor) -> Tensor:
    with torch.no_grad():
        out: Tensor = model(input_ids=ids, use_cache=False).logits
    return out


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_continues_to_the_last_bit(family: str) -> None:
    model = build(family)
    prefixes = Prefixes(list(block_stack(model)[1]), PLENTY)
    assert prefixes.exact(model, IDS[0])
    assert prefixes.blocks_reused > 0


def test_a_model_whose_blocks_read_more_than_hidden_states_is_found_out() -> None:
    model = build("llama")
    blocks = list(block_stack(model)[1])
    # The last block also reads what the first one saw.
    seen: list[Tensor] = []
    blocks[0].register_forward_hook(lambda _, args, out: seen.append(out if isinstance(out, Tensor) else out[0]))
    blocks[0].mlp.register_forward_hook(lambda _, args, out: seen.append(out))
    blocks[-1].register_forward_hook(lambda _, args, out: out + len(seen))
    assert not Prefixes(blocks, PLENTY).exact(model, IDS[0])


@pytest.fixture(scope="module")
def llama() -> tuple[nn.Module, list[nn.Module], Stitcher, tuple[Site, ...]]:
    model = build("llama")
    sites = find_sites(model).sites
    return model, list(block_stack(model)[1]), Stitcher(model, sites), sites


Step = tuple[tuple[int, int, int], tuple[int, ...]]
steps = st.lists(
    st.tuples(st.tuples(*[st.integers(0, 3)] * 3), st.lists(st.integers(0, 2), min_size=1, max_size=3).map(tuple)), min_size=1, max_size=6
)


@given(steps=steps, limit=st.sampled_from([0, 20_000, PLENTY]))
@settings(max_examples=60, deadline=None)
def test_any_sequence_of_profiles_and_texts_gives_the_bits_of_whole_runs(
    llama: tuple[nn.Module, list[nn.Module], Stitcher, tuple[Site, ...]], steps: list[Step], limit: int
) -> None:
    model, blocks, stitcher, sites = llama
    prefixes = Prefixes(blocks, limit)
    for path, texts in steps:
        stitcher.set(_profile(sites, path), decode)
        whole = [logits(model, IDS[text]) for text in texts]
        with prefixes.along(path):
            again = [logits(model, IDS[text]) for text in texts]
        assert all(torch.equal(a, b) for a, b in zip(again, whole, strict=True))
    stitcher.restore()


def _profile(sites: tuple[Site, ...], path: tuple[int, ...]) -> Profile:
    """Block i dense, dropped in its MLP, or compressed in one of two ways."""
    levels: dict[str, Level] = {}
    for site in sites:
        choice = path[site.depth]
        if site.parent is not None and levels[site.parent] not in (DENSE,):
            levels[site.name] = Level.of("absent")
        elif site.kind == "mlp" and choice == 1:
            levels[site.name] = DROP
        elif site.kind == "linear" and choice >= 2:
            levels[site.name] = Level.of("a", bits=choice)
        else:
            levels[site.name] = DENSE
    return Profile.of(levels)


def test_only_blocks_behind_the_first_change_run() -> None:
    model = build("llama")
    prefixes = Prefixes(list(block_stack(model)[1]), PLENTY)
    for path, run in (("abc", 3), ("abd", 1), ("abd", 0), ("xbd", 3), ("xyd", 2)):
        before = prefixes.blocks_run
        with prefixes.along(tuple(path)):
            logits(model, IDS[0])
        assert prefixes.blocks_run - before == run, path
    prefixes.forget()
    with prefixes.along(tuple("xyd")):
        logits(model, IDS[0])
    assert prefixes.blocks_run == 12


def failing(model: nn.Module) -> None:
    """One of two passes, then an error."""
    logits(model, IDS[0])
    raise ZeroDivisionError


def test_a_run_that_failed_half_way_leaves_nothing_wrong() -> None:
    model = build("llama")
    blocks = list(block_stack(model)[1])
    stitcher, prefixes = Stitcher(model, find_sites(model).sites), Prefixes(blocks, PLENTY)
    sites = find_sites(model).sites
    stitcher.set(_profile(sites, (0, 0, 0)), decode)
    with prefixes.along((0, 0, 0)):
        logits(model, IDS[0]), logits(model, IDS[2])
    stitcher.set(_profile(sites, (0, 2, 0)), decode)
    with pytest.raises(ZeroDivisionError), prefixes.along((0, 2, 0)):
        failing(model)
    stitcher.set(_profile(sites, (0, 0, 3)), decode)
    whole = [logits(model, IDS[0]), logits(model, IDS[2])]
    with prefixes.along((0, 0, 3)):
        assert all(torch.equal(a, b) for a, b in zip([logits(model, IDS[0]), logits(model, IDS[2])], whole, strict=True))


def test_a_path_names_every_block() -> None:
    with (
        pytest.raises(ValueError, match="a path names all 3 blocks, got 2"),
        Prefixes(list(block_stack(build("llama"))[1]), 1).along((1, 2)),
    ):
        pass
    assert common((1, 2, 3), (1, 2, 4)) == 2


class Elsewhere(Tensor):
    """A tensor that says it is on a GPU."""

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return torch.device("cuda")


class Reads(TorchDispatchMode):
    """Counts the values that are read from tensors, and the comparisons that answer on the spot."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func.overloadpacket in (torch.ops.aten._local_scalar_dense, torch.ops.aten.equal)
        return func(*args, **(kwargs or {}))


def test_tensors_of_a_gpu_are_compared_with_one_wait() -> None:
    given = [torch.randn(2, 5, 8), torch.arange(5), torch.tensor(True), torch.randn(0, 3)]
    others = [[part.clone() for part in given] for _ in range(4)]
    others[1][0][1, 4, 7] += 1e-3
    others[2][1] = others[2][1].float()
    others[3].pop()
    there = [part.as_subclass(Elsewhere) for part in given]
    for same, other in zip((True, False, False, False), others, strict=True):
        with Reads() as here:
            assert prefix._equal(given, other) == same
        with Reads() as away:
            assert prefix._equal(there, [part.as_subclass(Elsewhere) for part in other]) == same
        assert away.count == (other is others[0] or other is others[1])
        assert here.count <= len(given)
    assert not prefix._equal(given, there)
    mixed = [there[0], given[1]]
    with Reads() as reads:
        assert prefix._equal(mixed, [there[0], given[1].clone()])
    assert reads.count == 2


def test_nothing_is_compared_where_nothing_can_be_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[int] = []
    real = prefix._equal
    monkeypatch.setattr(prefix, "_equal", lambda ours, theirs: (compared.append(len(ours)), real(ours, theirs))[1])
    model = build("llama")
    prefixes = Prefixes(list(block_stack(model)[1]), PLENTY)
    for path, comparisons in (("abc", 0), ("xbc", 0), ("xbd", 1), ("xbd", 1)):
        compared.clear()
        with prefixes.along(tuple(path)):
            logits(model, IDS[0])
        assert len(compared) == comparisons, path
